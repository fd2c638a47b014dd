"""The program of the tests, in Python: see clients/programs.rs."""

import sys

import martlet_guest


def say(*words):
    print(":", *words)  # not flushed: the library does so before it forks


def work(what, *arguments):
    if what == "fork":
        ticket = martlet_guest.request_ticket(int(arguments[0]), hierarchical=len(arguments) > 1, timeout=30)
        say("ticket", ticket.name, ticket.granted)
        id = martlet_guest.clone(ticket)
        say("cloned", id)
        if id != 0:
            martlet_guest.exit(id + 10, b"from %d" % id)
        for failed in martlet_guest.failed_clones():
            say("failed", failed.id, failed.problem)
        for exited in martlet_guest.join(ticket):
            if exited.status is None:
                say("exited", exited.id, "-", exited.problem)
            else:
                say("exited", exited.id, exited.status, exited.data.decode())
        say("joined")
    elif what == "checkpoint":
        ticket = martlet_guest.request_ticket(2)
        checkpoint = martlet_guest.checkpoint()
        if checkpoint.id != 0:
            say("cloned", checkpoint.id)
            martlet_guest.exit()
        say("saved", checkpoint.name)
        martlet_guest.create_clones(checkpoint, ticket, wait=False)
        say("killed", martlet_guest.kill(ticket))
        say("vmid", martlet_guest.vmid())
        me = martlet_guest.family()
        say("family", me.family, me.size, me.name)
    elif what == "exit":
        martlet_guest.exit(0, b"\xff" * int(arguments[0]))
    elif what == "storm":
        for _ in range(int(arguments[0])):
            try:
                martlet_guest.family()
            except martlet_guest.MartletError:
                pass
        say("over")
    elif what == "map":
        count = int(arguments[0])
        if count > 0:
            say("mapped", *martlet_guest.map(lambda x: x * x, range(count), 2))
        elif count == -1:
            martlet_guest.map(lambda x: bytes(40000), range(2), 2)
        else:
            martlet_guest.map(lambda x: 1 / 0, range(2), 2)


try:
    sys.stdout.reconfigure(encoding="utf-8")
    work(*sys.argv[1:])
except martlet_guest.MartletError as error:
    say("error", error.kind)
    print(error, file=sys.stderr)
    sys.exit(1)
