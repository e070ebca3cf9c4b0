"""Operations on many commands, against a server that keeps its commands' states and counts what it is asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import click
import pytest

from coordinator.cli.main import main
from coordinator.engine.transitions import TRANSITIONS, legal_states
from coordinator.model.command import State

Row = dict[str, Any]


class Commands:
    """A coordinator that knows commands by id and operates on them, as the table of states allows.

    ``refusing`` is how often a command is refused for the moment; ``breaking`` are those where the connection breaks
    instead of an answer; ``late`` are commands that appear, newest, each time a page was read.
    """

    def __init__(self) -> None:
        self.commands: dict[str, Row] = {}
        self.letters: list[Row] = []
        self.refusing: dict[str, int] = {}
        self.breaking: set[str] = set()
        self.late: list[Row] = []
        self.asked: list[tuple[str, str, Row]] = []
        self.pages = 0
        self.at_once = self.at_once_max = 0
        self.gate: threading.Barrier | None = None
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                with server.lock:
                    status, body = server.read(unquote(url.path), {k: v[0] for k, v in parse_qs(url.query).items()})
                self._send(status, body)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                answer = server.operate(unquote(urlsplit(self.path).path), body)
                if answer is None:
                    self.close_connection = True
                else:
                    self._send(*answer)

            def _send(self, status: int, body: Any) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def add(self, id: str, type: str = "Order", state: str = "delayed", **attributes: str) -> None:
        """The newest command."""
        command = {"id": id, "type": type, "version": 1, "state": state, "attributes": attributes}
        self.commands = {id: command, **{other: row for other, row in self.commands.items() if other != id}}

    def read(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        if path == "/v1/dead-letters":
            return 200, self.letters
        if path != "/v1/commands":
            command = self.commands.get(path.removeprefix("/v1/commands/"))
            return (200, command) if command else _problem(404, "unknown_command")
        self.pages += 1
        wanted = {name.removeprefix("attribute."): value for name, value in query.items() if "attribute." in name}
        ids = list(self.commands)
        below = ids[ids.index(query["cursor"]) + 1 :] if "cursor" in query else ids
        found = [
            command
            for command in (self.commands[id] for id in below)
            if query.get("type") in (None, command["type"])
            and query.get("state") in (None, command["state"])
            and wanted.items() <= command["attributes"].items()
        ]
        page = [dict(command) for command in found[: int(query["limit"])]]
        more = len(found) > len(page)
        if self.late:
            new = self.late.pop()
            self.commands = {new["id"]: new, **self.commands}
        return 200, {"commands": page, "next_cursor": page[-1]["id"] if more else None, "incomplete": []}

    def operate(self, path: str, body: Row) -> tuple[int, Any] | None:
        id, operation = path.removeprefix("/v1/commands/").rsplit("/", 1)
        with self.lock:
            self.at_once += 1
            self.at_once_max = max(self.at_once_max, self.at_once)
        if self.gate is not None:
            self.gate.wait(20)
        with self.lock:
            self.at_once -= 1
            self.asked.append((id, operation, body))
            command = self.commands.get(id)
            if command is None:
                return _problem(404, "unknown_command")
            if id in self.breaking:
                return None
            if self.refusing.get(id, 0):
                self.refusing[id] -= 1
                return _problem(503, "no_owner", retry_after_ms=10)
            if (operation, command["state"]) != ("pause", "paused"):  # twice is once
                if operation not in TRANSITIONS[State(command["state"])]:
                    return _problem(409, "illegal_state", legal_states=legal_states(operation))
                command["state"] = TRANSITIONS[State(command["state"])][operation]
            return 200, command

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def _problem(status: int, code: str, **more: Any) -> tuple[int, Any]:
    return status, {"status": status, "code": code, "detail": f"because {code}", **more}


@pytest.fixture
def shop() -> Iterator[Commands]:
    """Three delayed orders and one that is done."""
    commands = Commands()
    commands.add("done", state="completed")
    for number in (1, 2, 3):
        commands.add(f"o-{number}", city="Porto" if number == 3 else "Lyon")
    yield commands
    commands.close()


@pytest.fixture
def run(shop: Commands, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a verb; its exit code, lines on standard output, and standard error."""

    def run(*arguments: str) -> tuple[int, list[str], str]:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--server", shop.url])
        out, told = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out.splitlines(), told

    return run


