"""docs/configuration.md: every setting is there, under its section, with the default that the program has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from coordinator.model.durations import format_duration
from coordinator.server.config import Config, Duration, Service

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "configuration.md").read_text()
SECTIONS: dict[str, Struct] = {
    **{name: getattr(Config(), name) for name in Config.__struct_fields__ if name != "services"},
    "services.NAME": Service(),
}


def spelled(value: Any) -> str:
    """A default as it is written in TOML."""
    if isinstance(value, Duration):
        return f'"{format_duration(value)}"'
    if isinstance(value, Struct):
        return "{ " + ", ".join(f"{name} = {spelled(getattr(value, name))}" for name in value.__struct_fields__) + " }"
    return json.dumps(value)


def documented(section: str) -> dict[str, str]:
    """Keys and defaults of the section's table."""
    heading = f"## `[{section}]`\n"
    assert heading in PAGE
    text = PAGE.split(heading)[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \| ", text, re.MULTILINE))


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_has_every_setting_and_its_default(section: str) -> None:
    """Nothing more, nothing less, in the order of the program."""
    defaults = SECTIONS[section]
    expected = {name: spelled(getattr(defaults, name)) for name in defaults.__struct_fields__}
    assert list(documented(section).items()) == list(expected.items())


def test_the_page_has_every_section() -> None:
    """In the order of the file."""
    assert re.findall(r"^## `\[(.+)\]`$", PAGE, re.MULTILINE) == list(SECTIONS)
