"""Which types there are, and what may be registered."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from coordinator.engine.registry import INLINE_MAX, Registry, fingerprint
from coordinator.engine.stepper import Execution
from coordinator.errors import DefinitionConflict, InvalidPayload, UnknownDefinition, UnknownType
from coordinator.model.ids import CommandId
from coordinator.model.records import SCHEMA, Submitted, raw
from coordinator.saga import App, Saga, post

SERVICES = {"stock": "http", "payments": "http"}

app = App()
app.client("plugged", object())


class Item(msgspec.Struct):
    """A line of an order."""

    sku: str
    quantity: int = 1


@app.command(services=["stock"])
class PlaceOrder(msgspec.Struct):
    """A code command."""

    order_id: str
    items: list[Item] = []
    by_day: dict[int, str] = {}
    blob: bytes = b""

    async def exec(self, saga: Saga) -> Any:
        await saga.step("reserve", post("stock", f"/{self.order_id}"))
        return len(self.items)


@app.command(version=2, name="PlaceOrder")
class PlaceOrder2(msgspec.Struct):
    """Its second version, which declares no services."""

    order_id: str

    async def exec(self, saga: Saga) -> Any:
        return self.order_id


def content(**rest: Any) -> dict[str, Any]:
    return {"steps": [{"name": "a", "service": "stock", "path": "/a", "body": "${payload.x}"}], **rest}


def registry(services: dict[str, str] = SERVICES) -> Registry:
    return Registry(app, services)


def saga() -> Saga:
    return Saga(id="c", type="t", version=1, attributes={}, now=0)


def submitted(type: str, version: int, definition: Any = None) -> Submitted:
    return Submitted(SCHEMA, b"", 0, CommandId("c"), type, version, raw({}), b"", definition=raw(definition))


def test_code_commands_are_found_by_version_or_the_newest() -> None:
    """No version means the newest."""
    known = registry()
    assert known.resolve("PlaceOrder").version == 2
    assert known.resolve("PlaceOrder", 1).version == 1
    assert known.resolve("PlaceOrder", 1).services == {"stock"}
    assert known.resolve("PlaceOrder", 2).services == frozenset()
    assert known.resolve("PlaceOrder").definition is None


def test_what_is_unknown_says_what_there_is() -> None:
    """A typo gets a suggestion, a missing version the list of those there are."""
    with pytest.raises(UnknownType, match=r"did you mean \"PlaceOrder\"\?"):
        registry().resolve("PlaceOder")
    with pytest.raises(UnknownType, match="no version 7 of PlaceOrder, but 1, 2"):
        registry().resolve("PlaceOrder", 7)
    with pytest.raises(UnknownType, match="none yet"):
        Registry(None, {}).resolve("x")


@pytest.mark.parametrize(
    ("payload", "path", "fault"),
    [
        ({"order_id": 1}, "$.payload.order_id", "Expected str, got int"),
        ({}, "$.payload", "missing required field order_id"),
        ({"order_id": "o", "items": [{"sku": "s"}, {"sku": 2}]}, "$.payload.items[1].sku", "Expected str, got int"),
        ({"order_id": "o", "by_day": {"x": "y"}}, "$.payload.by_day", "Expected int, got str as a key"),
        (None, "$.payload", "Expected object, got null"),
        ([1], "$.payload", "Expected object, got array"),
    ],
)
def test_a_payload_that_does_not_fit_is_refused_with_its_path(payload: Any, path: str, fault: str) -> None:
    """A code command's payload is checked before anything is recorded."""
    with pytest.raises(InvalidPayload) as found:
        registry().resolve("PlaceOrder", 1).check_payload(payload)
    (only,) = found.value.extra["faults"]
    assert only["path"] == path
    assert fault.lower() in only["fault"].lower()


def test_a_recorded_payload_becomes_the_commands_struct() -> None:
    """JSON's spellings (keys as strings, bytes as base64) reach the author as the declared types."""
    payload = {"order_id": "o-1", "items": [{"sku": "s"}], "by_day": {"3": "x"}, "blob": "YWI="}
    resolved = registry().resolve("PlaceOrder", 1)
    resolved.check_payload(payload)
    execution = Execution(lambda given: resolved.start(raw(payload), given), saga())
    assert list(execution.pending) == ["reserve"]
    execution.outcome("reserve", raw(None), 1)
    assert execution.result == 1


def test_a_payload_recorded_by_an_older_version_of_the_code_may_not_fit() -> None:
    """The error goes to the engine, which parks the command."""
    with pytest.raises(msgspec.ValidationError):
        registry().resolve("PlaceOrder", 1).start(raw({"order": 1}), saga())


def test_a_definition_takes_any_payload() -> None:
    """What its expressions need is found out when they run."""
    known = registry()
    resolved = known.resolve_inline(content())
    resolved.check_payload(None)
    execution = Execution(lambda given: resolved.start(raw({"x": [1]}), given), saga())
    assert execution.calls["a"].request == post("stock", "/a", [1])
    assert resolved.services == {"stock"}
    assert resolved.definition is not None


def test_inline_definitions_are_compiled_once() -> None:
    """The same content, whatever the order of its keys, is the same type; few are kept."""
    known = registry()
    first = known.resolve_inline(content(name="x", version=1))
    assert known.resolve_inline({"version": 1, "name": "x", **content()}) is first
    for n in range(INLINE_MAX):
        known.resolve_inline(content(version=n + 2))
    assert known.resolve_inline(content(name="x", version=1)) is not first


