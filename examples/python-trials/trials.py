"""Estimates pi by trials over a table that takes its time to load; each trial is one of its own, by its seed."""

import random
import sys

sys.path.insert(0, "/run/martlet")
import martlet_guest


def load(size):
    """What a process has in memory when it is warm: points that all trials share."""
    source = random.Random(1)
    return [(source.random(), source.random()) for _ in range(size)]


def answer(trial):
    """Does trials as they are asked for, each by a seed in one pipe, and its result in another."""
    while True:
        with open("/run/ask", encoding="ascii") as ask:
            seed = int(ask.read())
        with open("/run/answer", "w", encoding="ascii") as result:
            print(seed, trial(seed), file=result)


def main(way, clones=0, trials=0):
    table = load(200_000)
    print("warm", file=sys.stderr, flush=True)

    def trial(seed):
        chosen = random.Random(seed)
        picked = (table[chosen.randrange(len(table))] for _ in range(50_000))
        return 4 * sum(x * x + y * y <= 1 for x, y in picked) / 50_000

    if way == "wait":
        answer(trial)
    seeds = range(trials)
    results = martlet_guest.map(trial, seeds, clones) if way == "clones" else map(trial, seeds)
    for seed, result in zip(seeds, results):
        print(seed, result)


main(sys.argv[1], *map(int, sys.argv[2:]))
