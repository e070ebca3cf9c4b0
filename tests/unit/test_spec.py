"""The formal model's parts name the same things: its switches, the script that turns them on, the page that explains
them.  Runs no model checker; `make spec` does."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SPEC = ROOT / "docs" / "spec"
PAGE = (SPEC / "README.md").read_text()
MODEL = (SPEC / "protocol.pml").read_text()

NO_SHORTCUTS = {"GROUP", "REDUCED", "SHORTEST"}  # what is searched, and how


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "scripts" / "spec.py"
    spec = importlib.util.spec_from_file_location("spec_script", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def explained() -> list[str]:
    """The switches of the page's hand-written table of rules."""
    table = PAGE.split("<!-- end of broken -->")[1]
    return re.findall(r"^\| `([A-Z_0-9]+)` \|", table, re.MULTILINE)


def bounds() -> set[str]:
    return set(re.findall(r"^#ifndef (\w+)$", MODEL, re.MULTILINE)) & set(
        re.findall(r"^#define (\w+) +[\d(]", MODEL, re.MULTILINE)
    )


def test_every_switch_of_the_model_is_explained_and_every_explained_one_exists() -> None:
    """A shortcut that the model has and the page has not, or the other way round, is a claim that nobody checks."""
    asked_for = set(re.findall(r"^#ifn?def (\w+)", MODEL, re.MULTILINE))
    asked_for |= set(re.findall(r"defined\((\w+)\)", MODEL))
    assert asked_for - bounds() - NO_SHORTCUTS == set(explained())
    assert len(explained()) == len(set(explained()))


def test_every_explained_shortcut_is_run_and_must_be_found_broken(script: ModuleType) -> None:
    """The script turns each on, and names the property that must then fail."""
    assert [check.name for check in script.SHORTCUTS] == explained()
    assert all(check.broken for check in script.SHORTCUTS)


def test_every_sight_of_the_model_is_looked_for(script: ModuleType) -> None:
    """What the model must be able to show is numbered, and the script asks for each number."""
    shown = set(re.findall(r"SEEN\((\d+)\)|SIGHT != (\d+)", MODEL))
    numbers = {first or second for first, second in shown}
    assert numbers == {re.search(r"SIGHT=(\d+)", check.flags)[1] for check in script.SIGHTS}


def test_checks_set_only_bounds_that_the_model_has(script: ModuleType) -> None:
    """A misspelt bound would be ignored in silence, and the check would prove less than its row says."""
    flags = {
        flag.split("=")[0]
        for check in [*script.HOLDS, *script.SIGHTS, *script.SHORTCUTS]
        for flag in check.flags.split()
    }
    assert flags - bounds() <= NO_SHORTCUTS


def test_the_measured_tables_hold_the_checks_that_are_run(script: ModuleType) -> None:
    """`--write` was run after the last change of what is checked."""
    for check in script.HOLDS:
        assert f"| {check.name} | `{check.flags}` |" in PAGE
    for check in script.SHORTCUTS:
        assert f"| `{check.name}` | `{check.flags}` | {check.broken} |" in PAGE


def test_an_assertion_that_stands_for_no_property_is_a_bound_that_is_too_small(script: ModuleType) -> None:
    """A violated bound is told as such: it must neither count as a shortcut found nor as a property that holds."""
    output = "pan:1: assertion violated (end<16) (at depth 31)\nerrors: 1"
    assert script._found(output).startswith("bound too small")
    assert script._found("State-vector 140 byte, depth reached 61, errors: 0") == ""
