"""Identifiers, and the hash that places a command.

A command's id is chosen by its client (so that a retry is safe) or made here.  Ids are not tied to partition numbers:
``hash(id)`` names one of 4096 buckets and a map leads from buckets to partitions, so that partitions can be added.
"""

from __future__ import annotations

import os
import re
from hashlib import blake2b
from typing import NewType

from coordinator.errors import InvalidPayload

CommandId = NewType("CommandId", str)
Token = NewType("Token", bytes)  # 8 random bytes, fresh for every attempt to acquire a partition

BUCKETS = 4096
ID_LENGTH_MAX = 200
TOKEN_BYTES = 8

_ID = re.compile(r"[^\x00-\x20\x7f-\x9f/\ud800-\udfff\u2028\u2029]{1,200}")
_ID_RULE = "1 to 200 characters, no spaces, control characters or slashes, and is not . or .."
_STEPS = (".", "..")  # clients resolve these in a path, percent-encoded or not: nobody could ask for such a command


def command_id(text: str, path: str = "$.id") -> CommandId:
    """Checks an id that a client chose; raises InvalidPayload with ``path``."""
    if not _ID.fullmatch(text) or text in _STEPS:
        raise InvalidPayload.at(path, f"an id has {_ID_RULE}")
    return CommandId(text)


def new_command_id() -> CommandId:
    """16 random bytes as hex: made at the edge when the client sent no id."""
    return CommandId(os.urandom(16).hex())


def bucket_of(id: str) -> int:
    """The bucket of an id, 0..4095; the same on every instance and in every version."""
    return int.from_bytes(blake2b(id.encode(), digest_size=2).digest(), "big") % BUCKETS


def partition_of(id: str, partitions: int) -> int:
    """The partition of an id while buckets are spread evenly over ``partitions``."""
    return bucket_of(id) * partitions // BUCKETS


def position(partition: int, offset: int) -> str:
    """A place in the log as clients see it, for example ``3:1841``."""
    return f"{partition}:{offset}"


def parse_position(text: str, path: str = "$.position") -> tuple[int, int]:
    """The inverse of `position`; raises InvalidPayload with ``path``."""
    match = re.fullmatch(r"(\d{1,6}):(\d{1,18})", text, re.ASCII)
    if not match:
        raise InvalidPayload.at(path, "a position is <partition>:<offset>, for example 3:1841")
    return int(match[1]), int(match[2])
