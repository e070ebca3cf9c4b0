"""The types of commands that an instance knows: those of its application, and definitions, registered or sent along.

A registered version is immutable, and the first one in the log wins for ever: what a name and a version mean may not
change under commands that run.  So `check` decides before a Registered record is proposed, and `add` follows the log
without judging it: a definition that was registered when another configuration was in force (its service has been
removed since) is kept and marked broken, and using it says why.  Code commands come from the application and are
never in the log.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from coordinator.engine.interpreter import definition_type
from coordinator.engine.plan import Plan, compile_definition
from coordinator.errors import CoordinatorError, DefinitionConflict, InvalidPayload, UnknownDefinition, UnknownType
from coordinator.model.command import StepView
from coordinator.model.definition import Definition
from coordinator.model.reading import did_you_mean
from coordinator.model.records import NIL, Submitted, unraw
from coordinator.saga import App, CommandType, Saga

INLINE_MAX: Final = 256  # compiled inline definitions that are kept for the next command that sends the same one

_encode = msgspec.msgpack.Encoder(order="deterministic").encode


def fingerprint(type: str | None, version: int | None, payload: Any, definition: Any) -> bytes:
    """What "the same request" means (16 bytes): type and version as requested, payload and inline definition.

    The order of keys does not count; ``1`` and ``1.0`` are different.  Raises what msgpack raises for a value it
    cannot hold.
    """
    return _digest([type, version, payload, definition])


def content_fingerprint(content: Any) -> bytes:
    """What "the same definition" means (16 bytes): its JSON, whatever the order of keys."""
    return _digest(content)


def _digest(value: Any) -> bytes:
    return blake2b(_encode(value), digest_size=16).digest()


class Resolved(Struct, frozen=True):
    """A type that can be run.  ``services`` are those whose outage suspends it (empty: not declared, so any)."""

    type: CommandType
    plan: Plan | None = None

    @property
    def name(self) -> str:
        return self.type.name

    @property
    def version(self) -> int:
        return self.type.version

    @property
    def services(self) -> frozenset[str]:
        return self.type.services

    @property
    def definition(self) -> Definition | None:
        """What a definition's author wrote; None for a code command."""
        return None if self.plan is None else self.plan.definition

    def start(self, payload: Raw, saga: Saga) -> Coroutine[Any, Any, Any]:
        """Its ``exec``, about to begin; raises msgspec.ValidationError if the recorded payload no longer fits."""
        value = unraw(payload)
        return self.type.run(value if self.plan is not None else self._convert(value), saga)

    def check_payload(self, payload: Any) -> None:
        """Raises InvalidPayload with the path of what does not fit; a definition takes any JSON value."""
        if self.plan is not None:
            return
        try:
            self._convert(payload)
        except (msgspec.ValidationError, ValueError, TypeError) as error:
            raise misfit(str(error)) from None

    def _convert(self, payload: Any) -> Any:
        return msgspec.convert(payload, self.type.payload, str_keys=True)


class _Entry(Struct):
    """A registered definition; ``broken`` is why it cannot be run, then ``resolved`` is None."""

    content: dict[str, Any]
    fingerprint: bytes
    resolved: Resolved | None
    broken: CoordinatorError | None


