"""Logs: one event a line on standard error, JSON for machines or columns for people.

Everything goes one way: our own modules log through structlog, libraries (uvicorn, aiokafka, grpc, asyncio) through
the standard library, and both end in the same formatter on one handler, so that a line of aiokafka has the same shape
as ours: ``timestamp``, ``level``, ``logger``, ``event`` and further keys.

Two things protect the reader.  A library in trouble repeats itself (aiokafka logs an error per failed reconnect, ten a
second): `Repeats` lets the first of a kind through and then one every few seconds, with the number left out.  And text
that clients chose is printed with control characters escaped, so that nobody forges a line or drives a terminal.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import Processor

LIBRARIES = {
    # Names of loggers whose own idea of "info" is our "debug".
    "uvicorn": logging.WARNING,
    "uvicorn.access": logging.WARNING,
    "uvicorn.error": logging.WARNING,
    "aiokafka": logging.WARNING,
    "grpc": logging.WARNING,
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,
    "asyncio": logging.WARNING,
}
REPEAT_S = 10.0
KINDS_MAX = 1_000


class Repeats(logging.Filter):
    """Lets a kind of message through once every ``interval`` seconds: logger, level and text before its arguments.

    Only for loggers of libraries: our own events are each worth their line.  The line that is let through again tells
    in ``left_out`` how many were not.
    """

    def __init__(self, interval: float = REPEAT_S, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._interval = interval
        self._now = now
        self._kinds: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.msg, dict) or record.name.split(".")[0] not in LIBRARIES:
            return True
        kind = (record.name, record.levelno, str(record.msg))
        now = self._now()
        since, left_out = self._kinds.get(kind, (now - self._interval, 0))
        if now - since < self._interval:
            self._kinds[kind] = (since, left_out + 1)
            return False
        if len(self._kinds) >= KINDS_MAX:
            self._kinds.clear()  # a library that formats its own texts: better to repeat than to grow
        self._kinds[kind] = (now, 0)
        if left_out:
            record.left_out = left_out
        return True


def _escape(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _printable(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """For people's eyes: no control characters but in tracebacks, which are ours."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception" and not value.isprintable():
            event[key] = _escape(value)
    return event


def _renderers(stream: TextIO, format: Literal["json", "console"]) -> list[Processor]:
    if format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    console = structlog.dev.ConsoleRenderer(
        colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=40
    )
    return [_printable, console]


def setup(
    format: Literal["auto", "json", "console"] = "auto", level: str = "info", stream: TextIO | None = None
) -> None:
    """Sends all logs of this process to ``stream`` (standard error); called once, before anything is logged."""
    stream = stream or sys.stderr
    chosen: Literal["json", "console"] = format if format != "auto" else "console" if stream.isatty() else "json"
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler(stream)
    handler.addFilter(Repeats())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(stream, chosen)],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    for name, quiet in LIBRARIES.items():
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(max(quiet, root.level) if root.level > logging.DEBUG else logging.DEBUG)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared[:3],
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
