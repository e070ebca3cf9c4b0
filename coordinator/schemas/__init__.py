"""JSON Schemas (draft 2020-12) of what people write: definitions and coordinator.toml.

Any editor that knows JSON Schema completes and checks these files while they are written (docs/editors.md).  The
schemas accept whatever the program accepts, and refuse what it refuses as far as the form goes: that a name is known,
that steps form no cycle and that an expression makes sense is checked where they are registered.

`coordinator schema definition|config` prints them.
"""

from __future__ import annotations

from coordinator.schemas.config import config
from coordinator.schemas.definition import definition

__all__ = ["config", "definition"]
