/* Forks the virtual machine that this program runs in, as SnowFlock does. What each call means: docs/guest-api.md.
 *
 *     struct martlet_ticket ticket;
 *     if (martlet_request_ticket(8, 0, 0, &ticket) < 0) { fprintf(stderr, "%s\n", martlet_error()); return 1; }
 *     int id = martlet_clone(ticket.name, 1, NULL);
 *     if (id > 0)
 *         martlet_exit(0, "done", 4);
 *
 * Calls return -1 when they were not done, or when it is not known whether they were; martlet_error() then says why.
 */
#ifndef MARTLET_GUEST_H
#define MARTLET_GUEST_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Most bytes that a child can hand to its parent when it exits. */
#define MARTLET_DATA_BYTES (32 * 1024)

/* Longest name of a ticket, a checkpoint, a family or a VM, with its end. */
#define MARTLET_NAME_BYTES 256

/* What kind of failure: the first as the host says, the rest as the library finds. */
enum martlet_error_kind {
    MARTLET_NO_ERROR,
    MARTLET_DENIED,
    MARTLET_NOT_FOUND,
    MARTLET_INVALID,
    MARTLET_STATE,
    MARTLET_BUSY,
    MARTLET_INTERRUPTED,
    MARTLET_FAILED,
    MARTLET_ABSENT,  /* no agent listens: this is no guest of Martlet */
    MARTLET_LOST,    /* the connection ended before the answer */
    MARTLET_PROTOCOL /* the answer makes no sense */
};

/* Room for clones. */
struct martlet_ticket {
    char name[MARTLET_NAME_BYTES];
    unsigned granted; /* for how many processes: at least 1, at most what was asked for */
};

/* A process of a clone ended, or did not start. */
struct martlet_exited {
    unsigned id;
    int exited;     /* it called martlet_exit, with this status and data; else `problem` says why it ended */
    int status;
    char *data;     /* followed by a 0, which does not count */
    size_t length;
    char *problem;  /* or NULL */
};

/* Some of them. Free with martlet_exits_free, which leaves it empty. */
struct martlet_exits {
    struct martlet_exited *each;
    size_t count;
};

/* Who a VM is. */
struct martlet_family {
    unsigned id;                    /* 0 in a VM that is nobody's clone; else the number of its first process */
    char family[MARTLET_NAME_BYTES]; /* what parent and clones have in common: the parent's id at its host */
    unsigned size;                  /* how many processes the family has, without the parent's; 0 when there is none */
    char name[MARTLET_NAME_BYTES];  /* the VM's name at its host */
};

/* Asks for room for `count` processes in clones of this VM; fewer may be granted. `hierarchical`: as many processes in
 * each clone as it has processors. Clones end after `timeout_s`, if that is not 0. Returns 0. */
int martlet_request_ticket(unsigned count, int hierarchical, unsigned timeout_s, struct martlet_ticket *ticket);

/* Forks the VM, then, in the clones of a hierarchical ticket, this process. Returns 0 in the parent, which waits, if
 * `wait`, until its clones run, and the process's number in a clone. `failed`, if not NULL, is made those whose clone did
 * not start. As for fork(), a new process has this thread only. */
int martlet_clone(const char *ticket, int wait, struct martlet_exits *failed);

/* Ends this process of a clone, and hands data, at most MARTLET_DATA_BYTES, to the parent. Returns only when it could
 * not. */
int martlet_exit(int status, const void *data, size_t length);

/* Waits for the end of all of a ticket's processes, and discards the ticket. Returns 0; on failure `exits` is empty. */
int martlet_join(const char *ticket, struct martlet_exits *exits);

/* Ends all clones of a ticket, and the ticket. Returns how many were ended. */
int martlet_kill(const char *ticket);

/* Saves the VM's state. Returns 0 in this VM, with a name for martlet_create_clones; and, when that starts them, in
 * clones of the state, the process's number. */
int martlet_checkpoint(char checkpoint[MARTLET_NAME_BYTES]);

/* Starts clones of a checkpoint; they go on where it was taken. Returns 0. */
int martlet_create_clones(const char *checkpoint, const char *ticket, int wait, struct martlet_exits *failed);

/* This process's number: 0 in a VM that is nobody's clone by such a call. */
int martlet_vmid(void);

/* Who this VM is. Returns 0. */
int martlet_family(struct martlet_family *family);

/* Frees what a call put there. */
void martlet_exits_free(struct martlet_exits *exits);

/* Why this thread's last failed call failed, for people. Stays until the next failure. */
const char *martlet_error(void);

/* And what kind of failure it was. */
enum martlet_error_kind martlet_error_kind(void);

/* Its name, the same in all libraries: "not_found". */
const char *martlet_error_kind_name(enum martlet_error_kind kind);

#ifdef __cplusplus
}
#endif

#endif
