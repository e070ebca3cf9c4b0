"""How far the view knows one partition of the log; pure.

The view learns from two sides.  From below: all that finished below the *watermark* is there, without a gap.  And from
the ownership that lives: its fold began at ``start`` (a Snapshot's covered offset, or the log's first) and has reached
some place, and all that finished between the two is there as well.  Between the watermark and ``start`` there may be a
hole, which a filler closes from below; once it has, the two are one and the watermark goes with the ownership.

    first        watermark          start               reached
      |-- known -----|---- hole ------|-- known, moving ---|-->

What is needed to read on from the watermark is kept with it: the *resume* offset, below which every command has ended
that had begun below it (so whoever folds from there sees every later end with all of its records), and the Epochs, so
that the token in force is known everywhere below the watermark.

The log may have been put back in time, and then grown again on another way, while the view was not.  Epochs have random
tokens, so the token in force at the watermark tells: if the log has another one there, what the view knows is of
another history (`Diverged`).
"""

from __future__ import annotations

from bisect import bisect_left


class Diverged(Exception):
    """The log has another history than the view has seen."""


Epochs = list[tuple[int, bytes]]


def in_force(epochs: Epochs, offset: int) -> bytes:
    """The token of the last Epoch below ``offset``; empty where there is none, and nothing is valid."""
    at = bisect_left(epochs, offset, key=lambda epoch: epoch[0])
    return epochs[at - 1][1] if at else b""


class _Live:
    """What the ownership that lives has seen."""

    __slots__ = ("epochs", "reached", "resume", "start")

    def __init__(self, start: int, token: bytes) -> None:
        self.start = start
        self.reached = start
        self.resume = start
        self.epochs: Epochs = [(start - 1, token)] if token else []  # at the latest there


class Marks:
    """One partition.  ``identity`` is the token of the log's first Epoch: another one means another log."""

    __slots__ = ("_proof", "epochs", "identity", "live", "resume", "watermark")

    def __init__(self, identity: bytes, watermark: int = 0, resume: int = 0, epochs: Epochs | None = None) -> None:
        self.identity = identity
        self.watermark = watermark
        self.resume = resume
        self.epochs: Epochs = epochs or []
        self.live: _Live | None = None
        self._proof = 0  # where the log must have the token that we have, once somebody has read so far

    # ------------------------------------------------------------ the ownership

    def begin(self, start: int, token: bytes) -> None:
        """An ownership folds the log from ``start``, where ``token`` is in force; raises Diverged."""
        if token and start <= self.watermark and in_force(self.epochs, start) != token:
            raise Diverged
        self.live = _Live(start, token)
        self._proof = self.watermark if start <= self.watermark else 0

    def saw(self, offset: int, token: bytes) -> None:
        """The ownership's fold has passed an Epoch."""
        if self.live is not None:
            self.live.epochs.append((offset, token))

    def reached(self, upto: int, resume: int) -> None:
        """The ownership's fold stands at ``upto``, and the earliest command that is open there began at ``resume``.

        Raises Diverged.
        """
        live = self.live
        if live is None:
            return
        live.reached, live.resume = upto, resume
        if self._proof and upto >= self._proof:
            if in_force(live.epochs, self._proof) != in_force(self.epochs, self._proof):
                raise Diverged
            self._proof = 0
        if not self._proof:
            self._join()

    # ------------------------------------------------------------ the filler

    def restart(self, offset: int, token: bytes, resume: int) -> None:
        """What was below ``offset`` is not in the log any more, or nobody has read it: filling begins there."""
        self.watermark, self.resume, self.epochs = offset, resume, [(offset - 1, token)] if token else []
        self._join()

    def fill(self, epochs: Epochs, upto: int, resume: int) -> None:
        """All that finished below ``upto`` is here; ``epochs`` are those that were passed since the watermark."""
        if upto > self.watermark:
            self.epochs += [epoch for epoch in epochs if epoch[0] >= self.watermark]
            self.watermark, self.resume = upto, resume
        self._join()

    def _join(self) -> None:
        live = self.live
        if live is not None and live.start <= self.watermark < live.reached:
            if live.epochs and live.epochs[-1][0] >= self.watermark:  # seldom: this is asked at each append
                self.epochs += [epoch for epoch in live.epochs if epoch[0] >= self.watermark]
            self.watermark, self.resume = live.reached, live.resume

    # ------------------------------------------------------------ asking

    @property
    def filled(self) -> bool:
        """Whether the ownership that lives knows, with what was known before, the whole log."""
        return self.live is not None and self.live.start <= self.watermark

    def token_at(self, offset: int) -> bytes | None:
        """The token in force at an offset, empty before the first Epoch; None where it is not known."""
        if offset <= self.watermark:
            return in_force(self.epochs, offset)
        if self.live is not None and self.live.start <= offset:
            return in_force(self.live.epochs, offset)
        return None

    def forget_below(self, offset: int) -> None:
        """The log was trimmed: of the Epochs below, the one that is in force there is enough."""
        at = bisect_left(self.epochs, offset, key=lambda epoch: epoch[0])
        del self.epochs[: max(0, at - 1)]
