"""The edge to the CEL library."""

from __future__ import annotations

import subprocess
import sys

import pytest

from coordinator.engine.cel_library import EvaluationError, program
from coordinator.engine.syntax import Fault


def test_a_program_is_a_function_of_its_variables() -> None:
    """Compiled once, run with different values."""
    run = program("a + b")
    assert run({"a": 1, "b": 2}) == 3
    assert run({"a": "x", "b": "y"}) == "xy"


def test_an_undefined_variable_is_named() -> None:
    """The evaluator needs to know which of its holes was asked for."""
    with pytest.raises(EvaluationError) as found:
        program("a + __1")({"a": 1})
    assert found.value.undefined == "__1"


def test_a_failed_assertion_of_the_library_is_an_error_of_the_expression() -> None:
    """Rust's panics reach Python as a BaseException; anything else of that kind goes on up."""

    class PanicException(BaseException):
        pass

    from coordinator.engine import cel_library

    assert cel_library._panic(PanicException()) == "cannot be evaluated"
    with pytest.raises(KeyboardInterrupt):
        cel_library._panic(KeyboardInterrupt())


def test_a_fault_on_a_later_line_has_its_character() -> None:
    """Positions count through the whole text."""
    with pytest.raises(Fault, match="at character 5"):
        program("1 +\n)")


def test_the_librarys_shell_is_not_loaded() -> None:
    """Its terminal libraries cost 0.2 s of every start."""
    code = "import coordinator.engine.cel_library, sys; print({'prompt_toolkit', 'cel.cli'} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "set()"
