"""Bytes of the log that are no record, or none that can be read or applied: what is known of them all the same.

Such bytes are never skipped silently and never guessed at.  `ownership.validity` decides whether they count, the
engine what becomes of their command (docs/design.md, "Quarantine"); here is only what can be made out of them.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from coordinator.errors import CorruptLog
from coordinator.model.ids import CommandId
from coordinator.model.records import KINDS, SCHEMA

SUBMITTED: Final = 1
SNAPSHOT: Final = 8
REOPENED: Final = 11
COMMAND_KINDS: Final = frozenset({1, 2, 3, 4, 5, 6, 7, 9, 11})
"""Numbers of the kinds that belong to one command: losing one of them can hurt that command and no other."""


class Damaged(Struct, frozen=True):
    """What stands in the log at ``offset`` in place of a record.

    ``kind``, ``schema``, ``token``, ``id`` and ``type`` are None and ``at`` is 0 where they cannot be read (each only
    with all before it); ``id`` only if it could be a command's.  ``reason`` is a clause for a person, ``data`` all of
    the bytes.
    """

    partition: int
    offset: int
    data: bytes
    reason: str
    kind: int | None = None
    schema: int | None = None
    token: bytes | None = None
    at: int = 0
    id: CommandId | None = None
    type: str | None = None

    @property
    def name(self) -> str:
        """The kind's name, as far as it is known."""
        if self.kind is None:
            return ""
        known = KINDS.get(self.kind)
        return known.__name__ if known is not None else f"kind {self.kind}"

    @property
    def of_a_command(self) -> bool:
        """Whether it is known which command this would be a record of, in a layout that this version knows."""
        return self.id is not None and self.kind in COMMAND_KINDS and self.schema is not None and self.schema <= SCHEMA

    def error(self, because: str = "") -> CorruptLog:
        """Why the partition cannot be read on, with place and kind; ``because`` is said at the end."""
        place = f"{self.partition}:{self.offset} (partition {self.partition}, offset {self.offset})"
        text = f"the log cannot be read at position {place}: {self.reason}"
        return CorruptLog(f"{text}; {because}" if because else text, damaged=self)
