"""Evaluates the expressions of definitions: CEL, with errors that have one meaning and work that has a bound.

``when`` and ``${…}`` hold expressions over ``payload``, ``steps``, ``command`` and ``callback``.  `syntax` cuts each
into look-ups, tests and loops, evaluated here, and operators and functions, evaluated by the CEL library.
docs/definitions.md is the reference; the rules that this module keeps are:

- **A missing field or a wrong type is an error**, wherever it decides the value.  It fails the step (code
  ``expression``); ``has()`` asks first.  ``||`` and ``&&`` forgive it where the other side decides, as CEL has it.
- **Numbers** of JSON are CEL's int (whole, 64 bits) or double.  Comparison works across the two, arithmetic does not
  (``double(payload.amount) * 1.5``).  A whole number beyond 64 bits can be passed on by a plain path but not
  calculated with.
- **Results are JSON.**  Timestamps and durations become strings as CEL's ``string()`` spells them in JSON
  (``2024-01-01T00:00:00Z``, ``90s``), bytes base64; maps that CEL has built have their keys in order, so that the
  same request is the same bytes on every retry.
- **Work is bounded.**  One evaluation may spend WORK_MAX units: one for each value handed to CEL, for each 16
  characters of text and for a few steps of a loop: well below 0.2 s.  What would cost more is an error like any
  other.  A plain path hands nothing to CEL, so it may name a value of any size.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any, Final

from coordinator.engine import syntax
from coordinator.engine.cel_library import EvaluationError, program
from coordinator.engine.syntax import Fault, Fragment, Macro, Path, Test

LENGTH_MAX: Final = 2_000
WORK_MAX: Final = 50_000
DEPTH_MAX: Final = 100  # of values that go to CEL, which converts them by native recursion
ROOTS: Final = frozenset({"callback", "command", "payload", "steps"})
COMMAND_FIELDS: Final = ("attributes", "id", "type")

Scope = Mapping[str, Any]  # the value of each root, and of the variables of loops around


class ExpressionError(Exception):
    """An expression has no value here.

    ``path`` is its place in the definition (``$.steps[1].when``), ``expression`` its text, ``reason`` a sentence.
    """

    def __init__(self, path: str, expression: str, reason: str) -> None:
        super().__init__(f"{path}: {_short(expression)}: {reason}")
        self.path = path
        self.expression = expression
        self.reason = reason


class _NoValue(Exception):
    """Why a part of an expression has no value."""


class _Exhausted(_NoValue):
    """The whole expression costs too much: not forgiven by ``||``."""


class _Budget:
    """What is left of WORK_MAX in one evaluation."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = WORK_MAX

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise _Exhausted("works through more data than an expression may; a plain path may name data of any size")


_Part = Callable[[Scope, _Budget], Any]


class Expression:
    """One compiled expression; ``inputs`` are the look-ups that it makes, loops' variables aside."""

    __slots__ = ("_evaluate", "inputs", "path", "source")

    def __init__(self, source: str, path: str, inputs: tuple[Path, ...], evaluate: _Part) -> None:
        self.source = source
        self.path = path
        self.inputs = inputs
        self._evaluate = evaluate

    def value(self, scope: Scope) -> Any:
        """The value as JSON types; raises ExpressionError."""
        try:
            return self._evaluate(scope, _Budget())
        except _NoValue as error:
            raise self.error(str(error)) from None

    def holds(self, scope: Scope) -> bool:
        """The value of a condition; anything but true and false is an error."""
        value = self.value(scope)
        if value is True or value is False:
            return value
        raise self.error(f"a condition is true or false, not {kind(value)}")

    def error(self, reason: str) -> ExpressionError:
        return ExpressionError(self.path, self.source, reason)


def compile_expression(source: str, path: str) -> Expression:
    """Compiles ``source``, found at ``path`` of a definition; raises `syntax.Fault` with what is wrong and where."""
    if len(source) > LENGTH_MAX:
        raise Fault(f"longer than {LENGTH_MAX} characters")
    if not source.strip():
        raise Fault("the expression is empty")
    tokens = syntax.tokens_of(source)
    program(source)  # whose messages are about the author's own text
    parsed = syntax.parse(source, tokens, ROOTS)
    part = _fragment(parsed.fragment)
    plain_already = parsed.fragment.is_hole and not isinstance(parsed.fragment.holes[0][1], Macro)
    return Expression(source, path, parsed.inputs, part if plain_already else _json_result(part))


