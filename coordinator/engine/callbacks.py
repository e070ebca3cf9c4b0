"""Callback URLs: addresses at which a service that was asked can answer later, and that nobody can guess.

The last part of the path is a token, ``<number>.<32 hex digits>``: a keyed hash of the command's id, the name of the
data and the number.  Its key is the token of the Submitted record: random bytes that the log has and no client sees, so
nothing more is kept, and every owner makes and knows the same ones.
"""

from __future__ import annotations

import hmac
from typing import Final
from urllib.parse import quote

from coordinator.model.records import Submitted

_DIGITS: Final = 32


def url(base: str, submitted: Submitted, name: str, number: int) -> str:
    """The ``number``-th address for data of this name, below ``base`` (``https://coordinator.example``)."""
    path = f"{quote(submitted.id, safe='')}/{quote(name, safe='')}/{token(submitted, name, number)}"
    return f"{base.rstrip('/')}/v1/callbacks/{path}"


def token(submitted: Submitted, name: str, number: int) -> str:
    """The last part of the address."""
    told = "\0".join((submitted.id, name, str(number))).encode()
    return f"{number}.{hmac.new(submitted.token, told, 'sha256').hexdigest()[:_DIGITS]}"


def number_of(submitted: Submitted, name: str, given: str) -> int | None:
    """Which of the addresses for this name the token belongs to; None for one that was never given out."""
    number, dot, _ = given.partition(".")
    if not dot or not (number.isascii() and number.isdigit()) or len(number) > 9:
        return None
    known = token(submitted, name, int(number))
    return int(number) if hmac.compare_digest(known.encode(), given.encode()) else None
