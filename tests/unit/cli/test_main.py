"""The command line's own rules: usage, values, errors in words, tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from coordinator import schemas
from coordinator.cli import main as cli
from coordinator.cli.errors import Refused, explain, streamed_refusal
from coordinator.cli.options import Json, Url
from coordinator.cli.output import cell, print_command, print_rows, rows_of
from coordinator.cli.replay import Rate, Start
from coordinator.cli.watching import parse


def run(*arguments: str) -> int:
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return int(ended.value.code or 0)


@pytest.mark.parametrize("verb", [verb for verb in cli.VERBS if verb != "demo"])
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each verb of the table can be loaded and explains itself."""
    assert run(verb, "--help") == 0
    assert f"coordinator {verb}" in capsys.readouterr().out


def test_help_lists_the_verbs_without_loading_them() -> None:
    """Start-up stays quick: help and version import no HTTP client, no web server, no tables."""
    code = """
import sys
from coordinator.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print(sorted({"httpx", "rich", "uvicorn", "grpc", "aiokafka", "asyncio"} & set(sys.modules)))
"""
    for argument in ("--help", "--version"):
        out = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, check=True).stdout
        assert out.splitlines()[-1] == "[]"


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """--version names the program and its version."""
    assert run("--version") == 0
    assert capsys.readouterr().out == "coordinator 0.1.0\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["get"],
        ["get", "x", "--server", "nowhere"],
        ["submit"],
        ["submit", "T", "--payload", "{"],
        ["submit", "T", "--payload", '{"a": NaN}'],
        ["submit", "T", "--payload", "@/no/such/file"],
        ["submit", "T", "--wait", "soon"],
        ["submit", "T", "--attribute", "x"],
        ["submit", "T", "--definition", "/no/such/file"],
        ["list", "--state", "happy"],
        ["replay"],
        ["replay", "--service", "s", "--from", "yesterday"],
        ["replay", "--service", "s", "--rate", "fast"],
        ["replay", "--service", "s", "--to", "nowhere"],
        ["services", "breaker", "s", "ajar"],
        ["decide", "x"],
        ["decide", "x", "approve"],
        ["provide", "x", "otp"],
        ["provide", "x", "otp", "--payload", "{"],
        ["resolve", "x", "charge"],
        ["submit", "T", "--delay", "soon"],
        ["schema"],
        ["schema", "everything"],
        ["schema", "config", "--output", "/no/such/directory/x"],
        ["serve", "--http", "nowhere"],
        ["serve", "--config", "/no/such/file.toml"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake in the words is told on standard error, without a traceback."""
    assert run(*arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err
    assert "Traceback" not in told.err


def test_the_configuration_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """--print-config prints what would be used, and starts nothing."""
    assert run("serve", "--print-config", "--log", "kafka://h:1/t") == 0
    assert 'kind = "kafka"  # --log' in capsys.readouterr().out


def test_json_comes_as_text_or_from_a_file(tmp_path: Path) -> None:
    """``@FILE`` is a file's content."""
    (tmp_path / "p.json").write_text('{"a": [1]}')
    assert Json().convert('{"a": 1}', None, None) == {"a": 1}
    assert Json().convert(f"@{tmp_path}/p.json", None, None) == {"a": [1]}


@pytest.mark.parametrize("text", ["[" * 100_000, "", "{'a': 1}", "Infinity", "\ud800"])
def test_what_is_no_json_is_wrong_usage(text: str) -> None:
    """However odd, it is a sentence and not a traceback."""
    with pytest.raises(click.BadParameter):
        Json().convert(text if text != "\ud800" else '"', None, None)


@pytest.mark.parametrize("text", ["ftp://x", "http://", "x:1", "http://h:0", "http://h:99999", "http://[::1"])
def test_what_is_no_url_is_wrong_usage(text: str) -> None:
    """Only http and https, with a host."""
    with pytest.raises(click.BadParameter):
        Url().convert(text, None, None)


@pytest.mark.parametrize(("text", "rate"), [("100/s", 100), ("30/m", 0.5), ("7200/h", 2), ("0.5", 0.5)])
def test_a_rate_is_a_number_a_time(text: str, rate: float) -> None:
    """Seconds, if nothing else is said."""
    assert Rate().convert(text, None, None) == rate


@pytest.mark.parametrize("text", ["0/s", "x", "5/d", "-1/s", "1e9/s"])
def test_what_is_no_rate_is_wrong_usage(text: str) -> None:
    """None at all is no rate."""
    with pytest.raises(click.BadParameter):
        Rate().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("3:1841", "3:1841"),
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00+00:00"),
        ("2026-01-31", "2026-01-31T00:00:00+00:00"),
    ],
)
def test_a_replay_starts_at_a_position_or_a_time(text: str, start: str) -> None:
    """A time without a zone is UTC, as the times that are printed."""
    assert Start().convert(text, None, None) == start