def kind(value: Any) -> str:
    """What a value is called in messages."""
    for types, name in _KINDS:
        if isinstance(value, types):
            return name
    return "null" if value is None else type(value).__name__


_KINDS: Final[list[tuple[type | tuple[type, ...], str]]] = [
    (bool, "a boolean"),
    ((int, float), "a number"),
    (str, "a string"),
    (list, "a list"),
    (dict, "a map"),
    (bytes, "bytes"),
    (datetime, "a timestamp"),
    (timedelta, "a duration"),
]


# ---------------------------------------------------------------- parts: each is a function of scope and budget


def _fragment(fragment: Fragment) -> _Part:
    holes = [(name, _PARTS[type(part)](part)) for name, part in fragment.holes]
    if fragment.is_hole:
        return holes[0][1]
    execute = program(fragment.text)
    charge = fragment.charge

    def run(scope: Scope, budget: _Budget) -> Any:
        budget.spend(charge)
        context: dict[str, Any] = {}
        missing: dict[str, _NoValue] = {}
        for name, part in holes:
            try:
                value = part(scope, budget)
                if type(value) in _SCALARS:
                    budget.spend(1)
                else:
                    weigh(value, budget.spend)
                context[name] = value
            except _Exhausted:
                raise
            except _NoValue as error:
                missing[name] = error
        try:
            result = execute(context)
        except EvaluationError as error:
            undefined = missing.get(error.undefined)
            raise undefined or _NoValue(str(error)) from None
        if type(result) not in _SCALARS:
            weigh(result, budget.spend)
        return result

    return run


def _path(path: Path) -> _Part:
    root, keys = path.root, path.keys
    if all(isinstance(key, str) for key in keys):

        def fields(scope: Scope, budget: _Budget) -> Any:
            value = scope[root]
            try:
                for key in keys:
                    value = value[key]
            except (KeyError, TypeError, IndexError):
                raise _NoValue(_why(scope, path)) from None
            return value

        return fields

    def look(scope: Scope, budget: _Budget) -> Any:
        value = scope[root]
        for key in keys:
            if not isinstance(value, dict if isinstance(key, str) else list):
                raise _NoValue(_why(scope, path))
            try:
                value = value[key]  # type: ignore[index]  # as checked just now
            except (KeyError, IndexError):
                raise _NoValue(_why(scope, path)) from None
        return value

    return look


def _test(test: Test) -> _Part:
    *outer, field = test.path.keys
    above = _path(Path(test.path.root, tuple(outer), test.path.start))

    def has(scope: Scope, budget: _Budget) -> Any:
        value = above(scope, budget)
        if type(value) is not dict:
            raise _NoValue(f"has({test.path}): {syntax.spelled(test.path.root, tuple(outer))} is {kind(value)}, no map")
        return field in value

    return has


def _macro(macro: Macro) -> _Part:
    receiver = _fragment(macro.receiver)
    bodies = [_fragment(body) for body in macro.bodies]
    loop, name, variable = _LOOPS[macro.name], macro.name, macro.variable

    def run(scope: Scope, budget: _Budget) -> Any:
        items = receiver(scope, budget)
        if type(items) is dict:
            items = sorted(items, key=str)  # CEL leaves the order open; a replay may not
        elif type(items) is not list:
            raise _NoValue(f"{name}() needs a list or a map, not {kind(items)}")
        return loop(items, _Rounds(dict(scope), variable, bodies, budget))

    return run


_PARTS: Final[dict[type, Callable[[Any], _Part]]] = {Path: _path, Test: _test, Macro: _macro}


class _Rounds:
    """The rounds of one loop: evaluates a body with the variable bound to an element."""

    __slots__ = ("bodies", "budget", "scope", "variable")

    def __init__(self, scope: dict[str, Any], variable: str, bodies: list[_Part], budget: _Budget) -> None:
        self.scope = scope
        self.variable = variable
        self.bodies = bodies
        self.budget = budget

    def value(self, item: Any) -> Any:
        """The last body's value."""
        self.budget.spend(1)
        self.scope[self.variable] = item
        value = self.bodies[-1](self.scope, self.budget)
        weigh(value, self.budget.spend)
        return value

    def holds(self, item: Any) -> bool:
        """The first body's value, which has to be a boolean."""
        self.budget.spend(1)
        self.scope[self.variable] = item
        value = self.bodies[0](self.scope, self.budget)
        if value is True or value is False:
            return value
        raise _NoValue(f"a condition is true or false, not {kind(value)}")