def states(shop: Commands) -> dict[str, str]:
    return {id: command["state"] for id, command in shop.commands.items()}


# ---------------------------------------------------------------- choosing


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        (["--type", "Order"], ["o-3", "o-2", "o-1"]),
        (["--state", "delayed"], ["o-3", "o-2", "o-1"]),
        (["--attribute", "city=Lyon"], ["o-2", "o-1"]),
        (["--type", "Order", "--attribute", "city=Porto"], ["o-3"]),
        (["--type", "Order", "--limit", "2"], ["o-3", "o-2"]),
        (["--type", "Nothing"], []),
    ],
    ids=" ".join,
)
def test_a_filter_chooses(shop: Commands, run: Any, arguments: list[str], ids: list[str]) -> None:
    """Newest first, all conditions together; what has ended is left out, and --limit counts what is touched."""
    code, lines, told = run("cancel", *arguments)
    assert code == 0
    assert [line.split()[:2] for line in lines] == [["done", id] for id in ids]
    assert sorted(id for id, _, _ in shop.asked) == sorted(ids)
    assert told == (f"{len(ids)} done\n" if ids else "nothing matches\n")


def test_ids_choose_too(shop: Commands, run: Any) -> None:
    """Several at once, each asked once however often it is given, with the reason and who asks."""
    code, lines, _ = run("pause", "o-1", "o-2", "o-1", "--reason", "audit", "--by", "ann")
    assert (code, lines) == (0, ["done         o-1  Order  paused", "done         o-2  Order  paused"])
    assert sorted(shop.asked, key=str) == [
        ("o-1", "pause", {"reason": "audit", "by": "ann"}),
        ("o-2", "pause", {"reason": "audit", "by": "ann"}),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        ["cancel"],
        ["cancel", "--limit", "5"],
        ["cancel", "--yes"],
        ["cancel", "o-1", "--type", "Order"],
        ["cancel", "o-1", "o-2", "--limit", "1"],
        ["cancel", "--state", "gone"],
        ["cancel", "--type", "Order", "--limit", "0"],
        ["cancel", "--attribute", "city"],
        ["requeue"],
        ["requeue", "o-1"],
        ["requeue", "o-1", "charge", "--type", "Order"],
        ["requeue", "--type", "Order", "--input", "{}"],
        ["requeue", "--limit", "3"],
    ],
    ids=" ".join,
)
def test_neither_and_both_are_wrong_usage(shop: Commands, run: Any, wrong: list[str]) -> None:
    """Never all commands for want of a word; nothing is asked of the server."""
    code, lines, told = run(*wrong)
    assert (code, lines, shop.asked, shop.pages) == (2, [], [], 0)
    assert "Error" in told


def test_all_pages_are_read_before_anything_is_asked(shop: Commands, run: Any) -> None:
    """Acting on a command takes it out of the list; commands that come meanwhile are not touched."""
    for number in range(250):
        shop.add(f"many-{number:03}", type="Many")
    shop.late = [{"id": f"late-{n}", "type": "Many", "state": "delayed", "attributes": {}} for n in range(2)]
    code, lines, told = run("cancel", "--type", "Many", "--state", "delayed")
    assert (code, len(lines), told) == (0, 250, "250 done\n")
    assert [line.split()[1] for line in lines] == [f"many-{number:03}" for number in reversed(range(250))]
    assert shop.pages == 3
    assert {state for id, state in states(shop).items() if id.startswith("late")} == {"delayed"}


def test_a_few_at_a_time(shop: Commands, run: Any) -> None:
    """Eight requests at once, and no more."""
    for number in range(12):
        shop.add(f"many-{number:02}", type="Many")
    shop.gate = threading.Barrier(4)
    assert run("cancel", "--type", "Many")[0] == 0
    assert 4 <= shop.at_once_max <= 8


# ---------------------------------------------------------------- a dry run, a confirmation


def test_a_dry_run_changes_nothing(shop: Commands, run: Any) -> None:
    """It lists what would be touched, with its state, and whether the operation is legal in it."""
    shop.add("p-1", state="paused")
    code, lines, told = run("retry", "--type", "Order", "--dry-run")
    assert (code, shop.asked) == (0, [])
    assert [line.split() for line in lines] == [
        ["id", "type", "state", "operation", "legal"],
        ["p-1", "Order", "paused", "retry", "no"],
        *([f"o-{number}", "Order", "delayed", "retry", "yes"] for number in (3, 2, 1)),
    ]
    assert told == "legal for 3 of 4; nothing was changed\n"


