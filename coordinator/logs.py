"""Where a module's events go: to whatever the process has chosen for its logs.

The daemon configures structlog once (`server.logging`), and every event goes there.  Inside somebody else's process
(`coordinator.embedding`) structlog may be configured in the way of that process, which is as good; or not at all, and
would then print on standard output, which is not ours to write to.  There an event goes to the standard library's
logging, as any library's does: its words and facts on one line, under the module's name.

It is asked at each event, since modules are imported before anything is configured.
"""

from __future__ import annotations

import logging
from typing import Any

import structlog


class Logger:
    """One module's; ``event`` is a sentence without its facts, which are keywords."""

    def __init__(self, name: str) -> None:
        self._structured = structlog.get_logger(name)
        self._plain = logging.getLogger(name)

    def debug(self, event: str, **facts: Any) -> None:
        self._tell("debug", event, facts)

    def info(self, event: str, **facts: Any) -> None:
        self._tell("info", event, facts)

    def warning(self, event: str, **facts: Any) -> None:
        self._tell("warning", event, facts)

    def error(self, event: str, **facts: Any) -> None:
        self._tell("error", event, facts)

    def exception(self, event: str, **facts: Any) -> None:
        """An error, with the traceback of the exception that is being handled."""
        self._tell("error", event, {"exc_info": True, **facts})

    def _tell(self, level: str, event: str, facts: dict[str, Any]) -> None:
        if structlog.is_configured():
            getattr(self._structured, level)(event, **facts)
            return
        number = logging.getLevelNamesMapping()[level.upper()]
        if self._plain.isEnabledFor(number):
            exc_info = facts.pop("exc_info", None)
            told = ", ".join(f"{name}={value!r}" for name, value in facts.items())
            self._plain.log(number, "%s", f"{event} ({told})" if told else event, exc_info=exc_info)


def get_logger(name: str) -> Logger:
    """The logger of a module: ``log = get_logger(__name__)``."""
    return Logger(name)
