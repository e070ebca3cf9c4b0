"""Numbers for Prometheus: counted as plain ints on the hot path, turned into samples only when someone scrapes.

A call of prometheus-client's own counters costs about a microsecond (a lock, a labels look-up); a saga makes a dozen of
them.  Here counting is an int in a dict (0.1 µs), and `Metrics` is itself the Collector that `/metrics` asks.  What can
be read off at any time (commands under way, slots, breakers) is not counted at all: the pipeline gives a `Status`
when asked.

Everything runs on the event loop's thread, so nothing is locked.  Labels are bounded: services and transports are named
by the configuration, codes and verdicts by our own tables, command types by `TYPES_MAX`, after which they are
``other``.  Never an id.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from coordinator.transport.base import Traffic

TYPES_MAX = 200
OTHER = "other"

CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
APPEND_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
COMMAND_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 60.0, 600.0, 3600.0, 86400.0)
BATCH_RECORDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Status(Struct, frozen=True, kw_only=True):
    """How things stand now; whoever knows gives it at each scrape (`Metrics.status`).

    ``commands`` counts the uncompleted by shown state (``running``, ``delayed`` …).  ``oldest_age_ms`` is the age of
    the oldest uncompleted one, 0 without any.  ``breakers`` is ``closed``, ``open`` or ``half_open`` by service,
    ``calls`` the calls under way by service, ``refusing`` tells that new commands are refused now, for whatever reason.
    ``log_end``, ``epochs``, ``quarantined`` (records) and ``stopped`` (1: it waits for an operator) are by partition.
    """

    commands: Mapping[str, int] = {}
    oldest_age_ms: int = 0
    slots_used: int = 0
    slots_max: int = 0
    calls: Mapping[str, int] = {}
    breakers: Mapping[str, str] = {}
    suspended: Sequence[str] = ()
    refusing: bool = False
    ready: bool = False
    log_end: Mapping[int, int] = {}
    epochs: Mapping[int, int] = {}
    quarantined: Mapping[int, int] = {}
    stopped: Mapping[int, int] = {}


STATES = ("running", "delayed", "blocked", "waiting", "paused", "dead_letter", "compensating")
BREAKER_STATES = ("closed", "half_open", "open")


class Histogram:
    """Counts by upper bound; ``observe`` is a bisection and two additions."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative counts by ``le``, and the sum, as Prometheus wants them."""
        total, rows = 0, []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            rows.append(("+Inf" if bound == float("inf") else str(float(bound)), float(total)))
        return rows, self._sum


