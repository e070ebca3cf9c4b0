"""Exceptions of a command's code: what they mean for the command, and what of them a record may hold.

An exception means what the *nearest* of our own in its chain of explicit causes means: ``raise MyError(…) from
step_failed`` fails the command as the step's failure would, ``raise X from Delayed()`` asks to be run again.  Implicit
context does not count: a NameError inside ``except StepFailed:`` is a mistake, not a refusal.

The texts of exceptions are their authors'; a record must be readable by every later instance.  So what goes into a
record is cut to a length and freed of what UTF-8 cannot hold.
"""

from __future__ import annotations

import traceback as traceback_module
from typing import Final

from msgspec import Raw

from coordinator.model.records import NIL, Failure
from coordinator.saga import Blocked, Delayed
from coordinator.saga import told_by as told_by

TEXT_MAX: Final = 2_000  # characters of a message
CODE_MAX: Final = 100
NAME_MAX: Final = 200  # of a step
TRACEBACK_MAX: Final = 8_000  # characters, the last ones: the cause is at the end


def again(error: BaseException | None) -> bool:
    """Whether it asks for another run later: the only errors that another run over the same records may not raise."""
    return isinstance(told_by(error), (Delayed, Blocked))


def printable(text: object, longest: int = TEXT_MAX) -> str:
    """``text`` as a record may hold it."""
    return str(text)[:longest].encode("utf-8", "backslashreplace").decode()


def recordable(failure: Failure) -> Failure:
    """A failure, which exec's author may have made with whatever in it, as a record may hold it."""
    return Failure(
        printable(failure.code, CODE_MAX),
        printable(failure.message),
        failure.status if isinstance(failure.status, int) else None,
        failure.body if isinstance(failure.body, Raw) else NIL,
        None if failure.traceback is None else printable(failure.traceback, TRACEBACK_MAX),
        None if failure.step is None else printable(failure.step, NAME_MAX),
    )


def message_of(error: BaseException) -> str:
    """The exception's own text; its author's ``__str__`` may do anything."""
    try:
        return printable(error)
    except Exception:
        return "(its text cannot be shown)"


def described(error: BaseException) -> str:
    """``ValueError: …``."""
    return f"{printable(type(error).__name__)}: {message_of(error)}"


def traceback_of(error: BaseException, *hidden: str) -> str:
    """The traceback without the leading frames of the ``hidden`` modules."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__") in hidden:
        frames = frames.tb_next
    entries = traceback_module.format_exception(type(error), error, frames)
    lines = [entry if len(entry) <= TEXT_MAX else entry[:TEXT_MAX] + "…\n" for entry in entries]
    return printable("".join(lines)[-TRACEBACK_MAX:], TRACEBACK_MAX)
