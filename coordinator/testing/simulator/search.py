"""Many seeds on all cores: what `make sim` and the tests run."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context
from typing import Final

from coordinator.testing.simulator.world import Report, simulate

CHUNK: Final = 10  # seeds that a core is given at a time


def search(first: int, seeds: int | None, *, minutes: float | None = None, jobs: int = 0) -> Iterator[Report]:
    """The reports of ``seeds`` worlds (None: no end) from ``first`` on, in order, or of as many as ``minutes`` allow.

    ``jobs`` is how many processes share the work; 0: as many as there are cores.  One means this very process.
    """
    until = None if minutes is None else time.monotonic() + minutes * 60
    end = None if seeds is None else first + seeds
    chunks = _chunks(first, end, until)
    jobs = jobs or os.cpu_count() or 1
    if jobs == 1:
        for chunk in chunks:
            yield from map(simulate, chunk)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running: deque[Future[list[Report]]] = deque()
        for chunk in chunks:
            running.append(pool.submit(_simulate_all, chunk))
            if len(running) > 2 * jobs:
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()


def _chunks(first: int, end: int | None, until: float | None) -> Iterator[range]:
    for start in count(first, CHUNK):
        if (end is not None and start >= end) or (until is not None and time.monotonic() >= until):
            return
        yield range(start, start + CHUNK if end is None else min(start + CHUNK, end))


def _simulate_all(seeds: range) -> list[Report]:
    return [simulate(seed) for seed in seeds]