def test_a_dry_run_knows_that_twice_is_once(shop: Commands, run: Any) -> None:
    """What is paused already may be paused; the server says so, too."""
    shop.add("p-1", state="paused")
    code, lines, _ = run("pause", "p-1", "--dry-run", "--json")
    assert (code, json.loads(lines[0])["legal"]) == (0, True)
    assert run("pause", "p-1", "o-1")[0] == 0


def test_a_dry_run_for_programs(shop: Commands, run: Any) -> None:
    """One object a line; an end that is asked for by name is in it, and nothing is legal there."""
    code, lines, _ = run("cancel", "--state", "completed", "--dry-run", "--json")
    assert code == 0
    assert [json.loads(line) for line in lines] == [
        {"id": "done", "type": "Order", "state": "completed", "operation": "cancel", "legal": False}
    ]


def test_a_dry_run_of_ids_looks_each_up(shop: Commands, run: Any) -> None:
    """One id too; an unknown one is told, and the exit code is 1."""
    code, lines, _ = run("retry", "o-1", "--dry-run", "--json")
    assert (code, [json.loads(line)["legal"] for line in lines]) == (0, [True])
    code, lines, told = run("retry", "o-1", "nobody", "--dry-run", "--json")
    assert (code, len(lines), "unknown_command" in told) == (1, 1, True)
    assert shop.asked == []


@pytest.mark.parametrize(("answer", "code"), [(True, 0), (False, 1)])
def test_a_person_is_asked(shop: Commands, run: Any, monkeypatch: pytest.MonkeyPatch, answer: bool, code: int) -> None:
    """On a terminal a filter's findings are confirmed; no is no, and is told."""
    asked: list[str] = []

    def confirm(text: str, **_: Any) -> bool:
        asked.append(text)
        return answer

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr(click, "confirm", confirm)
    ended, _, told = run("cancel", "--type", "Order")
    assert (ended, asked) == (code, ["cancel 3 commands (3 delayed)?"])
    assert len(shop.asked) == (3 if answer else 0)
    assert ("nothing was changed" in told) is not answer


