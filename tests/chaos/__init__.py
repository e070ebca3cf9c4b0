"""Chaos: a real Kafka of three brokers, three daemons of one group, a load of clients, services with ledgers, faults.

    make chaos [MINUTES=30]          every fault in turn, round after round
    python -m tests.chaos --only kill,hang --seed 7

Three independent sources tell what became of each command, and none of them is asked to trust another:

    what clients were told   `load`      every answer, with the time at which it came
    what the log says        `book`      the topic itself, read and folded here
    what services did        `services`  append-only ledgers, written before each answer

`checker` compares the three when a round is over: nothing that was accepted is lost, nobody was told what the log or a
ledger contradicts.  `figures` measures from the same three how long a fault was felt; `reckoning` makes the round's
account of both.  All are pure, and their tests hand them broken histories.

`network` gives each daemon a network of its own that can be cut like a cable, `instances` are the daemons' processes,
`faults` what is done to them, `stage` sets everything up for a round.
"""
