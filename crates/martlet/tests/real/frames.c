/* Frames as they are on the wire, for guests of tests (packet(7), libpcap's file format).
 *
 *   frames send INTERFACE        sends each line "COUNT HEX" of its input so often
 *   frames listen INTERFACE      writes what comes in to its output, as a capture file
 */
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int open_at(const char *interface) {
    struct sockaddr_ll at = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
    struct packet_mreq all = { .mr_type = PACKET_MR_PROMISC };
    int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
    at.sll_ifindex = all.mr_ifindex = (int)if_nametoindex(interface);
    if (fd < 0 || at.sll_ifindex == 0 || bind(fd, (struct sockaddr *)&at, sizeof at) < 0) {
        perror(interface);
        exit(1);
    }
    setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof all);
    return fd;
}

static int send_all(int fd) {
    static char line[8192];
    while (fgets(line, sizeof line, stdin)) {
        unsigned char frame[4096];
        char *hex;
        unsigned byte;
        size_t length = 0;
        long count = strtol(line, &hex, 10);
        for (hex++; length < sizeof frame && sscanf(hex, "%2x", &byte) == 1; hex += 2)
            frame[length++] = (unsigned char)byte;
        while (count-- > 0)
            if (send(fd, frame, length, 0) < 0)
                perror("send"); /* the kernel may refuse what no card could send */
    }
    return 0;
}

static int listen_to_all(int fd) {
    static unsigned char frame[65536];
    const uint32_t header[] = { 0xa1b2c3d4, 0x00040002, 0, 0, sizeof frame, 1 };
    fwrite(header, sizeof header, 1, stdout);
    fflush(stdout);
    for (;;) {
        struct sockaddr_ll from;
        socklen_t size = sizeof from;
        ssize_t length = recvfrom(fd, frame, sizeof frame, 0, (struct sockaddr *)&from, &size);
        if (length < 0)
            return 1;
        if (from.sll_pkttype == PACKET_OUTGOING)
            continue;
        uint32_t record[] = { 0, 0, (uint32_t)length, (uint32_t)length };
        fwrite(record, sizeof record, 1, stdout);
        fwrite(frame, (size_t)length, 1, stdout);
        fflush(stdout);
    }
}

int main(int count, char **words) {
    if (count == 3 && !strcmp(words[1], "send"))
        return send_all(open_at(words[2]));
    if (count == 3 && !strcmp(words[1], "listen"))
        return listen_to_all(open_at(words[2]));
    return 2;
}
