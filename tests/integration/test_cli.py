"""The verbs against a server that keeps the contract of API.md, and one that breaks off where it hurts.

The server is scripted: each test says what it answers to which request, so that lost connections, refusals and streams
that end half way come exactly where they are wanted.  `test_cli_daemon` runs the verbs against the real daemon.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from coordinator.cli.main import main

Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]] | str | None
"""Status, JSON (or text, or NDJSON lines in a list of str) and headers; None or text: cut off (after the text)."""


class Request:
    """What the server was asked."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        self.method, self.path = handler.command, url.path
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.headers = {name.lower(): value for name, value in handler.headers.items()}
        self.text = handler.rfile.read(int(self.headers.get("content-length", 0))).decode()

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Server:
    """Answers each request with the next of `script`, or with the last one for ever; remembers what it was asked."""

    def __init__(self) -> None:
        self.script: list[Answer | Callable[[Request], Answer]] = []
        self.asked: list[Request] = []
        self.changed = threading.Condition()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def _serve(self) -> None:
                request = Request(self)
                with server.changed:
                    server.asked.append(request)
                    step = server.script[min(len(server.asked), len(server.script)) - 1]
                    server.changed.notify_all()
                answer = step(request) if callable(step) else step
                if answer is None or isinstance(answer, str):
                    if answer:
                        self.send_response(200)
                        self.send_header("transfer-encoding", "chunked")
                        self.end_headers()
                        self.wfile.write(b"%x\r\n%b\r\n" % (len(answer.encode()), answer.encode()))
                    self.close_connection = True
                    return
                status, body, *more = answer
                content = body if isinstance(body, str) else json.dumps(body)
                self.send_response(status)
                for name, value in (more[0] if more else {}).items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content.encode())))
                self.end_headers()
                self.wfile.write(content.encode())

            do_GET = do_POST = do_PUT = _serve

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def answers(self, *script: Answer | Callable[[Request], Answer]) -> None:
        self.script, self.asked = list(script), []

    def wait_until_asked(self, times: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.asked) >= times, 20)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    """A scripted coordinator."""
    scripted = Server()
    yield scripted
    scripted.close()


@pytest.fixture
def target() -> Iterator[Server]:
    """A scripted service that outcomes are replayed to."""
    scripted = Server()
    yield scripted
    scripted.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pauses between attempts are settings; here they are short.  Signal handlers are put back."""
    monkeypatch.setattr("coordinator.cli.commands.PAUSE_S", 0.01)
    monkeypatch.setattr("coordinator.cli.watching.PAUSE_S", 0.01)
    monkeypatch.setattr("coordinator.cli.replay.PAUSE_S", (0.01, 0.05))
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


class Ran:
    """What a verb printed and how it ended."""

    capsys: ClassVar[pytest.CaptureFixture[str]]

    def __init__(self, *arguments: str) -> None:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        self.code = int(ended.value.code or 0)
        self.out, self.err = self.capsys.readouterr()


@pytest.fixture(autouse=True)
def captured(capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed goes into `Ran`."""
    Ran.capsys = capsys


def command(state: str = "completed", **more: Any) -> dict[str, Any]:
    return {
        "id": "order-1", "type": "PlaceOrder", "version": 1, "state": state, "result": {"receipt": "r-9"},
        "error": None, "steps": [], "waiting_for": [], "attributes": {}, "submitted_at": "2026-01-01T00:00:00.000Z",
        "finished_at": None, "partition": 0, "position": "0:7", **more,
    }  # fmt: skip


def problem(status: int, code: str, **more: Any) -> tuple[int, Any, dict[str, str]]:
    body = {"type": "x", "title": "t", "status": status, "detail": f"because {code}", "code": code, **more}
    return status, body, {"content-type": "application/problem+json"}


# ---------------------------------------------------------------- submit, get, list


