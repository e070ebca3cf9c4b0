"""A definition as its author wrote it (API.md, Definition), checked for everything but its expressions.

`parse` reads the JSON and reports *all* faults, each with its path, so that an author mends a definition in one go.
What it returns is data: templates and conditions are still text; `engine.plan` compiles them and checks what they
refer to.

Every step has its ``after`` spelled out here, in particular the default (the step listed before it), and
``ancestors`` tells which steps have certainly ended when it starts: the only ones that its expressions may use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from coordinator.model.durations import parse_duration

STEPS_MAX: Final = 200
DEPTH_MAX: Final = 64
ATTEMPTS_MAX: Final = 1_000
VERSION_MAX: Final = 2**31 - 1
NAME_RULE: Final = "a name has 1 to 64 letters, digits, _ or - and starts with a letter or _"
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_GRPC_METHOD = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*/[A-Za-z_][A-Za-z0-9_]*")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")
_STATUS = re.compile(r"[1-5](?:\d\d|xx)|[A-Z][A-Z_]{1,40}")
_OURS: Final = frozenset(
    {
        "connection",
        "content-length",
        "coordinator-fence",
        "expect",
        "host",
        "idempotency-key",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

Report = Callable[[str, str], None]
Services = Mapping[str, str] | Collection[str] | None


class RetryRule(Struct, frozen=True, kw_only=True):
    """Fields as `saga.Retry`; a field that is None was not given."""

    attempts: int | None = None
    backoff: str | None = None
    first: str | None = None
    max: str | None = None
    jitter: float | None = None


class RequestSource(Struct, frozen=True, kw_only=True):
    """What a step or an undo sends; ``path``, ``body`` and ``headers`` are templates.  ``at`` is its place in the
    definition."""

    at: str
    service: str
    method: str = "POST"
    path: str = "/"
    body: Any = None
    headers: dict[str, str] = {}
    answers: dict[str, str] = {}
    retry: RetryRule | None = None
    timeout: str | None = None


class Step(Struct, frozen=True, kw_only=True):
    """One step; ``after`` are the steps it waits for, ``ancestors`` those and all that they wait for."""

    at: str
    name: str
    request: RequestSource
    undo: RequestSource | None = None
    after: tuple[str, ...] = ()
    ancestors: frozenset[str] = frozenset()
    when: str | None = None
    give_up_after: str | None = None

    @property
    def service(self) -> str:
        return self.request.service


class Definition(Struct, frozen=True, kw_only=True):
    """A definition; ``result`` is a template, ``content`` what was sent."""

    name: str
    version: int
    steps: tuple[Step, ...]
    result: Any = None
    content: Any = None

    @property
    def services(self) -> frozenset[str]:
        """All services that it calls, for undos too."""
        return frozenset(
            request.service for step in self.steps for request in (step.request, step.undo) if request is not None
        )

    @property
    def linear(self) -> bool:
        """Whether the steps run one after the other, as they are listed."""
        names = [(step.name,) for step in self.steps]
        return [step.after for step in self.steps] == [(), *names[:-1]]


def parse(content: Any, services: Services, report: Report) -> Definition | None:
    """Reads a definition; each fault goes to ``report(path, fault)``.

    ``services`` are the configured ones, by name to ``http`` or ``grpc`` (a plain collection of names leaves the kind
    open; None accepts any name).  Returns None if there were faults that leave nothing to go on with.
    """
    if not _shallow(content):
        report("$", f"nests deeper than {DEPTH_MAX} levels")
        return None
    reader = _Reader(services, report)
    return reader.definition(content)


def did_you_mean(wrong: str, known: Collection[str]) -> str:
    """A suggestion to append to a fault, or nothing."""
    close = get_close_matches(wrong, sorted(known), n=1)
    return f' (did you mean "{close[0]}"?)' if close else ""


_DEFINITION_FIELDS: Final = ("name", "version", "on_failure", "steps", "result")
_REQUEST_FIELDS: Final = ("service", "method", "path", "body", "headers", "answers", "retry", "timeout")
_STEP_FIELDS: Final = ("name", *_REQUEST_FIELDS, "after", "when", "undo", "give_up_after")
_LATER: Final = ("decision", "data", "sleep", "savepoint")
_RETRY_FIELDS: Final = ("attempts", "backoff", "first", "max", "jitter")


class _Reader:
    """Reads one definition; every method takes a value and its path, and returns what is usable of it."""

    def __init__(self, services: Services, report: Report) -> None:
        self.services = services
        self.report = report

    def definition(self, content: Any) -> Definition | None:
        if not self.is_object(content, "$", _DEFINITION_FIELDS):
            return None
        name = self.name(content.get("name", "definition"), "$.name")
        version = content.get("version", 1)
        if not _is_whole(version, 1, VERSION_MAX):
            self.report("$.version", f"a version is a whole number from 1 to {VERSION_MAX}, not {_shown(version)}")
        if content.get("on_failure", "undo") == "dead_letter":
            self.report("$.on_failure", '"dead_letter" is not supported yet; "undo" is')
        elif content.get("on_failure", "undo") != "undo":
            self.report("$.on_failure", f'on_failure is "undo", not {_shown(content["on_failure"])}')
        steps = self.steps(content.get("steps"))
        if steps is None:
            return None
        return Definition(name=name, version=version, steps=steps, result=content.get("result"), content=content)

    def steps(self, value: Any) -> tuple[Step, ...] | None:
        if not isinstance(value, list) or not value:
            self.report("$.steps", "a definition has a list of at least one step")
            return None
        if len(value) > STEPS_MAX:
            self.report("$.steps", f"a definition has at most {STEPS_MAX} steps, not {len(value)}")
            return None
        steps = [self.step(step, f"$.steps[{index}]") for index, step in enumerate(value)]
        names = [step.name for step in steps]
        after = self.order(value, names)
        if after is None:  # expressions are worth checking all the same
            return tuple(replace(step, ancestors=frozenset(names)) for step in steps)
        ancestors = _ancestors(names, after)
        return tuple(
            replace(step, after=before, ancestors=ancestors[step.name])
            for step, before in zip(steps, after, strict=True)
        )

    def step(self, value: Any, at: str) -> Step:
        if not self.is_object(value, at, _STEP_FIELDS, later=_LATER):
            return Step(at=at, name="", request=RequestSource(at=at, service=""))
        if "name" not in value:
            self.report(at, "a step needs a name")
        name = self.name(value["name"], f"{at}.name") if "name" in value else ""
        if any(field in value for field in ("decision", "data", "sleep")):
            return Step(at=at, name=name, request=RequestSource(at=at, service=""))
        when = value.get("when")
        if when is not None and not isinstance(when, str):
            self.report(f"{at}.when", f"a condition is an expression in a string, not {_shown(when)}")
            when = None
        request = self.request(value, at, None)
        undo = None
        if value.get("undo") is not None and self.is_object(value["undo"], f"{at}.undo", _REQUEST_FIELDS):
            undo = self.request(value["undo"], f"{at}.undo", request.service)
        return Step(
            at=at,
            name=name,
            request=request,
            undo=undo,
            when=when,
            give_up_after=self.duration(value, at, "give_up_after"),
        )

    # ------------------------------------------------------------ requests

    def request(self, value: dict[str, Any], at: str, inherited: str | None) -> RequestSource:
        service = self.service(value, at, inherited)
        kind = self.services.get(service) if isinstance(self.services, Mapping) else None
        method, path = self.target(value, at, kind)
        return RequestSource(
            at=at,
            service=service,
            method=method,
            path=path,
            body=value.get("body"),
            headers=self.headers(value.get("headers"), f"{at}.headers"),
            answers=self.answers(value.get("answers"), f"{at}.answers"),
            retry=self.retry(value.get("retry"), f"{at}.retry"),
            timeout=self.duration(value, at, "timeout"),
        )

    def service(self, value: dict[str, Any], at: str, inherited: str | None) -> str:
        if "service" not in value:
            if inherited is None:
                self.report(at, "a step needs a service")
            return inherited or ""
        service = value["service"]
        if not isinstance(service, str):
            self.report(f"{at}.service", f"a service is named by a string, not {_shown(service)}")
            return ""
        if self.services is not None and service not in self.services:
            known = ", ".join(sorted(self.services)) or "none"
            hint = did_you_mean(service, self.services) or f" (configured: {known})"
            self.report(f"{at}.service", f'unknown service "{service}"{hint}')
        return service

    def target(self, value: dict[str, Any], at: str, kind: str | None) -> tuple[str, str]:
        """Method and path: a method of HTTP with a path, or the full name of a gRPC method without one."""
        method, path = value.get("method", "POST"), value.get("path")
        if not isinstance(method, str):
            self.report(f"{at}.method", f"a method is a string, not {_shown(method)}")
            method = "POST"
        elif kind == "grpc" or (kind is None and "/" in method):
            if not _GRPC_METHOD.fullmatch(method):
                self.report(
                    f"{at}.method", f"a gRPC method is its full name, as shop.Stock/Reserve, not {_shown(method)}"
                )
            if path is not None:
                self.report(f"{at}.path", "a gRPC request has no path")
            return method, ""
        elif method not in METHODS:
            self.report(f"{at}.method", f"a method is one of {', '.join(METHODS)}, not {_shown(method)}")
        if path is not None and (not isinstance(path, str) or not path):
            self.report(f"{at}.path", f"a path is a string that starts with /, not {_shown(path)}")
            path = None
        return method, "/" if path is None else path

    def headers(self, value: Any, at: str) -> dict[str, str]:
        if value is None or not self.is_object(value, at, None):
            return {}
        for name, text in value.items():
            if not _HEADER.fullmatch(name):
                self.report(at, f"{name!r} is no name of a header")
            elif name.lower() in _OURS:
                self.report(f"{at}.{name}", "this header is the coordinator's own")
            if not isinstance(text, str):
                self.report(f"{at}.{name}", f"a header is a string, not {_shown(text)}")
        return {name: text for name, text in value.items() if isinstance(text, str)}

    def answers(self, value: Any, at: str) -> dict[str, str]:
        if value is None or not self.is_object(value, at, None):
            return {}
        for status, meaning in value.items():
            if not _STATUS.fullmatch(status):
                self.report(at, f'{status!r} is no status: "404", "5xx" or a gRPC name as "NOT_FOUND"')
            if meaning not in ("outcome", "failure", "delayed"):
                self.report(
                    f"{at}.{status}", f'an answer means "outcome", "failure" or "delayed", not {_shown(meaning)}'
                )
        return dict(value)

    def retry(self, value: Any, at: str) -> RetryRule | None:
        if value is None or not self.is_object(value, at, _RETRY_FIELDS):
            return None
        if "attempts" in value and not _is_whole(value["attempts"], 1, ATTEMPTS_MAX):
            self.report(
                f"{at}.attempts",
                f"attempts is a whole number from 1 to {ATTEMPTS_MAX}, not {_shown(value['attempts'])}",
            )
        if value.get("backoff", "fixed") not in ("fixed", "exponential"):
            self.report(f"{at}.backoff", f'backoff is "fixed" or "exponential", not {_shown(value["backoff"])}')
        jitter = value.get("jitter", 0)
        if isinstance(jitter, bool) or not isinstance(jitter, int | float) or not 0 <= jitter <= 1:
            self.report(f"{at}.jitter", f"jitter is a number from 0 to 1, not {_shown(jitter)}")
        first = self.duration(value, at, "first", least=0)
        longest = self.duration(value, at, "max", least=0)
        if first is not None and longest is not None and parse_duration(first) > parse_duration(longest):
            self.report(f"{at}.first", f"first ({first}) is longer than max ({longest})")
        return RetryRule(**{field: value[field] for field in _RETRY_FIELDS if field in value})

    # ------------------------------------------------------------ order

    def order(self, listed: list[Any], names: list[str]) -> list[tuple[str, ...]] | None:
        """What each step waits for; None if the names or the order make no sense."""
        sound = True
        for index, name in enumerate(names):
            if name and name in names[:index]:
                self.report(f"$.steps[{index}].name", f'duplicate name "{name}"')
                sound = False
        after: list[tuple[str, ...]] = []
        for index, step in enumerate(listed):
            if not isinstance(step, dict) or step.get("after") is None:
                after.append((names[index - 1],) if index else ())
                continue
            found, usable = self.after(step["after"], f"$.steps[{index}].after", names)
            sound = sound and usable
            after.append(found)
        if not sound:
            return None
        cycle = _cycle(names, after)
        if cycle is not None:
            self.report(f"$.steps[{names.index(cycle[0])}].after", f"a cycle: {' → '.join(cycle)}")
            return None
        return after

    def after(self, value: Any, at: str, names: list[str]) -> tuple[tuple[str, ...], bool]:
        if not isinstance(value, list):
            self.report(at, f"after is a list of names of steps, not {_shown(value)}")
            return (), False
        sound = True
        for index, name in enumerate(value):
            where = f"{at}[{index}]"
            if not isinstance(name, str):
                self.report(where, f"a step is named by a string, not {_shown(name)}")
            elif name not in names:
                self.report(where, f'unknown step "{name}"{did_you_mean(name, names)}')
            elif name in value[:index]:
                self.report(where, f'duplicate name "{name}"')
            else:
                continue
            sound = False
        return (tuple(value), True) if sound else ((), False)

    # ------------------------------------------------------------ small things

    def is_object(self, value: Any, at: str, fields: tuple[str, ...] | None, later: tuple[str, ...] = ()) -> bool:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            self.report(at, f"an object is needed, not {_shown(value)}")
            return False
        for key in value if fields is not None else ():
            if key in later:
                self.report(f"{at}.{key}", f'"{key}" is not supported yet')
            elif fields is not None and key not in fields:
                self.report(f"{at}.{key}", f'unknown field "{key}"{did_you_mean(key, fields)}')
        return True

    def name(self, value: Any, at: str) -> str:
        if isinstance(value, str) and _NAME.fullmatch(value):
            return value
        self.report(at, f"{NAME_RULE}, not {_shown(value)}")
        return value if isinstance(value, str) else ""

    def duration(self, value: dict[str, Any], at: str, field: str, least: int = 1) -> str | None:
        """The duration's text, if it is a good one; ``least`` in milliseconds."""
        text = value.get(field)
        if text is None:
            return None
        try:
            if parse_duration(text if isinstance(text, str) else repr(text)) >= least:
                return str(text)
            self.report(f"{at}.{field}", f"{text} is no time at all")
        except ValueError as error:
            self.report(f"{at}.{field}", str(error))
        return None


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _shallow(content: Any) -> bool:
    """Whether it nests at most DEPTH_MAX levels; everything after this may recurse."""
    level = [content]
    for _ in range(DEPTH_MAX):
        level = [
            below
            for value in level
            if isinstance(value, dict | list)
            for below in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return True
    return False


def _ancestors(names: list[str], after: list[tuple[str, ...]]) -> dict[str, frozenset[str]]:
    """What has certainly ended when each step starts; the order has no cycle."""
    waits = dict(zip(names, after, strict=True))
    found: dict[str, frozenset[str]] = {}
    remaining = list(names)
    while remaining:
        ready = [name for name in remaining if all(before in found for before in waits[name])]
        for name in ready:
            found[name] = frozenset(waits[name]).union(*(found[before] for before in waits[name]))
        remaining = [name for name in remaining if name not in found]
    return found


def _cycle(names: list[str], after: list[tuple[str, ...]]) -> list[str] | None:
    """One cycle in the order it would have to run, its first step again at its end; None if there is none."""
    waits = dict(zip(names, after, strict=True))
    remaining = dict(waits)
    while ready := [name for name, before in remaining.items() if not any(each in remaining for each in before)]:
        for name in ready:
            del remaining[name]
    if not remaining:
        return None
    walk = [next(iter(remaining))]  # every step that remains waits for another one: walking back must meet itself
    while walk[-1] not in walk[:-1]:
        walk.append(next(before for before in waits[walk[-1]] if before in remaining))
    return walk[walk.index(walk[-1]) :][::-1]