@pytest.mark.parametrize("wrong", [None, [], "x", content(steps=[]), content(result=2**80), {"a": {1, 2}}])
def test_a_bad_inline_definition_is_refused(wrong: Any) -> None:
    """Every fault is an InvalidPayload with its path in the submission."""
    with pytest.raises(InvalidPayload) as found:
        registry().resolve_inline(wrong)
    assert all(fault["path"].startswith("$.definition") for fault in found.value.extra["faults"])


def test_a_registered_version_never_changes() -> None:
    """The same content is accepted again, other content is a conflict that names the next free version."""
    known = registry()
    print_ = known.check("order", 1, content())
    assert known.add("order", 1, raw(content()))
    assert known.has("order", 1)
    assert known.check("order", 1, content()) == print_
    assert known.check("order", 1, {"name": "order", **content()}) == print_
    with pytest.raises(DefinitionConflict, match="register version 2"):
        known.check("order", 1, content(result=1))
    assert known.check("order", 2, content(result=1)) != print_
    assert not known.add("order", 1, raw(content(result=1)))
    assert known.content("order") == {"name": "order", "version": 1, **content()}


def test_registration_is_refused_with_all_faults() -> None:
    """A definition is checked before it is recorded."""
    known = registry()
    with pytest.raises(InvalidPayload) as found:
        known.check("order", 1, {"steps": [{"name": "a", "service": "x", "path": "y"}]})
    assert [fault["path"] for fault in found.value.extra["faults"]] == ["$.steps[0].service", "$.steps[0].path"]
    with pytest.raises(InvalidPayload, match="registered under"):
        known.check("order", 1, content(name="other"))
    with pytest.raises(InvalidPayload, match="registered under"):
        known.check("order", 1, content(version=2))
    with pytest.raises(InvalidPayload, match=r"\$\.name"):
        known.check("a b", 1, content())
    with pytest.raises(InvalidPayload, match="an object"):
        known.check("order", 1, [])
    with pytest.raises(DefinitionConflict, match="command of the application"):
        known.check("PlaceOrder", 9, content())


def test_a_plugged_in_client_is_a_service() -> None:
    """What the application gives a client for may be called by definitions too."""
    registry().resolve_inline({"steps": [{"name": "a", "service": "plugged"}]})


def test_a_definition_from_another_configuration_does_not_stop_the_start() -> None:
    """Its service is gone: it is kept, listed as broken, and its use says why."""
    known = registry({"payments": "http"})
    assert known.add("order", 1, raw(content()))
    with pytest.raises(UnknownType, match=r"cannot run here: \$\.steps\[0\]\.service: unknown service \"stock\""):
        known.resolve("order", 1)
    with pytest.raises(InvalidPayload, match="unknown service"):
        known.definition("order", 1)
    assert known.content("order", 1)["steps"] == content()["steps"]
    (listed,) = [each for each in known.listing() if each["name"] == "order"]
    assert "unknown service" in listed["broken"]
    assert known.add("worse", 1, raw(7))
    assert known.add("older", 1, raw({"steps": [{"name": "a", "sleep": "1s"}]}))


def test_what_is_not_registered_is_unknown() -> None:
    """Definitions are read by name and version; code has none to read."""
    with pytest.raises(UnknownDefinition):
        registry().content("order", 1)
    with pytest.raises(UnknownDefinition):
        registry().content("PlaceOrder", 1)
    with pytest.raises(UnknownDefinition):
        registry().definition("order")


def test_the_listing_has_everything_in_order() -> None:
    """Code and definitions, by name and version."""
    known = registry()
    known.add("alpha", 10, raw(content()))
    known.add("alpha", 9, raw(content()))
    assert [(each["name"], each["version"], each["kind"]) for each in known.listing()] == [
        ("PlaceOrder", 1, "code"),
        ("PlaceOrder", 2, "code"),
        ("alpha", 9, "definition"),
        ("alpha", 10, "definition"),
    ]
    assert known.resolve("alpha").version == 10


def test_the_plan_of_a_recorded_command() -> None:
    """A definition's steps are known before they run, code's are not; an unknown type has no plan either."""
    known = registry()
    known.add("order", 1, raw(content()))
    assert known.planned(submitted("order", 1)) == [("a", "stock")]
    assert known.planned(submitted("definition", 1, content())) == [("a", "stock")]
    assert known.planned(submitted("PlaceOrder", 1)) == []
    assert known.planned(submitted("gone", 1)) == []
    assert known.definition_of(submitted("gone", 1)) is None


def test_the_same_request_has_the_same_fingerprint() -> None:
    """The order of keys does not count; type, version, payload and definition do."""
    base = fingerprint("t", 1, {"a": 1, "b": {"c": 2, "d": 3}}, None)
    assert len(base) == 16
    assert fingerprint("t", 1, {"b": {"d": 3, "c": 2}, "a": 1}, None) == base
    others = [
        fingerprint("u", 1, {"a": 1, "b": {"c": 2, "d": 3}}, None),
        fingerprint("t", None, {"a": 1, "b": {"c": 2, "d": 3}}, None),
        fingerprint("t", 1, {"a": 1.0, "b": {"c": 2, "d": 3}}, None),
        fingerprint("t", 1, {"a": 1, "b": {"c": 2, "d": 3}}, {}),
    ]
    assert len({base, *others}) == 5
