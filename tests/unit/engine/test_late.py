"""Optional data in the order of a definition: what waits for what, and what runs again."""

from __future__ import annotations

from typing import Any

from coordinator.engine.late import Late
from coordinator.model.definition import Definition, Joint, Step
from coordinator.model.reading import parse

LATE = {"name": "late", "data": {"optional": True, "reruns": True}}


def step(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "service": "s", **fields}


def read(*steps: dict[str, Any]) -> dict[str, Step | Joint]:
    return {place.name: place for place in (*definition(*steps).steps, *definition(*steps).joints)}


def definition(*steps: dict[str, Any]) -> Definition:
    faults: list[tuple[str, str]] = []
    found = parse({"steps": list(steps)}, None, lambda path, fault: faults.append((path, fault)))
    assert found is not None
    assert faults == []
    return found


def renewed(name: str, *steps: dict[str, Any]) -> tuple[str, ...]:
    return Late(definition(*steps)).renewed(read(*steps)[name])


def test_what_comes_after_optional_data_waits_for_what_that_waits_for() -> None:
    """Through any number of them, in a join too."""
    steps = [step("a"), LATE, {"name": "other", "data": {"optional": True}}, step("b"), step("c", after=["other", "a"])]
    late, places = Late(definition(*steps)), read(*steps)
    assert late.before(places["b"]) == (("a",), ("other", "late"))
    assert late.before(places["c"]) == (("a",), ("other", "late"))
    assert late.before(places["a"]) == ((), ())


def test_only_what_comes_after_data_that_reruns_runs_again() -> None:
    """However far behind; other optional data runs nothing again."""
    steps = [step("a"), {"name": "other", "data": {"optional": True}}, step("b"), LATE, step("c"), step("d")]
    late, places = Late(definition(*steps)), read(*steps)
    assert {name for name, place in places.items() if late.reruns(place)} == {"c", "d"}
    assert renewed("b", *steps) == ()
    assert renewed("c", *steps) == ("late",)
    assert renewed("d", *steps) == ()


def test_a_step_that_may_be_skipped_is_looked_behind() -> None:
    """Skipped twice it has nothing new to tell, and what is behind it may have."""
    assert renewed("z", LATE, step("a"), step("b", when="true"), step("z")) == ("a",)
    assert renewed("z", LATE, step("a"), step("b", when="true"), step("c", when="true"), step("z")) == ("b", "a")
    assert renewed("z", LATE, step("a"), {"name": "b", "steps": [step("c", when="true")]}, step("z")) == ("c", "b/in")
    assert renewed("z", LATE, step("a"), step("b"), step("z")) == ()


def test_nobody_looks_behind_a_join_of_any() -> None:
    """An edge past it would keep the losers from being given up."""
    branches = [step("a", after=["late"]), step("b", after=["late"])]
    join = step("j", after=["a", "b"], join="any", when="true")
    assert renewed("z", LATE, *branches, join, step("z")) == ()
    assert renewed("j", LATE, *branches, join) == ()
