"""A journey: what one caller waits for, wherever the command's partition goes meanwhile.

Every submission that is watched, every watch and every wait for a command's end is one.  It asks the owner of the
command's partition, here or over a link, and passes on what it is told.  When the owner is lost (its process died, it
handed the partition over, its log failed it) the journey waits a little and asks again with the same id, wherever the
partition is now.  The caller notices a pause, and nothing else:

    not told ``accepted`` yet   the same submission again: it attaches to what it left behind, or is admitted anew
    told ``accepted``           a watch from the last position told on: the command is durable, wherever it is
    a watch                     the same

so nothing is told twice and no step is left out.  A refusal that is not about ownership (a full instance, a suspended
service, a conflict of ids) ends the journey: it would be the same anywhere, or is the caller's to judge.

*It never hangs.*  What is confirmed waits for as long as its caller does.  What is not ends with the last refusal,
which is retryable: after `routes.NOBODY_S` if nobody was there to be asked at all, after `CONFIRM_S` if somebody was
asked, and may have done it, and fell silent.

No task, no future: an object a submission, called by the owner's watchers.
"""

from __future__ import annotations

from asyncio import TimerHandle
from math import inf
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from coordinator.errors import CoordinatorError, Internal, LimitReached, NoOwner, Stopping
from coordinator.front.routes import MOVED, Routes
from coordinator.model.command import Submission
from coordinator.model.ids import CommandId, parse_position
from coordinator.transport.base import Event, Unwatch, Want, Watcher, caller

if TYPE_CHECKING:
    from coordinator.cluster.link import Link

CONFIRM_S: Final = 15.0
"""How long a submission that an owner was asked for may stay without a word that it is durable."""


