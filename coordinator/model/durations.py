"""Durations as people write them: ``200ms``, ``5s``, ``2m``, ``24h``, ``30d``; in the program always whole
milliseconds."""

from __future__ import annotations

import re
from functools import lru_cache

UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h|d)", re.ASCII)
DURATION_RULE = "a duration is a number and a unit (ms, s, m, h, d), for example 200ms, 1.5s, 24h"
DURATION_MAX = 100 * 365 * 86_400_000  # 100 years, in milliseconds


@lru_cache(4096)
def parse_duration(text: object) -> int:
    """Milliseconds of ``text``; raises ValueError with a sentence that says what is allowed."""
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{DURATION_RULE}, not {text!r}")
    millis = round(float(match[1]) * UNITS[match[2]])
    if millis > DURATION_MAX:
        raise ValueError(f"{text} is longer than 100 years")
    return millis


def format_duration(millis: int) -> str:
    """The shortest exact spelling: 1500 → ``1500ms``, 2000 → ``2s``."""
    for unit in ("d", "h", "m", "s"):
        if millis and millis % UNITS[unit] == 0:
            return f"{millis // UNITS[unit]}{unit}"
    return f"{millis}ms"