class Metrics(Collector):
    """The counters of one daemon, in a registry of their own.

    ``name`` is the group's (``[coordinator] name``), ``version`` the program's; both are labels of
    ``coordinator_info``.  Set ``status`` to a function that returns a `Status`; until then the gauges are zero.
    """

    def __init__(self, name: str = "", version: str = "") -> None:
        self.status: Callable[[], Status] = Status
        self._info = (name, version)
        self._types: set[str] = set()
        self._submitted: dict[str, int] = defaultdict(int)
        self._finished: dict[tuple[str, str], int] = defaultdict(int)
        self._refused: dict[str, int] = defaultdict(int)
        self._scheduled: dict[str, int] = defaultdict(int)
        self._answers: dict[tuple[str, str], int] = defaultdict(int)
        self._call_seconds: dict[str, Histogram] = {}
        self._command_seconds = Histogram(COMMAND_SECONDS)
        self._append_seconds = Histogram(APPEND_SECONDS)
        self._append_records = Histogram(BATCH_RECORDS)
        self._append_failures = 0
        self._step_downs = 0
        self._log_end: dict[int, int] = {}
        self._epochs: dict[int, int] = {}
        self._replay_seconds = 0.0
        self._snapshots: dict[int, int] = defaultdict(int)
        self._covered: dict[int, int] = {}
        self._snapshot_bytes: dict[int, int] = {}
        self._snapshot_seconds = 0.0
        self.dedupe_horizon_s = 0.0
        self._horizons: dict[int, float] = {}
        self._traffic: dict[str, Traffic] = {}
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    # ---------------------------------------------------------------- what the daemon tells

    def submitted(self, type: str) -> None:
        """A command's Submitted is durable."""
        self._submitted[self._bounded(type)] += 1

    def finished(self, type: str, state: str, seconds: float) -> None:
        """A command's Finished is durable, ``seconds`` after it was submitted."""
        self._finished[self._bounded(type), state] += 1
        self._command_seconds.observe(seconds)

    def refused(self, code: str) -> None:
        """A submission was refused; ``code`` is the error's."""
        self._refused[code] += 1

    def scheduled(self, action: str) -> None:
        """A schedule's due time was ``fired``, or ``skipped``."""
        self._scheduled[action] += 1

    def answered(self, service: str, verdict: str, seconds: float | None = None) -> None:
        """A call to a service came back, or was given up, ``seconds`` after it was sent."""
        self._answers[service, verdict] += 1
        if seconds is None:
            return
        histogram = self._call_seconds.get(service)
        if histogram is None:
            histogram = self._call_seconds[service] = Histogram(CALL_SECONDS)
        histogram.observe(seconds)

    def appended(self, partition: int, records: int, seconds: float, end: int) -> None:
        """A batch was confirmed; ``end`` is the next offset of the partition."""
        self._append_seconds.observe(seconds)
        self._append_records.observe(records)
        self._log_end[partition] = end

    def append_failed(self) -> None:
        """A batch was refused, or nobody knows."""
        self._append_failures += 1

    def stepped_down(self, partition: int) -> None:
        """A partition was lost to another owner, or given up in doubt."""
        self._step_downs += 1
        self._epochs.pop(partition, None)

    def acquired(self, partition: int, epoch: int, seconds: float) -> None:
        """A partition was replayed and is ours; its epoch's number is its Epoch record's offset."""
        self._epochs[partition] = epoch
        self._log_end[partition] = epoch + 1
        self._replay_seconds += seconds

    def snapshot(self, partition: int, covered: int, size: int, seconds: float) -> None:
        """A snapshot of the partition, of what is below ``covered``, is confirmed."""
        self._snapshots[partition] += 1
        self._covered[partition] = covered
        self._snapshot_bytes[partition] = size
        self._snapshot_seconds += seconds

    def horizon(self, partition: int, seconds: float) -> None:
        """How far back the receipts of the partition's newest snapshot go."""
        self._horizons[partition] = seconds

    @property
    def effective_horizon_s(self) -> float:
        """For how long after its end an id is surely known, whichever its partition."""
        return min(self._horizons.values(), default=self.dedupe_horizon_s)

    def traffic(self, transport: str, *, sees_connections: bool = True) -> Traffic:
        """What the listener ``http``, ``grpc`` or ``tcp`` counts into."""
        return self._traffic.setdefault(transport, Traffic(sees_connections=sees_connections))

    def _bounded(self, type: str) -> str:
        if type in self._types:
            return type
        if len(self._types) < TYPES_MAX:
            self._types.add(type)
            return type
        return OTHER

    # ---------------------------------------------------------------- what Prometheus reads

    content_type = CONTENT_TYPE_LATEST

    def render(self) -> bytes:
        """The body of ``GET /metrics``."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """All samples; called by the registry."""
        yield _gauge("info", "What runs here.", ("name", "version"), {self._info: 1})
        yield from self._counters()
        yield from self._histograms()
        status = self.status()
        yield from _gauges(status)
        yield _gauge("log_end_offset", "The next offset.", ("partition",), status.log_end or self._log_end)
        yield _gauge("epoch", "The present ownership's number.", ("partition",), status.epochs or self._epochs)

    def _counters(self) -> Iterator[Metric]:
        yield _counter("commands_submitted", "Commands accepted.", ("type",), self._submitted)
        yield _counter("commands_finished", "Commands ended, by final state.", ("type", "state"), self._finished)
        yield _counter("commands_refused", "Submissions refused, by error code.", ("code",), self._refused)
        yield _counter("schedule_runs", "Due times of schedules, by what became of them.", ("action",), self._scheduled)
        yield _counter("calls", "Calls to services, by what the answer meant.", ("service", "verdict"), self._answers)
        yield _counter("append_failures", "Appends refused or in doubt.", (), {(): self._append_failures})
        yield _counter("step_downs", "Partitions lost to another owner or in doubt.", (), {(): self._step_downs})
        yield _counter(
            "replay_seconds", "Time spent reading the log at start or take-over.", (), {(): self._replay_seconds}
        )
        yield _counter("snapshots", "Snapshots confirmed.", ("partition",), self._snapshots)
        yield _counter(
            "snapshot_seconds", "Time that snapshots took, beside the work.", (), {(): self._snapshot_seconds}
        )
        yield _gauge("snapshot_covered_offset", "Below it nothing is replayed.", ("partition",), self._covered)
        yield _gauge("snapshot_bytes", "Size of the newest snapshot.", ("partition",), self._snapshot_bytes)
        horizon = {(): self.effective_horizon_s}
        yield _gauge("dedupe_horizon_seconds", "For how long after its end an id is surely known.", (), horizon)
        seen = {name: traffic for name, traffic in self._traffic.items() if traffic.sees_connections}
        opened = {name: traffic.opened for name, traffic in seen.items()}
        yield _counter("connections_opened", "Connections of clients.", ("transport",), opened)
        requests = {name: traffic.requests for name, traffic in self._traffic.items()}
        yield _counter("requests", "Requests of clients.", ("transport",), requests)
        now = {name: traffic.connections for name, traffic in seen.items()}
        yield _gauge("connections", "Connections of clients now.", ("transport",), now)

    def _histograms(self) -> Iterator[Metric]:
        calls = HistogramMetricFamily(
            "coordinator_call_seconds", "How long services take to answer.", labels=["service"]
        )
        for service, histogram in self._call_seconds.items():
            calls.add_metric([service], *histogram.buckets())
        yield calls
        for name, help, histogram in (
            ("command_seconds", "From a command's submission to its end.", self._command_seconds),
            ("append_seconds", "How long the log takes to confirm a batch.", self._append_seconds),
            ("append_records", "Records a batch.", self._append_records),
        ):
            family = HistogramMetricFamily(f"coordinator_{name}", help)
            family.add_metric([], *histogram.buckets())
            yield family


def _gauges(status: Status) -> Iterator[Metric]:
    commands = {state: status.commands.get(state, 0) for state in STATES}
    breakers = {
        (service, state): int(state == now) for service, now in status.breakers.items() for state in BREAKER_STATES
    }
    age = status.oldest_age_ms / 1000
    yield _gauge("commands", "Uncompleted commands, by state.", ("state",), commands)
    yield _gauge("oldest_command_seconds", "Age of the oldest uncompleted command.", (), {(): age})
    yield _gauge("slots_used", "Commands that count against max_commands.", (), {(): status.slots_used})
    yield _gauge("slots_max", "The limit max_commands.", (), {(): status.slots_max})
    yield _gauge("calls_in_flight", "Calls to services now.", ("service",), status.calls)
    yield _gauge("breaker_state", "1 for the state the breaker is in.", ("service", "state"), breakers)
    yield _gauge("suspended_services", "Services whose commands are refused now.", (), {(): len(status.suspended)})
    yield _gauge("intake_refusing", "1 while new commands are refused.", (), {(): int(status.refusing)})
    listed = "Records that cannot be read or applied."
    yield _gauge("quarantined_records", listed, ("partition",), status.quarantined)
    yield _gauge("partition_stopped", "1 while it waits for an operator.", ("partition",), status.stopped)
    yield _gauge("ready", "1 while every owned partition is served.", (), {(): int(status.ready)})


Samples = Mapping[Any, float]
"""Values by label value, or by a tuple of them in the labels' order; ``()`` is the key where there is no label."""


def _counter(name: str, help: str, labels: Sequence[str], samples: Samples) -> Metric:
    return _filled(CounterMetricFamily(f"coordinator_{name}", help, labels=labels), samples)


def _gauge(name: str, help: str, labels: Sequence[str], samples: Samples) -> Metric:
    return _filled(GaugeMetricFamily(f"coordinator_{name}", help, labels=labels), samples)


def _filled(family: CounterMetricFamily | GaugeMetricFamily, samples: Samples) -> Metric:
    for key, value in samples.items():
        family.add_metric([*key] if isinstance(key, tuple) else [str(key)], value)
    return family
