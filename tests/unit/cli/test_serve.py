"""``coordinator serve``: finding the application, and telling why it cannot be found."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator import App
from coordinator.cli.serve import load_app
from coordinator.errors import ConfigError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.startswith("shop"):
            del sys.modules[name]


def refusal(name: str) -> str:
    with pytest.raises(ConfigError) as refused:
        load_app(name)
    return str(refused.value)


def test_an_application_of_the_working_directory_is_found(here: Path) -> None:
    """Nothing has to be installed: the directory in which one stands is looked at first."""
    (here / "shop.py").write_text("from coordinator import App\napp = App()\nclass inner:\n    app = App()\n")
    assert isinstance(load_app("shop:app"), App)
    assert isinstance(load_app("shop:inner.app"), App)


@pytest.mark.parametrize("name", ["shop", "shop:", ":app", ""])
def test_a_name_that_is_none_is_told_the_form(name: str) -> None:
    """What is allowed comes with an example."""
    assert "module:attribute, for example orders:app" in refusal(name)


def test_a_module_that_is_not_there(here: Path) -> None:
    """The directory that was searched is named."""
    assert f"no module 'shop_x' in {here}" in refusal("shop_x:app")


def test_a_module_whose_own_import_is_missing(here: Path) -> None:
    """The fault is not blamed on the module itself."""
    (here / "shop.py").write_text("import shop_gone\n")
    assert "shop imports 'shop_gone', which is not installed" in refusal("shop:app")


def test_a_module_that_raises(here: Path) -> None:
    """File and line of the application's own code are named, without a traceback."""
    (here / "shop.py").write_text("def make():\n    return 1 / 0\napp = make()\n")
    told = refusal("shop:app")
    assert "ZeroDivisionError: division by zero" in told
    assert "shop.py, line 2" in told


def test_a_module_that_is_no_python(here: Path) -> None:
    """A syntax error names its line."""
    (here / "shop.py").write_text("x = 1\ndef\n")
    assert "shop.py, line 2" in refusal("shop:app")


def test_an_attribute_that_is_not_there(here: Path) -> None:
    """The applications that the module does have are named."""
    (here / "shop.py").write_text("from coordinator import App\norders = App()\n")
    assert "shop has no 'app'; it has orders" in refusal("shop:app")


def test_an_attribute_that_is_no_application(here: Path) -> None:
    """Its type is told."""
    (here / "shop.py").write_text("app = 5\n")
    assert "shop:app is not a coordinator.App but of type int" in refusal("shop:app")