def test_a_refusal_says_all_that_is_known() -> None:
    """Code, detail, legal states, and whether to try again."""
    told = explain(
        Refused(409, {"code": "illegal_state", "detail": "it has ended", "legal_states": ["running", "paused"]})
    )
    assert told == "illegal_state: it has ended\n  legal in the states: running, paused"
    told = explain(Refused(503, {"code": "suspended", "detail": "down", "services": ["stock"]}, 2.0))
    assert "services that are down: stock" in told
    assert "may be sent again in 2 s" in told
    faults = [{"path": "$.a", "fault": "missing"}, {"path": "$.b", "fault": "a number"}]
    assert "  $.b: a number" in explain(Refused(422, {"code": "invalid_payload", "detail": "x", "faults": faults}))


def test_a_refusal_within_a_stream_is_one_like_any_other() -> None:
    """It tells itself whether it may be retried."""
    refusal = streamed_refusal({"code": "stopping", "detail": "d", "retryable": True, "retry_after_ms": 500})
    assert (refusal.code, refusal.retryable, refusal.retry_after_s) == ("stopping", True, 0.5)
    assert not streamed_refusal({"code": "internal", "retryable": False}).retryable


def test_events_are_read_as_the_standard_has_it() -> None:
    """Comments, unknown fields, several data lines, ids that last, an event cut off by the end."""
    lines = [
        "retry: 1000", "", ": heartbeat", "", "id: 1:2", "event: step", "data: {", "data: }", "", "data:x", "",
        "data: cut",
    ]  # fmt: skip
    assert list(parse(lines)) == [("step", "1:2", "{\n}"), ("message", "1:2", "x")]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), ("", "-"), (0, "0"), (False, "false"), ({"a": "ü"}, '{"a": "ü"}'), ("\x1b[31m\nb", "\\x1b[31m\\nb")],
)  # fmt: skip
def test_a_cell_is_one_harmless_line(value: object, shown: str) -> None:
    """Text of others cannot drive the terminal."""
    assert cell(value) == shown


def test_a_table_in_a_pipe_is_never_folded(capsys: pytest.CaptureFixture[str]) -> None:
    """Long values stay on their line, so that grep finds them."""
    print_rows([{"id": "x" * 500, "state": "completed"}, {"id": "y", "state": None}])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "x" * 500 in lines[1]


def test_a_command_is_shown_with_its_steps(capsys: pytest.CaptureFixture[str]) -> None:
    """The fields that say something, and a table of the steps."""
    command: dict[str, Any] = {
        "id": "order-1", "type": "PlaceOrder", "version": 2, "state": "compensated", "result": None,
        "error": {"code": "declined", "message": "no money", "step": "charge"}, "waiting_for": [], "attributes": {},
        "steps": [{"name": "charge", "service": "payments", "state": "failed", "attempts": 1, "outcome": None,
                   "error": {"code": "declined", "message": "no money"}}],
        "submitted_at": "2026-01-01T00:00:00.000Z", "finished_at": None, "partition": 3, "position": "3:1841",
    }  # fmt: skip
    print_command(command)
    out = capsys.readouterr().out
    for part in ("order-1", "PlaceOrder v2", "declined in step charge: no money", "3:1841", "payments"):
        assert part in out
    assert "attributes" not in out


def test_a_list_is_found_alone_or_under_a_key() -> None:
    """Lists of the API stand either way."""
    assert rows_of([{"a": 1}]) == rows_of({"items": [{"a": 1}], "next": None}) == [{"a": 1}]
    assert rows_of({"next": None}) == []


@pytest.mark.parametrize("what", ["definition", "config"])
def test_schemas_are_printed_or_written(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same document on standard output and in a file."""
    assert run("schema", what) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == getattr(schemas, what)()
    assert run("schema", what, "--output", str(tmp_path / "schema.json")) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "schema.json").read_text() == printed
