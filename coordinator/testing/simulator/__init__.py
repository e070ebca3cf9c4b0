"""The whole daemon from one seed: real instances in a played world, judged by what they promise.

    python -m coordinator.testing.simulator --seeds 1000 [--from 0]     a thousand worlds; a failing one is shrunk
    python -m coordinator.testing.simulator --replay 615 [--without pause,clock] [--commands 0,3] [--until 4.5]

Real are the engine, ownership, the pipeline, snapshots, the view, the front, and, in a group, routing, links, hand-over
and drain: what a daemon is between its sockets.  Played are the network, the log's storage, the group's broker, the
services, the clients, the operators, the machines' clocks and their deaths.
Everything runs on `coordinator.testing.virtual`, so a seed replays to the last bit, and a run of ten seconds takes some
milliseconds.

    plan       what a seed stands for              process    one life of one instance
    trees      the sagas: all that one can say     folds      a command as the log tells it
    people     who answer what commands wait for
    services   ledgers, and the way to them        clients    clients, operators, repair
    storage    the log, seen through a network     judge      the promises, as they are kept
    network    bytes between machines              membership the group, at its broker
    world      the two phases of a run             search     many seeds on all cores
    shrink     a smaller run that breaks the same promise

A judge that never finds anything proves nothing: `tests/simulation` takes each rule of the ownership protocol out in
turn, and each time some seed must show it.
"""

from __future__ import annotations

from coordinator.testing.simulator.plan import WHOLE, Cut
from coordinator.testing.simulator.search import search
from coordinator.testing.simulator.shrink import command_line, shrink
from coordinator.testing.simulator.world import Report, simulate

__all__ = ["WHOLE", "Cut", "Report", "command_line", "search", "shrink", "simulate"]
