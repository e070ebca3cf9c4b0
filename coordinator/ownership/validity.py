"""Which records count.

Whoever wants to own a partition appends an Epoch record with a token that nobody used before, and stamps every later
record with it.  A record is *valid* iff the last Epoch before it carries the record's token.  That makes the log
itself the judge: the moment a new Epoch lands, everything that the former owner still appends is void, for every
reader alike, without clocks, leases or trust in who believes to be the owner.

State is a fold over the valid records only.  To judge a record one must know the token in force before it; a reader
that begins in the middle of a log and knows none cannot judge, and any guess was shown to lose or to invent decisions
(docs/spec, where the rule is model checked).

What cannot be read is judged too (docs/design.md, "Quarantine"), by what it could have been:

| what can be made out of it                                | judgement                                          |
| --------------------------------------------------------- | -------------------------------------------------- |
| no token, and the token in force is not in its bytes      | no owner wrote it, it never counted: listed        |
| kind 0                                                    | stop: from here on another token may be in force   |
| a token that is not in force                              | void like any stale record, whatever it would say  |
| the token in force, a command's kind and the command's id | counts: that command is parked, the others go on   |
| the token in force, a Snapshot's kind                     | listed: a snapshot decides nothing                 |
| the token in force, and anything else                     | stop: it may have decided anything, for anybody    |

An Epoch that was damaged beyond recognition would take all records of its owner with it, void, without a word.  But it
gives itself away: an owner writes nothing before its Epoch is in the log, so behind those bytes come records with a
token that no Epoch had.  One such record may be a stranger's, who made a token up; at the second one with the same
token the reader stops (``_void``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from coordinator.errors import CorruptLog
from coordinator.model.damaged import SNAPSHOT, Damaged
from coordinator.model.records import SCHEMA, Epoch, Record

EPOCH: Final = 0


class Validity:
    """The fold that tells valid records from stale ones; feed it every record from its start, in log order.

    ``token`` is the token in force at the next record, None before any Epoch.  Before the first Epoch of a log nothing
    is valid; a reader that starts above offset 0 with no token may meet nothing but an Epoch first.
    """

    __slots__ = ("_known", "_strays", "_suspect", "_undecidable", "token")

    def __init__(self, start: int = 0, token: bytes | None = None) -> None:
        self.token = token
        self._undecidable = start > 0 and token is None
        self._known = {token}  # tokens that have been in force, as far as we have read
        self._suspect: Damaged | None = None  # since the last Epoch: what may have been one
        self._strays: dict[bytes, int] = {}  # behind it: tokens that no Epoch had, and where each was first

    def knew(self, tokens: Iterable[bytes]) -> None:
        """These have been in force before the start: a late record with one of them is void, and nothing else."""
        self._known.update(tokens)

    def admit(self, offset: int, record: Record | Damaged) -> bool:
        """Whether this record counts, or is to be listed; an Epoch always counts.  Raises CorruptLog where that cannot
        be known, or where nobody may go on behind it."""
        if type(record) is Epoch:
            self.token = record.token
            self._known.add(record.token)
            self._suspect = None
            self._strays.clear()
            self._undecidable = False
            return True
        if isinstance(record, Damaged):
            return self._damaged(record)
        if record.token == self.token:
            return True
        self._void(offset, record.token)
        return False

    def _damaged(self, damaged: Damaged) -> bool:
        if damaged.token is None:
            self._suspect = self._suspect or damaged
        elif damaged.kind != EPOCH and damaged.token != self.token:
            self._void(damaged.offset, damaged.token)
            if damaged.token not in self._known:
                self._suspect = damaged
        return counts(damaged, self.token)

    def _void(self, offset: int, token: bytes) -> None:
        """A record that is not the present owner's; raises CorruptLog unless it is certain that it is void."""
        if self._undecidable:
            raise self._undecided(offset)
        if self._suspect is None or token in self._known:
            return
        first = self._strays.setdefault(token, offset)
        if first != offset:
            raise self._suspect.error(
                f"behind it, the records at offsets {first} and {offset} have a token that no Epoch had, so it may "
                "have been one, and then they count"
            )

    def _undecided(self, offset: int) -> CorruptLog:
        return CorruptLog(
            f"the log starts at offset {offset}, above its Epoch record, and nothing tells which epoch was in "
            "force there: what counts cannot be decided.  Restore the head of the log or a snapshot that covers it"
        )


def counts(damaged: Damaged, token: bytes | None) -> bool:
    """Whether bytes that are no readable record matter while ``token`` is in force: see the module.

    True: the engine is to be told, be it only for the list.  False: void, and nobody's concern.  Raises CorruptLog
    where nobody may go on.
    """
    if damaged.token is None:
        if token is None or token not in damaged.data:
            return True
        raise damaged.error(
            "the token in force is in it, so the owner wrote it, but not which command it was for: its decision is lost"
        )
    if damaged.kind == EPOCH:
        raise damaged.error("an Epoch that cannot be read leaves open whose records count behind it")
    if damaged.token != token:
        return False
    if damaged.of_a_command:
        return True
    if damaged.kind == SNAPSHOT and damaged.schema is not None and damaged.schema <= SCHEMA:
        return True
    raise damaged.error("its owner wrote it, so what it decided must not be passed over")
