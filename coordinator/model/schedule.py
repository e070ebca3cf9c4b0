"""A schedule as it was put: its due times, and the command of each.

Due times are milliseconds since 1970, like all times of this program; which ones they are is a matter of the calendar
and of a time zone's clocks.  cronsim does with those what Debian's cron does: a fixed time that the clock leaps over is
due right behind the leap, one that comes twice is due the first time, and what is due all the time (``*/15``) follows
the hands.
"""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from enum import StrEnum
from typing import Any

from cronsim import CronSim
from msgspec import Struct

from coordinator.model.command import Submission
from coordinator.model.moments import AT_MAX, timestamp


class Overlap(StrEnum):
    """What a due time means while the last run is still going."""

    SKIP = "skip"
    QUEUE = "queue"
    REPLACE = "replace"


class Spec(Struct, frozen=True, kw_only=True):
    """A schedule as it was put: either ``cron`` in ``zone``, or ``every_ms``.

    ``start`` and ``end`` (ms since 1970, both included) bound its due times; ``command`` has the fields of a Submission
    but the id.
    """

    cron: str | None
    every_ms: int | None
    zone: tzinfo
    overlap: Overlap
    start: int | None
    end: int | None
    command: dict[str, Any]

    def after(self, at: int, since: int) -> int | None:
        """The first due time after ``at``; None when there is none any more.

        ``since`` is when it was put, from which ``every`` counts: in whole seconds, so that due times have short names.
        """
        if self.start is not None:
            at = max(at, self.start - 1)
        due = self._cron_after(at) if self.every_ms is None else self._every_after(at, since, self.every_ms)
        return None if due is None or due > AT_MAX or (self.end is not None and due > self.end) else due

    def latest(self, after: int, upto: int, since: int) -> int | None:
        """The last due time in (``after``, ``upto``]: by bisection, for there may be a year's seconds in between."""
        first = self.after(after, since)
        if first is None or first > upto:
            return None
        low, high = after, upto  # one that is not too late comes after `low`, none after `high`
        while high - low > 1:
            middle = (low + high) // 2
            due = self.after(middle, since)
            if due is not None and due <= upto:
                low = middle
            else:
                high = middle
        return self.after(low, since)

    def _every_after(self, at: int, since: int, every: int) -> int:
        first = self.start if self.start is not None else -(-since // 1000) * 1000 + every
        return first if at < first else first + ((at - first) // every + 1) * every

    def _cron_after(self, at: int) -> int | None:
        """Where the clock is put back, cronsim may begin with a time of the hour's first round: those are over."""
        assert self.cron is not None
        try:
            for due in CronSim(self.cron, datetime.fromtimestamp(at // 1000, UTC).astimezone(self.zone)):
                millis = int(due.timestamp()) * 1000
                if millis > at:
                    return millis
        except (OverflowError, ValueError):  # beyond the calendar
            pass
        return None

    def submission(self, name: str, due: int) -> Submission:
        """The command that is run at ``due``; its id makes a second one of the same due time impossible."""
        attributes = {"schedule": name, **self.command.get("attributes", {})}
        return Submission(**{**self.command, "id": run_id(name, due), "attributes": attributes})


def run_id(name: str, due: int) -> str:
    """``monthly@2026-12-01T08:00:00Z``."""
    return f"{name}@{moment(due)}"


def moment(due: int) -> str:
    """A due time as people write it: without milliseconds where it has none."""
    return timestamp(due).replace(".000Z", "Z")
