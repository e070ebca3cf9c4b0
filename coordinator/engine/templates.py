"""Templates: JSON values and texts with ``${…}`` in them, compiled once for a definition.

In a **value** (a body, a result) a string that is exactly one ``${…}`` becomes the expression's value with its type;
in any other string, and in **texts** (headers, paths), strings, numbers and booleans are inserted and everything else
is an error: null in the middle of a text is a mistake far more often than a wish.  ``$${`` stands for a plain ``${``.
Keys of objects are never templates.

In a **path** what is inserted is percent-encoded and stays within its segment (or within the query), whatever it
holds: a payload cannot choose another host, another resource or another query parameter.  It may not be empty, ``.``
or ``..`` as a whole segment either, since ``/orders/${id}`` would then be another resource.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import quote

from coordinator.engine import syntax
from coordinator.engine.expressions import Expression, Scope, compile_expression, kind

Report = Callable[[str, str], None]  # takes a fault: its path, and what is wrong
Render = Callable[[Scope], Any]

_OPENING = re.compile(r"(\$?)\$\{")
_PATH_SAFE: Final = "/?&=:@!$'()*+,;-._~%"


class Template:
    """A compiled template; ``expressions`` are all that it holds, ``static`` tells that there are none."""

    __slots__ = ("expressions", "render")

    def __init__(self, expressions: tuple[Expression, ...], render: Render) -> None:
        self.expressions = expressions
        self.render = render

    @property
    def static(self) -> bool:
        return not self.expressions


def value_template(value: Any, path: str, report: Report) -> Template:
    """Compiles a JSON value in which any string may be a template; faults are reported, each with its path."""
    expressions: list[Expression] = []
    render = _value(value, path, report, expressions)
    return Template(tuple(expressions), _constant(value) if render is None else render)


def text_template(text: str, path: str, report: Report) -> Template:
    """Compiles a text; it renders to a string."""
    return _joined(_pieces(text, path, report), _inserted)


def path_template(text: str, path: str, report: Report) -> Template:
    """Compiles the path of a request, with its query; it renders to a percent-encoded string."""
    pieces = [_encoded(piece) if isinstance(piece, str) else piece for piece in _pieces(text, path, report)]
    literal = "".join(piece if isinstance(piece, str) else "x" for piece in pieces)
    fault = _path_fault(literal) or _start_fault(pieces)
    if fault is not None:
        report(path, fault)
    template = _joined(pieces, lambda each, value: quote(_inserted(each, value), safe=""))
    if template.static:
        return template
    whole = template.render
    last = template.expressions[-1]

    def render(scope: Scope) -> str:
        rendered: str = whole(scope)
        wrong = _path_fault(rendered)
        if wrong is None and "//" in rendered.partition("?")[0] and "//" not in literal.partition("?")[0]:
            wrong = "inserts nothing, or the end of it is missing"
        if wrong is None and rendered.partition("?")[0].endswith("/") and not literal.partition("?")[0].endswith("/"):
            wrong = "inserts nothing at the end of the path"
        if wrong is not None:
            raise last.error(f"the path {rendered} cannot be sent: {wrong}")
        return rendered

    return Template(template.expressions, render)


# ---------------------------------------------------------------- values


def _value(value: Any, path: str, report: Report, found: list[Expression]) -> Render | None:
    """How to render ``value``, or None if it holds no expression and stands for itself."""
    if isinstance(value, str):
        return _string(value, path, report, found)
    if isinstance(value, list):
        items = [_value(item, f"{path}[{index}]", report, found) for index, item in enumerate(value)]
        return _list(value, items) if any(items) else None
    if isinstance(value, dict):
        fields = {key: _value(item, f"{path}{key_path(key)}", report, found) for key, item in value.items()}
        for key in value:
            if isinstance(key, str) and "${" in key:
                report(f"{path}{key_path(key)}", "a key is no template")
        return _dict(value, fields) if any(fields.values()) else None
    return None


def _string(text: str, path: str, report: Report, found: list[Expression]) -> Render | None:
    if "${" not in text:
        return None
    pieces = _pieces(text, path, report)
    if len(pieces) == 1 and isinstance(pieces[0], Expression):
        found.append(pieces[0])
        return pieces[0].value
    template = _joined(pieces, _inserted)
    found += template.expressions
    return template.render


def _list(value: list[Any], items: list[Render | None]) -> Render:
    parts = [render or _constant(item) for item, render in zip(value, items, strict=True)]
    return lambda scope: [part(scope) for part in parts]


def _dict(value: dict[str, Any], fields: dict[str, Render | None]) -> Render:
    changing = [(key, render) for key, render in fields.items() if render is not None]

    def build(scope: Scope) -> dict[str, Any]:
        built = value.copy()  # keeps the order of the author's keys
        for key, render in changing:
            built[key] = render(scope)
        return built

    return build


def _constant(value: Any) -> Render:
    return lambda scope: value


# ---------------------------------------------------------------- texts


def _pieces(text: str, path: str, report: Report) -> list[str | Expression]:
    """The literal parts and the expressions of a text; a fault is reported, and leaves its expression out."""
    pieces: list[str | Expression] = []
    try:
        for piece, at in _cuts(text):
            if at is None:
                pieces.append(piece)
            else:
                pieces.append(_expression(piece, at, path))
    except syntax.Fault as fault:
        report(path, str(fault))
    return pieces


def _cuts(text: str) -> Iterator[tuple[str, int | None]]:
    """(literal, None) and (expression, its offset), in order; an unescaped literal is one piece with its neighbours."""
    literal, at = "", 0
    while (opening := _OPENING.search(text, at)) is not None:
        literal += text[at : opening.start()]
        at = opening.end()
        if opening[1]:
            literal += "${"
            continue
        if literal:
            yield literal, None
            literal = ""
        try:
            end = syntax.end_of(text, at)
        except syntax.Fault as fault:
            raise syntax.Fault(f"{fault} (write $${{ for a plain ${{)", opening.start() + 1) from None
        yield text[at:end], at
        at = end + 1
    if literal + text[at:] or not text:
        yield literal + text[at:], None


def _expression(source: str, at: int, path: str) -> Expression:
    try:
        return compile_expression(source, path)
    except syntax.Fault as fault:
        raise syntax.Fault(f"bad expression ${{{source}}}: {fault}") from None


def _joined(pieces: list[str | Expression], insert: Callable[[Expression, Any], str]) -> Template:
    expressions = tuple(piece for piece in pieces if isinstance(piece, Expression))
    if not expressions:
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        return Template((), _constant(text))

    def render(scope: Scope) -> str:
        return "".join([piece if isinstance(piece, str) else insert(piece, piece.value(scope)) for piece in pieces])

    return Template(expressions, render)


def _inserted(expression: Expression, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    raise expression.error(f"{kind(value)} cannot be inserted into a text")


# ---------------------------------------------------------------- paths


def _encoded(literal: str) -> str:
    return quote(literal, safe=_PATH_SAFE) if "#" not in literal and "\\" not in literal else literal


def _start_fault(pieces: list[str | Expression]) -> str | None:
    """An expression may not decide how a path begins."""
    first = pieces[0] if pieces else "/"
    return None if isinstance(first, str) else "a path starts with /, not with an expression"


def _path_fault(path: str) -> str | None:
    where = path.partition("?")[0]
    if not path.startswith("/"):
        return "a path starts with / (services are named, their addresses are configured)"
    if path.startswith("//"):
        return "a path does not start with // (services are named, their addresses are configured)"
    if "#" in path or "\\" in path:
        return "a path has no # and no \\"
    if re.search(r"%(?![0-9A-Fa-f]{2})", path):
        return "a % is followed by two hexadecimal digits"
    if any(segment.replace("%2e", ".").replace("%2E", ".") in (".", "..") for segment in where.split("/")):
        return "no segment of a path is . or .."
    return None


def key_path(key: Any) -> str:
    """How a key is appended to a path: ``.name`` or ``["any text"]``."""
    return (
        f".{key}"
        if isinstance(key, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", key)
        else f"[{json.dumps(str(key))}]"
    )
