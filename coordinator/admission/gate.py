"""The one order of questions for a submission, whatever transport it came by.

known already? → attach (also while suspended or full: a retry must find its command)
a service it needs is down? → suspended        no slot? → limit reached        else → admit
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from coordinator.admission import dedupe, limit, suspension


class Decision(Enum):
    ADMIT = "admit"
    ATTACH = "attach"


class Request(NamedTuple):
    """What the gate needs to know of a submission; ``services`` are those its type declares (none: may be any)."""

    id: str
    fingerprint: bytes
    services: frozenset[str]


class Load(NamedTuple):
    """How things stand: slots, and suspended services with their delays (ms)."""

    used: int
    limit: int
    suspended: Mapping[str, int]
    suspend: str
    retry_after_ms: int


def admit(request: Request, known: bytes | None, load: Load) -> Decision:
    """ADMIT or ATTACH; raises IdConflict, Suspended or LimitReached.  ``known`` is the fingerprint under that id, if
    any."""
    if dedupe.attaches(request.id, request.fingerprint, known):
        return Decision.ATTACH
    suspension.check(request.services, load.suspended, load.suspend)
    limit.check(load.used, load.limit, load.retry_after_ms)
    return Decision.ADMIT
