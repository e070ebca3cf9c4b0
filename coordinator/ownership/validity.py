"""Which records count.

Whoever wants to own a partition appends an Epoch record with a token that nobody used before, and stamps every later
record with it.  A record is *valid* iff the last Epoch before it carries the record's token.  That makes the log
itself the judge: the moment a new Epoch lands, everything that the former owner still appends is void, for every
reader alike, without clocks, leases or trust in who believes to be the owner.

State is a fold over the valid records only.  To judge a record one must know the token in force before it; a reader
that begins in the middle of a log and knows none cannot judge, and any guess was shown to lose or to invent decisions
(docs/spec, where the rule is model checked).
"""

from __future__ import annotations

from coordinator.errors import CorruptLog
from coordinator.model.records import Epoch, Record


class Validity:
    """The fold that tells valid records from stale ones; feed it every record from its start, in log order.

    ``token`` is the token in force at the next record, None before any Epoch.  Before the first Epoch of a log nothing
    is valid; a reader that starts above offset 0 with no token may meet nothing but an Epoch first.
    """

    __slots__ = ("_undecidable", "token")

    def __init__(self, start: int = 0, token: bytes | None = None) -> None:
        self.token = token
        self._undecidable = start > 0 and token is None

    def admit(self, offset: int, record: Record) -> bool:
        """Whether this record counts; an Epoch always does.  Raises CorruptLog where that cannot be known."""
        if type(record) is Epoch:
            self.token = record.token
            self._undecidable = False
            return True
        if self._undecidable:
            raise CorruptLog(
                f"the log starts at offset {offset}, above its Epoch record, and nothing tells which epoch was in "
                "force there: what counts cannot be decided.  Restore the head of the log or a snapshot that covers it"
            )
        return record.token == self.token
