/* The program of the tests, in C: see clients/programs.rs. */

#include "martlet_guest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failed(void) {
    printf(": error %s\n", martlet_error_kind_name(martlet_error_kind()));
    fprintf(stderr, "%s\n", martlet_error());
    return 1;
}

static int work_fork(unsigned count, int hierarchical) {
    struct martlet_ticket ticket;
    struct martlet_exits exits;
    char words[32];
    if (martlet_request_ticket(count, hierarchical, 30, &ticket) < 0)
        return failed();
    printf(": ticket %s %u\n", ticket.name, ticket.granted);
    int id = martlet_clone(ticket.name, 1, &exits);
    if (id < 0)
        return failed();
    printf(": cloned %d\n", id);
    if (id > 0) {
        snprintf(words, sizeof words, "from %d", id);
        martlet_exit(id + 10, words, strlen(words));
        return failed();
    }
    for (size_t at = 0; at < exits.count; at++)
        printf(": failed %u %s\n", exits.each[at].id, exits.each[at].problem);
    martlet_exits_free(&exits);
    if (martlet_join(ticket.name, &exits) < 0)
        return failed();
    for (size_t at = 0; at < exits.count; at++) {
        const struct martlet_exited *one = &exits.each[at];
        if (one->exited)
            printf(": exited %u %d %s\n", one->id, one->status, one->data);
        else
            printf(": exited %u - %s\n", one->id, one->problem);
    }
    martlet_exits_free(&exits);
    puts(": joined");
    return 0;
}

static int work_checkpoint(void) {
    struct martlet_ticket ticket;
    struct martlet_family family;
    char checkpoint[MARTLET_NAME_BYTES];
    int id, killed, vmid;
    if (martlet_request_ticket(2, 0, 0, &ticket) < 0 || (id = martlet_checkpoint(checkpoint)) < 0)
        return failed();
    if (id > 0) {
        printf(": cloned %d\n", id);
        martlet_exit(0, NULL, 0);
        return failed();
    }
    printf(": saved %s\n", checkpoint);
    if (martlet_create_clones(checkpoint, ticket.name, 0, NULL) < 0 || (killed = martlet_kill(ticket.name)) < 0 ||
        (vmid = martlet_vmid()) < 0 || martlet_family(&family) < 0)
        return failed();
    printf(": killed %d\n: vmid %d\n: family %s %u %s\n", killed, vmid, family.family, family.size, family.name);
    return 0;
}

int main(int count, char **arguments) {
    const char *what = count > 1 ? arguments[1] : "";
    int number = count > 2 ? atoi(arguments[2]) : 0;
    if (strcmp(what, "fork") == 0)
        return work_fork((unsigned)number, count > 3);
    if (strcmp(what, "checkpoint") == 0)
        return work_checkpoint();
    if (strcmp(what, "exit") == 0) {
        char *data = malloc((size_t)number + 1);
        if (data == NULL)
            return 2;
        memset(data, 0xff, (size_t)number + 1);
        martlet_exit(0, data, (size_t)number);
        free(data);
        return failed();
    }
    if (strcmp(what, "storm") == 0) {
        struct martlet_family family;
        while (number-- > 0)
            martlet_family(&family);
        puts(": over");
        return 0;
    }
    return 2;
}