def test_submit_sends_what_was_typed(server: Server) -> None:
    """Type, payload, attributes, deadline; an id is made here, so that a retry is safe."""
    server.answers((202, command("running")))
    ran = Ran(
        "submit",
        "PlaceOrder",
        "--payload",
        '{"a": 1}',
        "--attribute",
        "k=v",
        "--timeout",
        "90s",
        "--server",
        server.url,
    )
    assert ran.code == 0
    (asked,) = server.asked
    sent = asked.json
    assert len(sent.pop("id")) == 32
    assert sent == {"type": "PlaceOrder", "payload": {"a": 1}, "attributes": {"k": "v"}, "timeout": "90s"}
    assert (asked.method, asked.path, asked.query) == ("POST", "/v1/commands", {})
    assert "order-1" in ran.out


def test_json_is_for_programs(server: Server) -> None:
    """One line of JSON, the server's own."""
    server.answers((200, command()))
    assert json.loads(Ran("get", "order-1", "--json", "--server", server.url).out) == command()


def test_the_server_can_come_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """COORDINATOR_SERVER saves the flag."""
    monkeypatch.setenv("COORDINATOR_SERVER", server.url)
    server.answers((200, command()))
    assert Ran("get", "order-1").code == 0


def test_an_id_may_hold_any_character(server: Server) -> None:
    """Ids are escaped in the path."""
    server.answers((200, command()))
    assert Ran("get", "a?b#c%2Fä", "--server", server.url).code == 0
    assert server.asked[0].path == "/v1/commands/a%3Fb%23c%252F%C3%A4"


@pytest.mark.parametrize(
    ("state", "code"),
    [("completed", 0), ("running", 0), ("delayed", 0), ("compensated", 1), ("failed", 1), ("aborted", 1)],
)
def test_the_exit_code_tells_how_the_command_ended(server: Server, state: str, code: int) -> None:
    """1 when it ended otherwise than completed."""
    server.answers((200, command(state)))
    assert Ran("get", "order-1", "--server", server.url).code == code
    assert Ran("submit", "T", "--server", server.url).code == code


def test_a_server_that_is_not_there_is_3() -> None:
    """Nobody listens: exit 3, and the address is named."""
    ran = Ran("get", "x", "--server", "http://127.0.0.1:9")
    assert ran.code == 3
    assert "no server at http://127.0.0.1:9" in ran.err


def test_a_refusal_is_told_in_words(server: Server) -> None:
    """Code, detail, legal states; exit 1; no traceback."""
    server.answers(problem(409, "illegal_state", legal_states=["running"]))
    ran = Ran("pause", "order-1", "--server", server.url)
    assert ran.code == 1
    assert ran.err.startswith("coordinator: illegal_state: because illegal_state\n  legal in the states: running")


def test_something_else_on_the_port_is_told(server: Server) -> None:
    """A web server that knows nothing of commands is no coordinator."""
    server.answers((200, "<html>"))
    ran = Ran("get", "x", "--server", server.url)
    assert (ran.code, "is no coordinator" in ran.err) == (3, True)


def test_without_wait_a_refusal_is_final(server: Server) -> None:
    """The caller decides, and is told that it may try again."""
    server.answers(problem(503, "suspended", services=["stock"], retry_after_ms=1500))
    ran = Ran("submit", "T", "--server", server.url)
    assert (ran.code, len(server.asked)) == (1, 1)
    assert "services that are down: stock" in ran.err
    assert "may be sent again in 1.5 s" in ran.err


def test_submit_with_wait_outlasts_refusals_and_lost_connections(server: Server) -> None:
    """The same id each time, until the command has ended."""
    refused = problem(429, "limit_reached", retry_after_ms=10)
    server.answers(refused, None, (202, command("running")), (200, command()))
    assert Ran("submit", "T", "--wait", "20s", "--server", server.url).code == 0
    assert len(server.asked) == 4
    assert len({asked.json["id"] for asked in server.asked}) == 1


def test_submit_with_wait_does_not_repeat_what_is_wrong(server: Server) -> None:
    """A refusal that cannot be retried ends it at once."""
    server.answers(problem(409, "id_conflict"))
    assert Ran("submit", "T", "--wait", "20s", "--server", server.url).code == 1
    assert len(server.asked) == 1


def test_get_waits_on_through_the_servers_own_limit(server: Server) -> None:
    """A server that answers early is asked again."""
    server.answers((200, command("running")), (200, command("running")), (200, command()))
    assert Ran("get", "order-1", "--wait", "20s", "--server", server.url).code == 0
    assert len(server.asked) == 3
    assert server.asked[0].query["wait"].endswith("ms") or server.asked[0].query["wait"].endswith("s")


