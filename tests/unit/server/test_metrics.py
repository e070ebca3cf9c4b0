"""Metrics: what was counted is what is scraped, with bounded labels and never an id."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from coordinator.server.metrics import OTHER, TYPES_MAX, Histogram, Metrics, Status


def scrape(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Samples as a Prometheus server reads them."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def value(metrics: Metrics, sample: str, /, **labels: str) -> float:
    return scrape(metrics)[sample, frozenset(labels.items())]


def test_an_idle_daemon_can_be_scraped() -> None:
    """Before anything happened the page is valid and tells what runs."""
    metrics = Metrics("orders", "1.2.3")
    assert value(metrics, "coordinator_info", name="orders", version="1.2.3") == 1
    assert value(metrics, "coordinator_slots_used") == 0
    assert value(metrics, "process_resident_memory_bytes") > 0


def test_commands_are_counted_by_type_and_end() -> None:
    """Accepted, ended and refused commands."""
    metrics = Metrics()
    metrics.submitted("PlaceOrder")
    metrics.submitted("PlaceOrder")
    metrics.finished("PlaceOrder", "compensated", 1.5)
    metrics.refused("suspended")
    assert value(metrics, "coordinator_commands_submitted_total", type="PlaceOrder") == 2
    assert value(metrics, "coordinator_commands_finished_total", type="PlaceOrder", state="compensated") == 1
    assert value(metrics, "coordinator_commands_refused_total", code="suspended") == 1
    assert value(metrics, "coordinator_command_seconds_sum") == 1.5


def test_types_are_bounded() -> None:
    """Whoever sends ever new types fills one row more, not the memory of the metrics server."""
    metrics = Metrics()
    for number in range(TYPES_MAX + 50):
        metrics.submitted(f"T{number}")
        metrics.finished(f"T{number}", "completed", 1)
    assert value(metrics, "coordinator_commands_submitted_total", type=OTHER) == 50
    rows = [name for name, _ in scrape(metrics) if name == "coordinator_commands_finished_total"]
    assert len(rows) == TYPES_MAX + 1


def test_calls_are_counted_and_timed_by_service() -> None:
    """What services answered, and how fast."""
    metrics = Metrics()
    metrics.answered("payments", "outcome", 0.004)
    metrics.answered("payments", "delayed", 2.0)
    assert value(metrics, "coordinator_calls_total", service="payments", verdict="delayed") == 1
    assert value(metrics, "coordinator_call_seconds_count", service="payments") == 2
    assert value(metrics, "coordinator_call_seconds_bucket", service="payments", le="0.005") == 1


def test_appends_and_replays_are_measured() -> None:
    """The log's pace, its failures and the cost of starting."""
    metrics = Metrics()
    metrics.acquired(3, 40, 0.25)
    metrics.acquired(4, 9, 0.25)
    metrics.appended(3, 17, 0.002, 58)
    metrics.append_failed()
    metrics.stepped_down(4)
    assert value(metrics, "coordinator_append_records_sum") == 17
    assert value(metrics, "coordinator_append_seconds_bucket", le="0.0025") == 1
    assert value(metrics, "coordinator_append_failures_total") == 1
    assert value(metrics, "coordinator_step_downs_total") == 1
    assert value(metrics, "coordinator_replay_seconds_total") == 0.5
    assert value(metrics, "coordinator_log_end_offset", partition="3") == 58
    assert value(metrics, "coordinator_epoch", partition="3") == 40
    assert ("coordinator_epoch", frozenset({("partition", "4")})) not in scrape(metrics)


def test_connections_go_up_and_down() -> None:
    """Open ones are a gauge, opened ones a counter; a listener that cannot see its connections shows none."""
    metrics = Metrics()
    tcp, grpc = metrics.traffic("tcp"), metrics.traffic("grpc", sees_connections=False)
    tcp.connected()
    tcp.connected()
    tcp.disconnected()
    tcp.requested()
    grpc.requested()
    assert value(metrics, "coordinator_connections", transport="tcp") == 1
    assert value(metrics, "coordinator_connections_opened_total", transport="tcp") == 2
    assert value(metrics, "coordinator_requests_total", transport="tcp") == 1
    assert value(metrics, "coordinator_requests_total", transport="grpc") == 1
    assert ("coordinator_connections", frozenset({("transport", "grpc")})) not in scrape(metrics)


def test_what_stands_now_is_asked_at_each_scrape() -> None:
    """Gauges come from a function, so nothing has to keep them up to date."""
    metrics = Metrics()
    metrics.status = lambda: Status(
        commands={"delayed": 3}, oldest_age_ms=90_000, slots_used=4, slots_max=10, calls={"stock": 2},
        breakers={"stock": "open"}, suspended=["stock"], refusing=True, ready=True,
    )  # fmt: skip
    assert value(metrics, "coordinator_commands", state="delayed") == 3
    assert value(metrics, "coordinator_commands", state="running") == 0
    assert value(metrics, "coordinator_oldest_command_seconds") == 90
    assert value(metrics, "coordinator_breaker_state", service="stock", state="open") == 1
    assert value(metrics, "coordinator_breaker_state", service="stock", state="closed") == 0
    assert value(metrics, "coordinator_suspended_services") == 1
    assert value(metrics, "coordinator_intake_refusing") == 1
    assert value(metrics, "coordinator_calls_in_flight", service="stock") == 2
    assert value(metrics, "coordinator_ready") == 1


def test_two_daemons_in_one_process_do_not_share_numbers() -> None:
    """Each has its own registry, so tests and embedded daemons do not disturb each other."""
    one, other = Metrics(), Metrics()
    one.submitted("T")
    assert ("coordinator_commands_submitted_total", frozenset({("type", "T")})) not in scrape(other)


def test_a_histogram_counts_up_to_its_bounds() -> None:
    """A value on a bound belongs to that bucket; the last bucket has all."""
    histogram = Histogram((1.0, 2.0))
    for observed in (0.5, 1.0, 1.5, 99.0):
        histogram.observe(observed)
    assert histogram.buckets() == ([("1.0", 2.0), ("2.0", 3.0), ("+Inf", 4.0)], 102.0)
