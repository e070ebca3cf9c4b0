"""Logs: one shape for our events and for those of libraries, and nothing that a client can forge."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from coordinator.server.logging import LIBRARIES, Repeats, setup


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Puts the process's loggers back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.NOTSET)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_our_events_and_those_of_libraries_have_one_shape() -> None:
    """structlog and the standard library end in the same line."""
    stream = io.StringIO()
    setup("json", "info", stream)
    structlog.get_logger("coordinator.log").info("log opened", partitions=6)
    logging.getLogger("aiokafka.client").error("cannot reach %s", "b1")
    ours, theirs = lines(stream)
    assert {key: ours[key] for key in ("event", "level", "logger", "partitions")} == {
        "event": "log opened", "level": "info", "logger": "coordinator.log", "partitions": 6,
    }  # fmt: skip
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("cannot reach b1", "error", "aiokafka.client")
    assert ours["timestamp"].endswith("Z")
    assert theirs["timestamp"].endswith("Z")


def test_the_level_holds_for_all() -> None:
    """Below the level nothing is printed; libraries' chatter needs debug."""
    stream = io.StringIO()
    setup("json", "info", stream)
    structlog.get_logger("coordinator").debug("detail")
    logging.getLogger("uvicorn.error").info("started")
    assert stream.getvalue() == ""
    setup("json", "debug", stream)
    logging.getLogger("uvicorn.error").info("started")
    assert lines(stream)[0]["event"] == "started"


def test_an_exception_is_one_line() -> None:
    """A traceback is a field, so that a log collector keeps it together."""
    stream = io.StringIO()
    setup("json", "info", stream)
    try:
        raise ValueError("why")
    except ValueError:
        structlog.get_logger("coordinator").exception("it broke")
    (line,) = lines(stream)
    assert "ValueError: why" in line["exception"]


def test_auto_is_json_in_a_file_and_columns_on_a_terminal() -> None:
    """A person gets columns, a collector JSON, without being asked."""
    file, terminal = io.StringIO(), Terminal()
    setup("auto", "info", file)
    structlog.get_logger("a").info("hello")
    setup("auto", "info", terminal)
    structlog.get_logger("b").info("hello")
    assert lines(file)[0]["event"] == "hello"
    assert terminal.getvalue().startswith("\x1b")


@pytest.mark.parametrize("format", ["json", "console"])
def test_text_from_clients_cannot_forge_a_line(format: Any) -> None:
    """Newlines and escape sequences are printed as text; a lone surrogate does no harm."""
    stream = io.StringIO()
    setup(format, "info", stream)
    structlog.get_logger("coordinator").info("refused", id="x\n2026 [error] forged\x1b[31m\ud800")
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()
    stream.getvalue().encode()


def test_a_library_that_repeats_itself_is_cut_short() -> None:
    """The first of a kind at once, then one an interval with the number left out; our own events always."""
    now = [0.0]
    repeats = Repeats(10.0, lambda: now[0])

    def passes(name: str, text: str, *args: object) -> bool:
        return repeats.filter(logging.LogRecord(name, logging.ERROR, "", 0, text, args, None))

    assert passes("aiokafka", "failed %s", 1)
    assert not passes("aiokafka", "failed %s", 2)
    assert not passes("aiokafka", "failed %s", 3)
    assert passes("aiokafka", "something else")
    assert passes("coordinator.log", "same")
    assert passes("coordinator.log", "same")
    now[0] = 10.0
    again = logging.LogRecord("aiokafka", logging.ERROR, "", 0, "failed %s", (4,), None)
    assert repeats.filter(again)
    assert again.__dict__["left_out"] == 2


def test_the_memory_of_repeats_is_bounded() -> None:
    """A library that formats its own texts is a new kind each time, and forgotten in time."""
    repeats = Repeats()
    for number in range(3_000):
        repeats.filter(logging.LogRecord("grpc", logging.ERROR, "", 0, f"failed {number}", (), None))
    assert len(repeats._kinds) <= 1_000