class Journey:
    """One caller's way to one command; the instance itself is the watcher that the owner is given.

    ``submission`` is None for a watch, which goes on after the position ``after``.  ``within_ms`` is the submission's
    ``admit_within``, which the owner keeps.
    """

    __slots__ = (
        "_after",
        "_again",
        "_asked",
        "_began",
        "_confirmed",
        "_deadline",
        "_id",
        "_link",
        "_meta",
        "_over",
        "_partition",
        "_routes",
        "_submission",
        "_timer",
        "_unwatch",
        "_want",
        "_watcher",
        "_within_s",
    )

    def __init__(
        self,
        routes: Routes,
        partition: int,
        id: CommandId,
        watcher: Watcher,
        want: Want,
        submission: Submission | None,
        *,
        after: str | None = None,
        within_ms: int = 0,
    ) -> None:
        self._routes = routes
        self._partition = partition
        self._id = id
        self._watcher = watcher
        self._want = want
        self._submission = submission
        self._after = after
        self._within_s = within_ms / 1000
        self._began = routes.loop.time()
        self._confirmed = after is not None
        self._asked = False  # an owner was given it, and may have done it
        self._again = False  # the present owner is not the first to be asked
        self._over = False
        self._link: Link | None = None
        self._unwatch: Unwatch | None = None
        self._timer: TimerHandle | None = None
        asker = caller.get()
        self._meta = None if asker is None else asker.meta
        self._deadline = None if asker is None else asker.deadline

    # ------------------------------------------------------------ the caller's side

    def begin(self) -> None:
        """Asks for the first time; raises a refusal that waiting does not mend."""
        try:
            self._ask()
        except CoordinatorError as error:
            self._idle()
            if self._left(error) <= 0:
                self._over = True
                raise
            self._wait(error)

    def leave(self) -> None:
        """The caller waits no more (its Unwatch); the command runs on."""
        self._end()
        if self._unwatch is not None:
            unwatch, self._unwatch = self._unwatch, None
            unwatch()

    # ------------------------------------------------------------ asking

    def _ask(self) -> None:
        """Gives it to whoever acts for the partition; raises the refusal."""
        link = self._routes.place(self._partition)
        local = self._routes.local
        if link is not None:
            self._ask_there(link)
        elif self._submission is None or self._confirmed:
            self._unwatch = local.watch(self._id, self, self._after)
        else:
            lane = self._routes.lanes[self._partition]
            self._unwatch = local.submit_as(self._id, lane, self._what(self._submission), self, self._want)
        self._asked = True

    def _ask_there(self, link: Link) -> None:
        self._link = link
        self._routes.away(self._partition, self)
        if self._submission is None or self._confirmed:
            self._unwatch = link.watch(self._id, self, self._after)
            return
        left_ms = None if self._deadline is None else max(0, round((self._deadline - self._routes.loop.time()) * 1000))
        submission = self._what(self._submission)
        if submission.id is None:
            submission = replace(submission, id=self._id)
        self._unwatch = link.submit(submission, self, self._want, deadline_ms=left_ms, meta=self._meta)
        self._routes.expect(self, CONFIRM_S + self._within_s)

    def _what(self, submission: Submission) -> Submission:
        """The submission, with what is left of its patience for a slot.

        An id of our making is new to everybody but once: whoever was asked may have brought the command to its end.
        """
        if not self._again:
            return submission
        if submission.id is None:
            submission = replace(submission, id=self._id)
        if not self._within_s:
            return submission
        left_ms = round((self._began + self._within_s - self._routes.loop.time()) * 1000)
        return replace(submission, admit_within=f"{left_ms}ms" if left_ms > 0 else None)

    def _ask_again(self) -> None:
        if self._over:  # its caller left while it was about to be woken
            return
        self._idle()
        self._again = True
        try:
            self._ask()
        except CoordinatorError as error:
            self._refused(error)

    # ------------------------------------------------------------ the owner's side

    def __call__(self, event: Event) -> None:
        """The owner tells something."""
        if self._over:
            return
        kind = event.kind
        if kind == "error":
            self._unwatch = None
            self._refused(event.error or Internal())
            return
        if self._again and self._known(event):
            return
        if event.position:
            self._after = event.position
        if not self._confirmed:
            self._confirmed = True
            self._routes.confirmed(self)
        if kind == "final" or kind == self._want == "accepted":
            self._end()
        elif kind != "accepted" and self._want != "events":
            return
        self._watcher(event)

    def _known(self, event: Event) -> bool:
        """Whether a former owner has told it."""
        if event.kind == "accepted":
            return self._confirmed
        if event.kind != "step" or self._after is None:
            return False
        return parse_position(event.position) <= parse_position(self._after)

    def _refused(self, error: CoordinatorError) -> None:
        self._idle()
        if self._left(error) > 0:
            self._wait(error)
        else:
            self._fail(error)

    def _left(self, error: CoordinatorError) -> float:
        """How long (s) it is worth going on after this refusal."""
        if self._confirmed and isinstance(error, LimitReached):
            return inf  # too many ask at once, after a take-over: none of them is to lose its command for that
        if not isinstance(error, MOVED):
            return 0.0
        if self._confirmed:
            return inf
        patience = self._routes.patience_s(error)
        if not self._asked and isinstance(error, Stopping):
            return 0.0  # this very instance stops: new work is to go elsewhere
        if patience and self._asked:
            patience = CONFIRM_S + self._within_s
        return self._began + patience - self._routes.loop.time() if patience else 0.0

    def _wait(self, error: CoordinatorError) -> None:
        routes = self._routes
        delay_s = min(self._left(error), routes.delay_s(self._partition, error))
        self._timer = routes.loop.call_later(delay_s, self._ask_again)
        routes.wait(self._partition, self._ask_again)

    def moved(self, owner: Link | None) -> None:
        """The partition is another's now than that of who was asked: who was asked may not know, or be a zombie."""
        if owner is self._link or self._over:
            return
        if self._unwatch is not None:
            unwatch, self._unwatch = self._unwatch, None
            unwatch()
        self._ask_again()

    def silent(self) -> None:
        """An owner was asked, and has neither confirmed nor refused for too long."""
        if self._unwatch is not None:
            unwatch, self._unwatch = self._unwatch, None
            unwatch()
        asked = self._link.member.instance if self._link is not None else "the owner"
        self._fail(
            NoOwner(
                f"{asked} did not confirm within {CONFIRM_S + self._within_s:g} s; it may have been accepted: "
                "ask again with the same id",
                retry_after_ms=500,
            )
        )

    # ------------------------------------------------------------ ends

    def _fail(self, error: CoordinatorError) -> None:
        self._end()
        self._watcher(Event("error", self._id, error=error))

    def _idle(self) -> None:
        """Nobody is asked at present."""
        routes = self._routes
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            routes.wait_no_more(self._partition, self._ask_again)
        if self._link is not None:
            self._link = None
            routes.back(self._partition, self)
            routes.confirmed(self)

    def _end(self) -> None:
        self._over = True
        self._idle()