def _until(items: list[Any], rounds: _Rounds, decisive: bool) -> bool:
    """Whether any round has the decisive value; only if none has it does an error count (CEL's all and exists)."""
    error: _NoValue | None = None
    for item in items:
        try:
            if rounds.holds(item) is decisive:
                return True
        except _Exhausted:
            raise
        except _NoValue as found:
            error = error or found
    if error is not None:
        raise error
    return False


def _map(items: list[Any], rounds: _Rounds) -> list[Any]:
    if len(rounds.bodies) == 1:
        return [rounds.value(item) for item in items]
    return [rounds.value(item) for item in items if rounds.holds(item)]


_LOOPS: Final[dict[str, Callable[[list[Any], _Rounds], Any]]] = {
    "all": lambda items, rounds: not _until(items, rounds, decisive=False),
    "exists": lambda items, rounds: _until(items, rounds, decisive=True),
    "exists_one": lambda items, rounds: sum(rounds.holds(item) for item in items) == 1,
    "existsOne": lambda items, rounds: sum(rounds.holds(item) for item in items) == 1,
    "filter": lambda items, rounds: [item for item in items if rounds.holds(item)],
    "map": _map,
}


# ---------------------------------------------------------------- why there is no value, and what a value costs


def _why(scope: Scope, path: Path) -> str:
    """Why a look-up failed: found by walking it once more."""
    value = scope[path.root]
    for index, key in enumerate(path.keys):
        where = syntax.spelled(path.root, path.keys[:index])
        if isinstance(key, str):
            if type(value) is not dict:
                return f"{where} is {kind(value)} and has no field {key}"
            if key not in value:
                return f"{where} has no field {key}"
        else:
            if type(value) is not list:
                return f"{where} is {kind(value)} and has no element {key}"
            if key >= len(value):
                return f"{where} has no element {key}, it has {len(value)}"
        value = value[key]
    raise AssertionError(f"{path} has a value")


_SCALARS: Final = frozenset({bool, float, type(None)})
_I64_MIN, _U64_MAX = -(2**63), 2**64 - 1


def weigh(value: Any, spend: Callable[[int], None]) -> None:
    """Spends what it costs to carry a value to CEL or back; refuses what CEL would bend (huge whole numbers)."""
    level = [value]
    for _ in range(DEPTH_MAX):
        below: list[Any] = []
        spend(len(level))
        for each in level:
            if isinstance(each, str | bytes):
                spend(len(each) >> 4)
            elif isinstance(each, list):
                below += each
            elif isinstance(each, dict):
                spend(sum(len(key) >> 4 if isinstance(key, str) else 0 for key in each))
                below += each.values()
            elif isinstance(each, int) and not _I64_MIN <= each <= _U64_MAX:
                raise _NoValue("a whole number beyond 64 bits cannot be calculated with")
        if not below:
            return
        level = below
    raise _NoValue(f"the value nests deeper than {DEPTH_MAX} levels")


# ---------------------------------------------------------------- from CEL to JSON


def _json_result(part: _Part) -> _Part:
    return lambda scope, budget: plain(part(scope, budget))


def plain(value: Any) -> Any:
    """A result of CEL as JSON types; the result is finite, see `weigh`."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if isfinite(value):
            return value
        raise _NoValue("the result is no finite number")
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(value[at]) for key, at in sorted((_key(at), at) for at in value)}
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return _seconds(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise _NoValue(f"the result is no JSON: {type(value).__name__}")


def _key(key: Any) -> str:
    return key if isinstance(key, str) else str(key).lower()  # 1 → "1", true → "true"


def _seconds(value: timedelta) -> str:
    """Protobuf's JSON spelling of a duration: ``90s``, ``-1.5s``."""
    micros = value // timedelta(microseconds=1)
    whole, part = divmod(abs(micros), 1_000_000)
    fraction = f".{part:06d}".rstrip("0") if part else ""
    return f"{'-' if micros < 0 else ''}{whole}{fraction}s"


def _short(expression: str) -> str:
    return expression if len(expression) <= 120 else expression[:119] + "…"
