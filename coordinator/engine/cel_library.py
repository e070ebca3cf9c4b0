"""The edge to the CEL library: compiles and evaluates, and says what went wrong in the words of an author's expression.

Nothing else imports the library.  Importing it the plain way would also import its interactive shell (and with it two
terminal libraries: 0.2 s and 10 MB of every start), so the shell is left out.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from coordinator.engine.syntax import Fault


def _without_shell() -> None:
    name = "cel.cli"
    absent = name not in sys.modules
    if absent:
        sys.modules[name] = ModuleType(name)
    try:
        import cel  # noqa: F401
    finally:
        if absent:
            del sys.modules[name]


_without_shell()
import cel  # noqa: E402

_MIXED: Final = (
    "types that do not go together (a whole number with a fraction needs double() or int(), a condition is a boolean)"
)


class EvaluationError(Exception):
    """A program has no value; ``undefined`` names the variable or function that is not there, if that is why."""

    def __init__(self, reason: str, undefined: str = "") -> None:
        super().__init__(reason)
        self.undefined = undefined


def program(text: str) -> Callable[[dict[str, Any]], Any]:
    """Compiles CEL text to a function of its variables, which raises EvaluationError; raises Fault."""
    try:
        execute = cel.compile(text).execute
    except Exception as error:
        raise _grammar(str(error), text) from None
    except BaseException as error:
        raise Fault(_panic(error)) from None

    def run(variables: dict[str, Any]) -> Any:
        try:
            return execute(variables)
        except Exception as error:
            raise _evaluation(error) from None
        except BaseException as error:
            raise EvaluationError(_panic(error)) from None

    return run


def _panic(error: BaseException) -> str:
    """What to say of a failed assertion of the library (in Rust, so it is no Exception); anything else goes on up."""
    if type(error).__name__ != "PanicException":
        raise error
    return "cannot be evaluated"


_GRAMMAR = re.compile(r"ERROR: <input>:(\d+):(\d+): (?:Syntax error: )?(.*)")


def _grammar(message: str, text: str) -> Fault:
    """The compiler's first complaint."""
    found = _GRAMMAR.search(message)
    if found is None:
        return Fault("is no CEL expression")
    lines = text.splitlines(keepends=True)
    at = sum(len(line) for line in lines[: int(found[1]) - 1]) + int(found[2])
    reason = re.sub(r" (?:expecting|at input) .*", "", found[3])
    if "<EOF>" in found[3].split("expecting")[0] or at > len(text):
        reason = "the expression ends too early"
    return Fault(reason, at)


_UNDEFINED = re.compile(r"Undefined variable or function: '(\w+)'")


def _evaluation(error: Exception) -> EvaluationError:
    text = str(error)
    undefined = _UNDEFINED.match(text)
    if undefined is not None:
        return EvaluationError(f"{undefined[1]}() is not defined for these arguments", undefined[1])
    if isinstance(error, KeyError):
        return EvaluationError(f"there is no field {text}")
    if isinstance(error, ZeroDivisionError):
        return EvaluationError("division by zero")
    if text.startswith(("No such overload", "Unsupported operation")):
        return EvaluationError(_MIXED)
    return EvaluationError(text.split(". ", 1)[0].split("\n", 1)[0][:200] or type(error).__name__)