@pytest.mark.parametrize("arguments", [["--type", "Order", "--yes"], ["o-1", "o-2"], ["--type", "Nothing"]])
def test_nobody_is_asked_needlessly(
    shop: Commands, run: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """--yes, ids that were typed, nothing found."""
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr(click, "confirm", lambda *_, **__: pytest.fail("asked"))
    assert run("cancel", *arguments)[0] == 0


# ---------------------------------------------------------------- how each ends


def test_refusals_are_told_and_the_others_go_on(shop: Commands, run: Any) -> None:
    """Exit 1; each line says why."""
    shop.add("p-1", state="paused")
    code, lines, told = run("retry", "--type", "Order")
    assert (code, told) == (1, "1 refused, 3 done\n")
    assert lines[0] == "refused      p-1  Order  paused  illegal_state: because illegal_state"
    assert states(shop) == {"p-1": "paused", "o-3": "running", "o-2": "running", "o-1": "running", "done": "completed"}
    code, lines, _ = run("retry", "p-1", "nobody", "--json")
    assert code == 1
    assert [json.loads(line) for line in lines] == [
        {
            "id": id, "type": None, "state": None, "status": "refused",
            "error": {"code": code, "detail": f"because {code}"},
        }
        for id, code in (("p-1", "illegal_state"), ("nobody", "unknown_command"))
    ]  # fmt: skip


def test_a_refusal_for_the_moment_is_asked_again(shop: Commands, run: Any) -> None:
    """A partition that changes hands has an owner soon."""
    shop.refusing["o-2"] = 2
    code, lines, _ = run("cancel", "--type", "Order", "--json")
    assert (code, [json.loads(line)["status"] for line in lines]) == (0, ["done"] * 3)
    assert len(shop.asked) == 5


def test_patience_has_an_end(shop: Commands, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is a refusal like any other."""
    monkeypatch.setattr("coordinator.cli.bulk.PATIENCE_S", 0.0)
    shop.refusing["o-2"] = 1
    code, lines, _ = run("cancel", "o-1", "o-2")
    assert (code, [line.split()[0] for line in lines]) == (1, ["done", "refused"])


def test_a_broken_connection_is_neither(shop: Commands, run: Any) -> None:
    """What is not known is not called done, and not asked again unasked."""
    shop.breaking.add("o-2")
    code, lines, told = run("cancel", "o-1", "o-2")
    assert (code, lines[1].split()[0], told) == (1, "unknown", "1 done, 1 unknown\n")
    assert len(shop.asked) == 2


def test_a_server_that_is_gone_ends_it_with_3(shop: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    """The rest is not tried one by one."""
    with pytest.raises(SystemExit) as ended:
        main(["cancel", *(f"o-{number}" for number in range(30)), "--server", "http://127.0.0.1:9"])
    out, told = capsys.readouterr()
    assert (ended.value.code, out.count("not reached"), told) == (3, 30, "30 not reached\n")


# ---------------------------------------------------------------- dead letters


@pytest.fixture
def parked(shop: Commands) -> Commands:
    """Two orders with a parked step each, one poisoned, and an invoice."""
    shop.letters = [
        {"command_id": "o-1", "type": "Order", "state": "dead_letter", "step": "charge", "service": "payments"},
        {"command_id": "o-2", "type": "Order", "state": "dead_letter", "step": "ship", "service": "shipping"},
        {"command_id": "o-3", "type": "Order", "state": "dead_letter", "step": ""},  # its code raised something
        {"command_id": "i-1", "type": "Invoice", "state": "dead_letter", "step": "charge", "service": "payments"},
    ]
    for letter in reversed(shop.letters):
        shop.add(letter["command_id"], type=letter["type"], state="dead_letter")
    return shop


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        ([], ["o-1", "o-2", "o-3", "i-1"]),
        (["--type", "Order"], ["o-1", "o-2", "o-3"]),
        (["--step", "charge"], ["o-1", "i-1"]),
        (["--service", "payments", "--type", "Invoice"], ["i-1"]),
        (["--service", "nothing"], []),
    ],
    ids=" ".join,
)
def test_dead_letters_are_filtered(parked: Commands, run: Any, arguments: list[str], ids: list[str]) -> None:
    """By type, step and service."""
    code, lines, _ = run("dead-letters", *arguments, "--json")
    assert (code, [row["command_id"] for row in json.loads(lines[0])]) == (0, ids)


def test_steps_that_hold_are_found_by_the_name_of_the_step(shop: Commands, run: Any) -> None:
    """A step that had no answer to fail by waits as ``failed:NAME``, the condition of a block as ``failed:NAME/in``."""
    names = ["failed:otp", "failed:otp#2", "failed:otp/in", "failed:other", "savepoint:otp"]
    shop.letters = [
        {"command_id": str(index), "type": "Order", "state": "dead_letter", "step": name}
        for index, name in enumerate(names)
    ]
    _, lines, _ = run("dead-letters", "--step", "otp", "--json")
    assert [row["step"] for row in json.loads(lines[0])] == names[:3]


def test_dead_letters_are_requeued_by_filter(parked: Commands, run: Any) -> None:
    """Each step is named; where the command's own code was parked, it is a retry."""
    code, lines, _ = run("requeue", "--type", "Order", "--by", "ann", "--reason", "fixed")
    assert (code, [line.split()[:3] for line in lines]) == (
        0, [["done", "o-1", "charge"], ["done", "o-2", "ship"], ["done", "o-3", "Order"]],
    )  # fmt: skip
    why = {"reason": "fixed", "by": "ann"}
    assert sorted(parked.asked, key=str) == [
        ("o-1", "requeue", {"step": "charge", **why}),
        ("o-2", "requeue", {"step": "ship", **why}),
        ("o-3", "retry", why),
    ]


def test_a_dry_run_lists_dead_letters(parked: Commands, run: Any) -> None:
    """With their steps, and what would be asked."""
    code, lines, _ = run("requeue", "--service", "payments", "--dry-run", "--json")
    assert (code, parked.asked) == (0, [])
    assert [json.loads(line) for line in lines] == [
        {
            "id": id, "type": type, "step": "charge", "state": "dead_letter", "operation": "requeue", "legal": True,
        }
        for id, type in (("o-1", "Order"), ("i-1", "Invoice"))
    ]  # fmt: skip