class Registry:
    """All types, by name and version.

    ``services`` are the configured services, by name to ``http`` or ``grpc``; those for which the application plugs
    in a client count as http.
    """

    def __init__(self, app: App | None, services: Mapping[str, str]) -> None:
        self.services = {**dict.fromkeys(app.clients if app else (), "http"), **services}
        self._code = {key: Resolved(type) for key, type in (app.commands if app else {}).items()}
        self._registered: dict[tuple[str, int], _Entry] = {}
        self._newest: dict[str, int] = {}
        self._inline: OrderedDict[bytes, Resolved] = OrderedDict()
        for name, version in self._code:
            self._newest[name] = max(version, self._newest.get(name, 0))

    # ------------------------------------------------------------ to run

    def resolve(self, type: str, version: int | None = None) -> Resolved:
        """The type (``version`` None: its newest); raises UnknownType: what there is instead, or why it cannot run."""
        wanted = self._newest.get(type, 0) if version is None else version
        code = self._code.get((type, wanted))
        if code is not None:
            return code
        entry = self._registered.get((type, wanted))
        if entry is None:
            raise UnknownType(self._unknown(type, version, "command type"))
        if entry.resolved is None:
            raise UnknownType(f"definition {type} version {wanted} is registered but cannot run here: {entry.broken}")
        return entry.resolved

    def resolve_inline(self, content: Any) -> Resolved:
        """A definition that was sent with its command; raises InvalidPayload with all faults (``$.definition.…``)."""
        try:
            key = content_fingerprint(content)
        except (OverflowError, TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise InvalidPayload.at("$.definition", f"cannot be recorded: {error}") from None
        resolved = self._inline.get(key)
        if resolved is None:
            try:
                resolved = self._inline[key] = self._compiled(content)
            except InvalidPayload as error:
                raise _below("$.definition", error) from None
            if len(self._inline) > INLINE_MAX:
                self._inline.popitem(last=False)
        else:
            self._inline.move_to_end(key)
        return resolved

    def resolve_submitted(self, submitted: Submitted) -> Resolved:
        """The type of a recorded command; raises as the two above."""
        if submitted.definition != NIL:
            try:
                content = unraw(submitted.definition)
            except (ValueError, RecursionError, msgspec.MsgspecError) as error:
                raise InvalidPayload.at("$.definition", f"as it is recorded, it cannot be read: {error}") from None
            return self.resolve_inline(content)
        return self.resolve(submitted.type, submitted.version)

    def definition_of(self, submitted: Submitted) -> Definition | None:
        """The definition of a recorded command; None for code, and for what cannot run here any more."""
        try:
            return self.resolve_submitted(submitted).definition
        except CoordinatorError:
            return None

    def diagram_of(self, submitted: Submitted) -> Callable[[Sequence[StepView]], str] | None:
        """What draws a command of this type, where that has a plan of its own to draw."""
        try:
            return self.resolve_submitted(submitted).type.diagram
        except CoordinatorError:
            return None

    def planned(self, submitted: Submitted) -> list[tuple[str, str]]:
        """(step, service) of a recorded command as its definition lists them; nothing for code, which has no plan."""
        definition = self.definition_of(submitted)
        return [] if definition is None else [(step.name, step.service) for step in definition.steps]

    # ------------------------------------------------------------ to register

    def check(self, name: str, version: int, content: Any) -> bytes:
        """Whether ``content`` may be registered; returns its fingerprint.

        Raises InvalidPayload with all faults, or DefinitionConflict if the version has other content or the name is a
        code command's.
        """
        if any(code == name for code, _ in self._code):
            raise DefinitionConflict(f"{name} is a command of the application, a definition needs another name")
        titled = _titled(name, version, content)
        try:
            print_ = content_fingerprint(titled)
        except (OverflowError, TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise InvalidPayload.at("$", f"the definition cannot be recorded: {error}") from None
        entry = self._registered.get((name, version))
        if entry is not None:
            if entry.fingerprint != print_:
                raise DefinitionConflict(
                    f"{name} version {version} is registered with other content, and a version never changes: "
                    f"register version {self._newest[name] + 1}"
                )
            return print_
        self._compiled(titled)
        return print_

    def add(self, name: str, version: int, content: Raw | dict[str, Any]) -> bool:
        """Follows a durable Registered record; False if the version was there before (the first one wins).

        Never raises: what cannot be compiled here is kept, and its use says why.
        """
        if (name, version) in self._registered:
            return False
        value: Any = unraw(content) if isinstance(content, Raw) else content
        resolved: Resolved | None = None
        broken: CoordinatorError | None = None
        try:
            value = _titled(name, version, value)
            resolved = self._compiled(value)
        except CoordinatorError as error:
            broken = error
        self._registered[name, version] = _Entry(value, content_fingerprint(value), resolved, broken)
        self._newest[name] = max(version, self._newest.get(name, 0))
        return True

    # ------------------------------------------------------------ to read

    def has(self, name: str, version: int) -> bool:
        """Whether a definition is registered under this name and version."""
        return (name, version) in self._registered

    def content(self, name: str, version: int | None = None) -> dict[str, Any]:
        """A registered definition's JSON, with its name and version; raises UnknownDefinition."""
        return self._entry(name, version).content

    def definition(self, name: str, version: int | None = None) -> Definition:
        """A registered definition; raises UnknownDefinition, InvalidPayload if it cannot run here any more."""
        entry = self._entry(name, version)
        if entry.resolved is None or entry.resolved.definition is None:
            raise entry.broken or UnknownDefinition(f"{name} has no definition")
        return entry.resolved.definition

    def listing(self) -> list[dict[str, Any]]:
        """All types, sorted: name, version, kind (code, definition), services; ``broken`` where one cannot run."""
        code = [_listed(resolved, "code") for resolved in self._code.values()]
        registered = [
            _listed(entry.resolved, "definition")
            if entry.resolved is not None
            else {"name": name, "version": version, "kind": "definition", "services": [], "broken": str(entry.broken)}
            for (name, version), entry in self._registered.items()
        ]
        return sorted(code + registered, key=lambda each: (each["name"], each["version"]))

    # ------------------------------------------------------------ inside

    def _compiled(self, content: Any) -> Resolved:
        plan = compile_definition(content, services=self.services)
        return Resolved(definition_type(plan), plan)

    def _entry(self, name: str, version: int | None) -> _Entry:
        versions = [known for named, known in self._registered if named == name]
        entry = self._registered.get((name, max(versions, default=0) if version is None else version))
        if entry is None:
            raise UnknownDefinition(self._unknown(name, version, "definition"))
        return entry

    def _unknown(self, name: str, version: int | None, noun: str) -> str:
        known = [*self._code, *self._registered] if noun == "command type" else list(self._registered)
        versions = sorted(number for named, number in known if named == name)
        if versions:
            return f"there is no version {version} of {name}, but {', '.join(map(str, versions))}"
        names = sorted({named for named, _ in known})
        there = ", ".join(names[:20]) or "none yet"
        hint = did_you_mean(name, names) or f" (there is {there})"
        return f"there is no {noun} {name[:200]!r}{hint}"


def _below(path: str, error: InvalidPayload) -> InvalidPayload:
    """The same faults, in a document that holds the faulty one at ``path``."""
    return InvalidPayload.all(
        [(path + fault["path"].removeprefix("$"), fault["fault"]) for fault in error.extra["faults"]]
    )


def _titled(name: str, version: int, content: Any) -> Any:
    """``content`` with its name and version, which it may leave to the address that it is registered under."""
    if not isinstance(content, dict):
        raise InvalidPayload.at("$", "a definition is an object")
    for field, value in (("name", name), ("version", version)):
        if field in content and (content[field] != value or isinstance(content[field], bool)):
            fault = f"{content[field]!r} is not the {field} it is registered under, {value!r}"
            raise InvalidPayload.at(f"$.{field}", fault)
    return {**content, "name": name, "version": version}


def _listed(resolved: Resolved, kind: str) -> dict[str, Any]:
    return {
        "name": resolved.name,
        "version": resolved.version,
        "kind": kind,
        "services": sorted(resolved.services),
    }


def misfit(message: str, root: str = "$.payload") -> InvalidPayload:
    """msgspec's sentence (``Expected `int`, got `str` - at `$.amount```) with the path as the client sent it, below
    ``root``."""
    fault, _, place = message.partition(" - at ")
    inner = place.rsplit("`$", 1)[-1].rstrip("`") if "`$" in place else ""
    if place.startswith("`key`"):
        fault += " as a key"
    return InvalidPayload.at(f"{root}{inner}", fault.replace("`", ""))