def test_list_reads_as_many_pages_as_it_needs(server: Server) -> None:
    """Filters and limit go to the server; the cursor leads on."""
    page = [command(id=f"c{number}") for number in range(100)]
    server.answers((200, {"commands": page, "next_cursor": "k1"}), (200, {"commands": page[:20], "next_cursor": "k2"}))
    ran = Ran("list", "--limit", "120", "--state", "completed", "--attribute", "a=b", "--json", "--server", server.url)
    assert len(json.loads(ran.out)["commands"]) == 120
    assert server.asked[0].query == {"limit": "100", "state": "completed", "attribute.a": "b"}
    assert server.asked[1].query == {"limit": "20", "state": "completed", "attribute.a": "b", "cursor": "k1"}


def test_a_reader_that_has_seen_enough_is_no_fault(server: Server) -> None:
    """``coordinator list | head -1`` ends quietly."""
    server.answers((200, {"commands": [command(id="x" * 1000)] * 1000, "next_cursor": None}))
    verb = subprocess.Popen(
        [sys.executable, "-m", "coordinator", "list", "--limit", "1000", "--json", "--server", server.url],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert verb.stdout is not None
    verb.stdout.close()
    assert verb.stderr is not None
    with verb.stderr as stderr:
        told = stderr.read()
    assert (verb.wait(20), told) == (0, b"")


# ---------------------------------------------------------------- controls, definitions, operation


def test_controls_say_why_and_by_whom(server: Server) -> None:
    """The reason and the asker are for the history."""
    server.answers((200, command("compensating")))
    ran = Ran("cancel", "order-1", "--reason", "changed my mind", "--by", "ann", "--server", server.url)
    assert ran.code == 0
    assert server.asked[0].path == "/v1/commands/order-1/cancel"
    assert server.asked[0].json == {"reason": "changed my mind", "by": "ann"}


def test_requeue_replaces_the_input_only_if_told(server: Server) -> None:
    """``--input null`` is an input; no --input is none."""
    server.answers((200, command("running")))
    assert Ran("requeue", "order-1", "charge", "--by", "", "--server", server.url).code == 0
    assert Ran("requeue", "order-1", "charge", "--by", "", "--input", "null", "--server", server.url).code == 0
    assert server.asked[0].json == {"step": "charge", "reason": "", "by": ""}
    assert server.asked[1].json == {"step": "charge", "reason": "", "by": "", "input": None}


def test_a_definition_is_registered_under_its_name(server: Server, tmp_path: Any) -> None:
    """Name and version come from the file or from flags."""
    file = tmp_path / "d.json"
    file.write_text('{"name": "order", "version": 1, "steps": []}')
    server.answers((201, {"name": "order", "version": 1, "created": True}))
    assert Ran("definitions", "put", str(file), "--version", "2", "--server", server.url).code == 0
    assert (server.asked[0].method, server.asked[0].path) == ("PUT", "/v1/definitions/order/2")
    assert server.asked[0].json["version"] == 2


def test_the_newest_definition_is_the_default(server: Server) -> None:
    """Without a version the list tells which is the newest."""
    listed = [{"name": "order", "version": 1}, {"name": "order", "version": 3}, {"name": "other", "version": 9}]
    server.answers((200, listed), (200, {"name": "order"}))
    assert Ran("definitions", "get", "order", "--server", server.url).code == 0
    assert server.asked[1].path == "/v1/definitions/order/3"
    server.answers((200, listed))
    assert Ran("definitions", "get", "none", "--server", server.url).code == 1


@pytest.mark.parametrize(
    ("verb", "path", "answer", "shown"),
    [
        (["services"], "/v1/services", [{"name": "stock", "breaker": "open"}], "stock"),
        (["dead-letters"], "/v1/dead-letters", [{"command_id": "order-1", "step": "charge"}], "charge"),
        (["cluster"], "/v1/cluster", {"name": "shop", "partitions": [{"partition": 0, "epoch": 17}]}, "17"),
        (
            ["history", "a"],
            "/v1/commands/a/history",
            [{"kind": "submitted", "position": "0:1", "at": "…Z"}],
            "submitted",
        ),
        (["explain", "a"], "/v1/commands/a/explain", {"id": "a", "summary": "waits for stock"}, "waits for stock"),
        (["diagram", "a"], "/v1/commands/a/diagram", "flowchart TD\n", "flowchart TD"),
        (["definitions", "list"], "/v1/definitions", [{"name": "order", "version": 1}], "order"),
        (["definitions", "diagram", "order", "1"], "/v1/definitions/order/1/diagram", "flowchart TD\n", "flowchart"),
    ],
)
def test_what_can_be_looked_at(server: Server, verb: list[str], path: str, answer: Any, shown: str) -> None:
    """Each verb asks its own path and prints what comes."""
    server.answers((200, answer))
    ran = Ran(*verb, "--server", server.url)
    assert (ran.code, server.asked[0].path) == (0, path)
    assert shown in ran.out


def test_a_breaker_is_set_by_hand(server: Server) -> None:
    """open, closed or auto."""
    server.answers((200, {"name": "stock", "breaker": "open"}))
    assert Ran("services", "breaker", "stock", "open", "--server", server.url).code == 0
    assert (server.asked[0].path, server.asked[0].json) == ("/v1/services/stock/breaker", {"state": "open"})


# ---------------------------------------------------------------- what people and programs answer


@pytest.mark.parametrize(("flag", "approve"), [("--approve", True), ("--reject", False)])
def test_a_decision_names_who_and_why(server: Server, flag: str, approve: bool) -> None:
    """The step's own name goes into the path, a second round's too; roles only where they are given."""
    server.answers((200, command("running")))
    who = ["--by", "ann", "--comment", "fine", "--role", "boss", "--role", "cfo"]
    assert Ran("decide", "order-1", "approve#2", flag, *who, "--server", server.url).code == 0
    assert (server.asked[0].method, server.asked[0].path) == ("POST", "/v1/commands/order-1/decisions/approve%232")
    assert server.asked[0].json == {"approve": approve, "by": "ann", "comment": "fine", "roles": ["boss", "cfo"]}
    assert Ran("decide", "order-1", "approve", flag, "--by", "ann", "--server", server.url).code == 0
    assert server.asked[1].json == {"approve": approve, "by": "ann", "comment": ""}


def test_who_decides_is_the_user_unless_it_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for every operator's request."""
    monkeypatch.setattr("getpass.getuser", lambda: "bob")
    server.answers((200, command("running")))
    for verb in (["decide", "a", "b", "--approve"], ["resolve", "a", "b", "--reason", "c"], ["pause", "a"]):
        assert Ran(*verb, "--server", server.url).code == 0
        assert server.asked[-1].json["by"] == "bob"


def test_a_refused_decision_tells_who_may(server: Server) -> None:
    """403 lists the roles."""
    server.answers(problem(403, "forbidden", roles=["boss", "cfo"]))
    ran = Ran("decide", "order-1", "approve", "--approve", "--server", server.url)
    assert ran.code == 1
    assert ran.err == "coordinator: forbidden: because forbidden\n  roles that may: boss, cfo\n"


def test_decisions_are_listed_with_their_input(server: Server) -> None:
    """For people a table; for programs what the server says; what may be missing is told."""
    waiting = {
        "command_id": "order-1", "type": "PlaceOrder", "step": "approve", "input": {"amount": 5}, "roles": ["boss"],
        "since": "2026-01-01T00:00:00.000Z", "timeout_at": "2026-01-02T00:00:00.000Z", "on_timeout": "reject",
        "attributes": {},
    }  # fmt: skip
    open_to_all = {**waiting, "step": "review", "roles": [], "timeout_at": None}
    server.answers((200, [waiting, open_to_all], {"coordinator-incomplete": "3,5"}))
    ran = Ran("decisions", "--server", server.url)
    assert (ran.code, server.asked[0].path) == (0, "/v1/decisions")
    head, first, second = ran.out.splitlines()
    assert head.split() == ["command", "type", "step", "input", "roles", "since", "timeout"]
    for shown in ("order-1", "approve", '{"amount": 5}', "boss", "2026-01-02T00:00:00.000Z (reject)"):
        assert shown in first
    assert second.split()[-3:] == ["anybody", "2026-01-01T00:00:00.000Z", "-"]
    assert ran.err == "decisions of partitions 3, 5 may be missing: ask again in a moment\n"
    assert json.loads(Ran("decisions", "--json", "--server", server.url).out) == [waiting, open_to_all]
    server.answers((200, []))
    ran = Ran("decisions", "--server", server.url)
    assert (ran.code, ran.out, ran.err) == (0, "", "no decisions are waited for\n")


@pytest.mark.parametrize("value", ["null", "0", '"text"', '{"code": "1234"}', "[]"])
def test_data_is_provided_as_it_is(server: Server, value: str) -> None:
    """Any JSON value is the body; its signal id makes a repetition count once."""
    server.answers((200, command("running")))
    words = ["--payload", value, "--by", "ann"]
    assert Ran("provide", "order-1", "otp", *words, "--signal-id", "s 1", "--server", server.url).code == 0
    asked = server.asked[0]
    assert (asked.method, asked.path, asked.json) == ("POST", "/v1/commands/order-1/data/otp", json.loads(value))
    assert asked.query == {"signal_id": "s 1", "by": "ann"}
    assert Ran("provide", "order-1", "otp", *words, "--server", server.url).code == 0
    assert server.asked[1].query == {"by": "ann"}


def test_data_may_come_from_a_file(server: Server, tmp_path: Any) -> None:
    """@FILE, as for a payload."""
    (tmp_path / "otp.json").write_text('{"code": "1234"}')
    server.answers((200, command("running")))
    assert Ran("provide", "a", "otp", "--payload", f"@{tmp_path / 'otp.json'}", "--server", server.url).code == 0
    assert server.asked[0].json == {"code": "1234"}


def test_an_undo_is_resolved_with_a_reason(server: Server) -> None:
    """Who mended it by hand, and how."""
    server.answers((200, command("compensating")))
    why = ["--reason", "refunded by bank transfer", "--by", "ann"]
    assert Ran("resolve", "order-1", "charge", *why, "--server", server.url).code == 0
    assert server.asked[0].path == "/v1/commands/order-1/resolve"
    assert server.asked[0].json == {"step": "charge", "reason": "refunded by bank transfer", "by": "ann"}


def test_a_command_may_begin_later(server: Server) -> None:
    """--delay goes along as a duration."""
    server.answers((202, command("waiting", waiting_for=["start"])))
    assert Ran("submit", "T", "--delay", "10m", "--server", server.url).code == 0
    assert server.asked[0].json["delay"] == "10m"


def test_an_editors_schema_is_not_sent(server: Server, tmp_path: Any) -> None:
    """``$schema`` in a definition's file is for the editor."""
    file = tmp_path / "d.json"
    file.write_text('{"$schema": "definition.schema.json", "name": "d", "version": 1, "steps": []}')
    server.answers((201, {}), (202, command("running")))
    assert Ran("definitions", "put", str(file), "--server", server.url).code == 0
    assert Ran("submit", "--definition", str(file), "--server", server.url).code == 0
    assert server.asked[0].json == {"name": "d", "version": 1, "steps": []}
    assert server.asked[1].json["definition"] == {"name": "d", "version": 1, "steps": []}


# ---------------------------------------------------------------- watch


def sse(kind: str, position: str = "", **data: Any) -> str:
    place = f"id: {position}\n" if position else ""
    return (
        f"{place}event: {kind}\ndata: {json.dumps({'kind': kind, 'id': 'order-1', 'position': position, **data})}\n\n"
    )


def test_watch_goes_on_where_the_connection_broke(server: Server) -> None:
    """Every event once, the last one seen is named at the next attempt, and the end gives the exit code."""
    server.answers(
        sse("accepted", "0:1") + sse("step", "0:2", record={"kind": "outcome", "step": "reserve"}),
        problem(503, "starting", retry_after_ms=10),
        sse("error", error={"code": "stopping", "detail": "d", "retryable": True, "retry_after_ms": 10}),
        sse("step", "0:3", record={"kind": "outcome", "step": "charge"}) + sse("final", "0:4", view=command("failed")),
    )
    ran = Ran("watch", "order-1", "--json", "--server", server.url)
    assert ran.code == 1
    assert [json.loads(line)["position"] for line in ran.out.splitlines()] == ["0:1", "0:2", "0:3", "0:4"]
    assert [asked.headers.get("last-event-id") for asked in server.asked] == [None, "0:2", "0:2", "0:2"]


def test_watch_prints_a_line_an_event(server: Server) -> None:
    """For people: time, position, kind, step."""
    record = {"kind": "outcome", "step": "reserve", "at": "2026-01-01T00:00:00.000Z"}
    server.answers(sse("step", "0:2", record=record) + sse("final", "0:4", view=command()))
    ran = Ran("watch", "order-1", "--server", server.url)
    assert ran.code == 0
    assert ran.out.splitlines()[0] == "2026-01-01T00:00:00.000Z  0:2  outcome  reserve"
    assert "completed" in ran.out.splitlines()[1]


def test_watch_of_nothing_is_refused(server: Server) -> None:
    """An unknown command is told at once."""
    server.answers(problem(404, "unknown_command"))
    ran = Ran("watch", "order-1", "--server", server.url)
    assert (ran.code, len(server.asked)) == (1, 1)


# ---------------------------------------------------------------- replay


def outcome(position: str, **more: Any) -> dict[str, Any]:
    return {
        "position": position, "service": "stock", "command_id": f"order-{position}", "type": "PlaceOrder",
        "step": "reserve", "outcome": {"id": position}, "at": "2026-01-01T00:00:00.000Z", **more,
    }  # fmt: skip


def lines(*items: dict[str, Any]) -> str:
    return "".join(json.dumps(item) + "\n" for item in items)


def test_replay_prints_outcomes_as_they_were_recorded(server: Server) -> None:
    """NDJSON on standard output, counts on standard error."""
    text = lines(outcome("0:3"), outcome("1:2"))
    server.answers((200, text))
    ran = Ran("replay", "--service", "stock", "--from", "0:3", "--server", server.url)
    assert (ran.code, ran.out) == (0, text)
    assert "sent 2, accepted 2, refused 0, skipped 0; last position 1:2" in ran.err
    assert server.asked[0].query == {"service": "stock", "from": "0:3"}


def test_a_lost_stream_is_taken_up_again_without_doubles(server: Server) -> None:
    """`from` is inclusive, so what was seen comes again and is left out; an error line is a lost connection, too."""
    error = {"error": {"code": "log_unavailable", "detail": "d", "retryable": True, "retry_after_ms": 10}}
    server.answers(
        lines(outcome("0:3"), outcome("0:5")),
        (200, lines(outcome("0:5"), outcome("0:9"), error)),
        (200, lines(outcome("0:9"), outcome("1:1"))),
    )
    ran = Ran("replay", "--service", "stock", "--server", server.url)
    assert [json.loads(line)["position"] for line in ran.out.splitlines()] == ["0:3", "0:5", "0:9", "1:1"]
    assert [asked.query.get("from") for asked in server.asked] == [None, "0:5", "0:9"]


def test_a_resumed_time_still_holds(server: Server) -> None:
    """After a lost connection the stream is asked for by position; what is older than the time stays left out."""
    early, late = "2025-12-31T00:00:00.000Z", "2026-01-02T00:00:00.000Z"
    server.answers(
        lines(outcome("0:3", at=late)),
        (200, lines(outcome("0:3", at=late), outcome("1:1", at=early), outcome("1:2", at=late))),
    )
    ran = Ran("replay", "--service", "stock", "--from", "2026-01-01T00:00:00Z", "--server", server.url)
    assert [json.loads(line)["position"] for line in ran.out.splitlines()] == ["0:3", "1:2"]
    assert server.asked[0].query["from"] == "2026-01-01T00:00:00+00:00"


def test_replay_posts_each_with_its_key(server: Server, target: Server) -> None:
    """The service gets the outcome under the key it was first asked with, and is told that it is a replay."""
    server.answers((200, lines(outcome("0:3"), outcome("0:5"))))
    target.answers((200, {}))
    ran = Ran("replay", "--service", "stock", "--to", f"{target.url}/rebuild", "--server", server.url)
    assert (ran.code, ran.out) == (0, "")
    assert [asked.json for asked in target.asked] == [outcome("0:3"), outcome("0:5")]
    first = target.asked[0]
    assert (first.method, first.path, first.headers["content-type"]) == ("POST", "/rebuild", "application/json")
    assert first.headers["idempotency-key"] == "order-0:3/reserve"
    assert (first.headers["coordinator-replay"], first.headers["coordinator-position"]) == ("true", "0:3")


def test_an_unknown_answer_is_repeated_until_it_is_known(server: Server, target: Server) -> None:
    """Lost connections, 5xx and 429 do not count as answers; the key stays the same."""
    server.answers((200, lines(outcome("0:3"))))
    target.answers(None, (500, {}), (429, {}, {"retry-after": "0"}), (201, {}))
    ran = Ran("replay", "--service", "stock", "--to", target.url, "--server", server.url)
    assert ran.code == 0
    assert len(target.asked) == 4
    assert {asked.headers["idempotency-key"] for asked in target.asked} == {"order-0:3/reserve"}
    assert "sent 1, accepted 1, refused 0" in ran.err


def test_a_refused_outcome_is_counted_and_told(server: Server, target: Server) -> None:
    """The others are delivered all the same; exit 1."""
    server.answers((200, lines(outcome("0:3"), outcome("0:5"))))
    target.answers((422, {"why": "no such product"}), (200, {}))
    ran = Ran("replay", "--service", "stock", "--to", target.url, "--server", server.url)
    assert ran.code == 1
    assert "0:3 refused: HTTP 422" in ran.err
    assert "sent 2, accepted 1, refused 1, skipped 0" in ran.err


def test_a_dry_run_delivers_nothing(server: Server, target: Server) -> None:
    """It counts."""
    server.answers((200, lines(outcome("0:3"), outcome("0:5"))))
    ran = Ran("replay", "--service", "stock", "--to", target.url, "--dry-run", "--server", server.url)
    assert (ran.code, target.asked) == (0, [])
    assert "sent 0, accepted 0, refused 0, skipped 2; last position 0:5" in ran.err


def test_a_target_that_is_gone_for_good_ends_it(server: Server) -> None:
    """After --give-up-after; what was not delivered is told, with the words to go on."""
    server.answers((200, lines(outcome("0:3"))))
    arguments = ["--service", "stock", "--to", "http://127.0.0.1:9", "--give-up-after", "50ms"]
    ran = Ran("replay", *arguments, "--server", server.url)
    assert ran.code == 3
    assert "gave no answer to 0:3" in ran.err


def test_an_unknown_service_is_refused(server: Server) -> None:
    """The server knows which there are."""
    server.answers(problem(404, "unknown_service"))
    assert Ran("replay", "--service", "x", "--server", server.url).code == 1


def test_the_rate_is_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two outcomes the verb sleeps as long as the rate asks for."""
    now, slept = [100.0], list[float]()

    def sleep(seconds: float) -> None:
        slept.append(round(seconds, 6))
        now[0] += seconds

    monkeypatch.setattr("coordinator.cli.replay.time.monotonic", lambda: now[0])
    monkeypatch.setattr("coordinator.cli.replay.time.sleep", sleep)
    server.answers((200, lines(*(outcome(f"0:{number}") for number in range(5)))))
    assert Ran("replay", "--service", "stock", "--rate", "4/s", "--server", server.url).code == 0
    assert slept == [0.0, 0.25, 0.25, 0.25, 0.25]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_replay_says_how_to_go_on(server: Server, number: signal.Signals) -> None:
    """Counts, the last position, and the words that resume it."""
    gate = threading.Event()

    def hold(_request: Request) -> Answer:
        gate.wait(20)
        return None

    server.answers(lines(outcome("0:3"), outcome("0:5")), hold)
    verb = subprocess.Popen(
        [sys.executable, "-m", "coordinator", "replay", "--service", "stock", "--server", server.url],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    server.wait_until_asked(2)
    verb.send_signal(number)
    out, told = verb.communicate(timeout=20)
    gate.set()
    assert verb.returncode == 130
    assert out.count("\n") == 2
    assert "sent 2, accepted 2, refused 0, skipped 0; last position 0:5" in told
    assert "to go on: coordinator replay --service stock --from 0:5" in told
