"""Reads the expressions of definitions: which inputs they use, and what of them is left to CEL.

The language is CEL and its meaning is CEL's, but not all of it is evaluated by the CEL library.  The library copies
every variable it is given on every evaluation (5 µs for a small payload, 0.5 ms for a hundred items) and its ``map``
and ``filter`` take quadratic time (3.5 s for 10,000 elements), so handing it whole payloads would make both the
common case slow and the worst case unbounded.  Three parts of the language are therefore cut out of the text and
evaluated by `expressions`:

    path    ``payload.items[0].sku``                 a look-up
    test    ``has(payload.coupon)``                  a look-up that asks
    macro   ``payload.items.all(i, i.quantity > 0)`` a loop over a smaller expression of the same kind

Each cut leaves a *hole*, a variable ``__0``, ``__1`` … in the text, and what remains (operators, functions, literals)
is CEL's: ``payload.amount > 1000 && payload.items.all(…)`` becomes ``__0 > 1000 && __1``.  A part that cannot be had
(a missing field) leaves its variable undefined, which CEL treats as any error: ``true || __1`` is true all the same.

Only text that the CEL compiler has accepted comes here, so this reader need not know operators or their precedence:
cuts are whole member expressions, and everything between them is copied.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from msgspec import Struct

DEPTH_MAX: Final = 32  # of brackets; CEL's own parser gives up at 96 and recurses natively

TYPES: Final = frozenset({"bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"})
"""Names of types, for ``type(x) == int``."""

FUNCTIONS: Final = frozenset(
    {"bytes", "double", "duration", "dyn", "has", "int", "size", "string", "timestamp", "type", "uint"}
)
METHODS: Final = frozenset({
    "contains", "endsWith", "matches", "size", "startsWith", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear",
    "getFullYear", "getHours", "getMilliseconds", "getMinutes", "getMonth", "getSeconds",
})  # fmt: skip
MACROS: Final = {"all": (2,), "exists": (2,), "exists_one": (2,), "existsOne": (2,), "filter": (2,), "map": (2, 3)}

PATTERN_MAX: Final = 300
_PATTERN_PRICES: Final = ((r"\\[wWpP]", 120), (r"\\[dDsS]", 30), (r"", 2))
"""For each character of a pattern, by the largest Unicode class in it: measured compilation, 2 µs a unit."""
_LITERALS: Final = frozenset({"true", "false", "null", "in"})
_TOKEN = re.compile(
    r"""
    (?P<space> (?:\s | //[^\n]*)+ )
  | (?P<string>
        (?:[rR][bB]?|[bB][rR]) (?: \"{3}.*?\"{3} | '{3}.*?'{3} | "[^"\n]*" | '[^'\n]*' )
      | [bB]? (?: \"{3}(?:\\.|[^\\])*?\"{3} | '{3}(?:\\.|[^\\])*?'{3} | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' )
    )
  | (?P<number> 0[xX][0-9a-fA-F]+[uU]? | (?:\d+\.\d+|\.\d+|\d+)(?:[eE][+-]?\d+)?[uU]? )
  | (?P<name> [A-Za-z_][A-Za-z0-9_]* )
  | (?P<mark> && | \|\| | [=!<>]= | [-+*/%!<>?:.,()\[\]{}] )
    """,
    re.VERBOSE | re.DOTALL,
)
_CLOSING: Final = {"(": ")", "[": "]", "{": "}"}


class Fault(Exception):
    """What is wrong with an expression's text; ``at`` is the character it is found at, from 1 (0: the whole)."""

    def __init__(self, reason: str, at: int = 0) -> None:
        super().__init__(f"at character {at}: {reason}" if at else reason)


class Token(Struct, frozen=True):
    """``kind`` is string, number, name, mark, or end; ``start`` and ``end`` are offsets into the text."""

    kind: str
    text: str
    start: int
    end: int


class Path(Struct, frozen=True):
    """A look-up: ``keys`` are field names (str) and indexes of lists (int)."""

    root: str
    keys: tuple[str | int, ...]
    start: int

    def __str__(self) -> str:
        return spelled(self.root, self.keys)


class Test(Struct, frozen=True):
    """``has(path)``."""

    path: Path


class Macro(Struct, frozen=True):
    """``receiver.name(variable, *bodies)``."""

    name: str
    receiver: Fragment
    variable: str
    bodies: tuple[Fragment, ...]


class Fragment(Struct, frozen=True):
    """CEL text with holes; ``charge`` is what an evaluation costs beyond its inputs, in units of WORK_MAX."""

    text: str
    holes: tuple[tuple[str, Path | Test | Macro], ...]
    charge: int = 4

    @property
    def is_hole(self) -> bool:
        """Nothing is left to CEL."""
        return len(self.holes) == 1 and self.text == self.holes[0][0]


class Parsed(Struct, frozen=True):
    """An expression and the inputs it uses, in the order they are written."""

    fragment: Fragment
    inputs: tuple[Path, ...]


def spelled(root: str, keys: tuple[str | int, ...]) -> str:
    """The path as an author would write it."""
    parts = [root]
    for key in keys:
        plain = isinstance(key, str) and key.isidentifier() and key.isascii()
        parts.append(f".{key}" if plain else f'["{key}"]' if isinstance(key, str) else f"[{key}]")
    return "".join(parts)


def end_of(text: str, start: int) -> int:
    """The offset of the ``}`` that ends the expression that begins at ``start``; raises Fault.

    Braces in strings do not count, and those of maps come in pairs.
    """
    depth = 0
    at = start
    while at < len(text):
        if text[at] == "}" and not depth:
            return at
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        token = _TOKEN.match(text, at)
        at = at + 1 if token is None else token.end()
    raise Fault("a ${ without its }")


def tokens_of(text: str) -> list[Token]:
    """The tokens of an expression; raises Fault at a character that begins none and at brackets that nest too deep.

    Runs before the CEL compiler sees the text: what nests without end must not reach a native parser.
    """
    tokens: list[Token] = []
    at = depth = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise Fault(f"unexpected {text[at]!r}", at + 1)
        assert match.lastgroup is not None
        if match.lastgroup != "space":
            tokens.append(Token(match.lastgroup, match[0], at, match.end()))
            depth += (match[0] in _CLOSING) - (match[0] in (")", "]", "}"))
            if depth > DEPTH_MAX:
                raise Fault(f"brackets nest deeper than {DEPTH_MAX}", at + 1)
        at = match.end()
    tokens.append(Token("end", "", len(text), len(text)))
    return tokens


def parse(text: str, tokens: list[Token], roots: frozenset[str]) -> Parsed:
    """Cuts an expression that CEL accepts into its parts; raises Fault for inputs and functions that do not exist."""
    reader = _Reader(text, tokens, roots)
    fragment = reader.fragment(lambda: reader.here.kind == "end")
    return Parsed(fragment, tuple(reader.inputs))


class _Output:
    """The text of a fragment while it is read; parts are joined by blanks, which CEL ignores."""

    __slots__ = ("charge", "holes", "parts")

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.holes: dict[str, Path | Test | Macro] = {}
        self.charge = 4

    def hole(self, part: Path | Test | Macro) -> str:
        name = f"__{len(self.holes)}"
        self.holes[name] = part
        return name

    def cut(self, start: int) -> Fragment:
        """Takes what was written since ``start`` out again, as a fragment of its own.

        Its holes keep their names; those that it alone uses leave this output's list later, when unused ones are
        dropped.
        """
        parts = self.parts[start:]
        del self.parts[start:]
        return Fragment(" ".join(parts), tuple((part, self.holes[part]) for part in parts if part in self.holes))

    def done(self) -> Fragment:
        used = {part: self.holes[part] for part in self.parts if part in self.holes}
        return Fragment(" ".join(self.parts), tuple(used.items()), self.charge)


class _Reader:
    """One pass over the tokens."""

    def __init__(self, text: str, tokens: list[Token], roots: frozenset[str]) -> None:
        self.text = text
        self.tokens = tokens
        self.roots = roots
        self.variables: list[str] = []
        self.inputs: list[Path] = []
        self.at = 0

    @property
    def here(self) -> Token:
        return self.tokens[self.at]

    def take(self) -> Token:
        token = self.tokens[self.at]
        self.at += 1
        return token

    def follows(self, *texts: str) -> bool:
        """Whether the next tokens are these marks."""
        return all(self._is(self.at + index, text) for index, text in enumerate(texts))

    def _is(self, at: int, text: str) -> bool:
        return at < len(self.tokens) and self.tokens[at].text == text and self.tokens[at].kind != "string"

    def fragment(self, ends: Callable[[], bool]) -> Fragment:
        """Reads up to (not including) the token for which ``ends``."""
        output = _Output()
        self.copy(output, ends)
        return output.done()

    def copy(self, output: _Output, ends: Callable[[], bool]) -> None:
        while not ends():
            if self.here.kind == "end":
                raise Fault("the expression ends too early", self.here.start + 1)
            self.member(output)

    # ------------------------------------------------------------ one primary with what hangs on it: a.b[0].c(…)

    def member(self, output: _Output) -> None:
        start = len(output.parts)
        token = self.here
        if self.follows("."):
            raise Fault("an input has no dot before it", token.start + 1)
        if token.kind == "name" and token.text not in _LITERALS:
            self.named(output)
        elif token.text in _CLOSING and token.kind == "mark":
            self.bracket(output)
        else:
            output.parts.append(self.take().text)
            if token.kind == "mark" or token.text == "in":
                return
        while self.follows(".") or self.follows("["):
            if self.follows("["):
                self.bracket(output)
            elif self._is(self.at + 2, "("):
                self.method(output, start)
            else:
                output.parts += [self.take().text, self.take().text]

    def bracket(self, output: _Output) -> None:
        opening = self.take().text
        closing = _CLOSING[opening]
        output.parts.append(opening)
        self.copy(output, lambda: self.follows(closing))
        output.parts.append(self.take().text)

    def named(self, output: _Output) -> None:
        token = self.here
        if self._is(self.at + 1, "("):
            self.function(output)
        elif token.text in self.variables or token.text in self.roots:
            output.parts.append(output.hole(self.path()))
        elif token.text in TYPES:
            output.parts.append(self.take().text)
        elif self._is(self.at + 1, "{"):
            raise Fault(f"there are no messages here, {token.text}{{…}} cannot be made", token.start + 1)
        else:
            known = ", ".join([*sorted(self.roots), *self.variables])
            raise Fault(f"unknown input {token.text!r}: there is {known}", token.start + 1)

    def path(self) -> Path:
        root = self.take()
        keys: list[str | int] = []
        while True:
            if self.follows(".") and not self._is(self.at + 2, "("):
                self.take()
                keys.append(self.take().text)
            elif self.follows("[") and self._is(self.at + 2, "]"):
                key = _literal(self.tokens[self.at + 1])
                if key is None:
                    break
                keys.append(key)
                self.at += 3
            else:
                break
        path = Path(root.text, tuple(keys), root.start + 1)
        if root.text not in self.variables:
            self.inputs.append(path)
        return path

    def function(self, output: _Output) -> None:
        token = self.take()
        if token.text not in FUNCTIONS:
            raise Fault(f"unknown function {token.text!r}: there is {', '.join(sorted(FUNCTIONS))}", token.start + 1)
        if token.text == "has" and (tested := self.tested()) is not None:
            output.parts.append(output.hole(tested))
            return
        output.parts.append(token.text)
        self.bracket(output)

    def tested(self) -> Test | None:
        """The path inside ``has( … )`` if it is nothing but a path."""
        start, inputs = self.at, len(self.inputs)
        self.take()
        if self.here.text in self.roots or self.here.text in self.variables:
            path = self.path()
            if self.follows(")") and path.keys and self._is(self.at - 2, "."):
                self.take()
                return Test(path)
        self.at = start
        del self.inputs[inputs:]
        return None

    def method(self, output: _Output, start: int) -> None:
        dot, name = self.take(), self.take()
        if name.text in MACROS:
            macro = self.macro(name, output.cut(start))
            output.parts.append(output.hole(macro))
            return
        if name.text not in METHODS:
            known = ", ".join(sorted(METHODS | MACROS.keys()))
            raise Fault(f"unknown method {name.text!r}: there is {known}", name.start + 1)
        if name.text == "matches":
            output.charge += self.pattern()
        output.parts += [dot.text, name.text]
        self.bracket(output)

    def macro(self, name: Token, receiver: Fragment) -> Macro:
        self.take()
        variable = self.take()
        if variable.kind != "name" or not self.follows(","):
            raise Fault(f"{name.text}() takes a variable and an expression: .{name.text}(x, …)", variable.start + 1)
        if variable.text in self.roots or variable.text.startswith("__") or variable.text in _LITERALS | TYPES:
            raise Fault(f"{variable.text!r} cannot be the name of a variable", variable.start + 1)
        self.variables.append(variable.text)
        bodies = []
        while self.follows(","):
            self.take()
            bodies.append(self.fragment(lambda: self.follows(",") or self.follows(")")))
        self.variables.pop()
        self.take()
        if len(bodies) + 1 not in MACROS[name.text]:
            counts = " or ".join(str(count) for count in MACROS[name.text])
            raise Fault(f"{name.text}() takes {counts} arguments", name.start + 1)
        return Macro(name.text, receiver, variable.text, tuple(bodies))

    def pattern(self) -> int:
        """The price of a regular expression, which the library compiles anew on each evaluation.

        So it has to be written out (not come from a payload), and is bounded by its size when counted repetitions are
        unrolled.
        """
        token = self.tokens[self.at + 1]
        if token.kind != "string" or not self._is(self.at + 2, ")"):
            raise Fault("matches() takes a pattern that is written out, as 'text'", token.start + 1)
        if re.search(r"[)*+?}]\{", token.text):
            raise Fault("a pattern may not count the repetitions of a group or of a repetition", token.start + 1)
        counts = re.findall(r"\{(\d*),?(\d*)\}", token.text)
        size = len(token.text) + sum(max(int(low or 0), int(high or 0)) for low, high in counts)
        if size > PATTERN_MAX:
            raise Fault(f"the pattern is larger than {PATTERN_MAX} characters with its repetitions", token.start + 1)
        return size * next(price for classes, price in _PATTERN_PRICES if re.search(classes, token.text))


def _literal(token: Token) -> str | int | None:
    """The key that an index in brackets names, if it is written out plainly."""
    if (
        token.kind == "string"
        and token.text[0] in "\"'"
        and "\\" not in token.text
        and token.text[:3] not in ('"""', "'''")
    ):
        return token.text[1:-1]
    if token.kind == "number" and token.text.isdecimal() and len(token.text) < 10:
        return int(token.text)
    return None
