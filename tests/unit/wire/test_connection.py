"""The server's side of one TCP peer, without sockets: bytes and times in, events and bytes out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from coordinator.errors import Suspended
from coordinator.model.command import Submission
from coordinator.wire.connection import Connection, Gone, Identity, TcpSettings
from coordinator.wire.frames import (
    Accepted,
    Error,
    Forget,
    Frame,
    GoAway,
    Hello,
    HelloOptions,
    Ping,
    Pong,
    Request,
    Response,
    Submit,
    encode,
    read_from_server,
)

VECTORS = Path(__file__).parents[3] / "proto" / "vectors"
INVALID = json.loads((VECTORS / "invalid.json").read_text())["frames"]
HELLO = Hello(0, "coordinator", 1, 1, "test")
SETTINGS = TcpSettings()


def unhex(text: str) -> bytes:
    """Bytes of a vector, where ``{91*3}`` stands for ``919191``."""
    return bytes.fromhex(re.sub(r"\{(\w\w)\*(\d+)\}", lambda found: found[1] * int(found[2]), text))


def submit(seq: int, deadline_ms: int | None = None) -> Submit:
    return Submit(seq, "final", deadline_ms, Submission(id=f"c-{seq}", type="T", payload={"n": seq}))


def sent(connection: Connection) -> list[Any]:
    """Takes the output and decodes it."""
    data, frames = connection.take(), []
    while data:
        length = int.from_bytes(data[:4], "big")
        frames.append(read_from_server(bytes(data[4 : 4 + length])))
        del data[: 4 + length]
    return frames


def opened(settings: TcpSettings = SETTINGS, hello: Hello = HELLO, now: int = 0) -> Connection:
    """A connection after both Hellos."""
    connection = Connection(settings, Identity("coordinator", "i-1", "orders"), now)
    connection.receive(encode(hello), now)
    sent(connection)
    return connection


def feed(connection: Connection, *frames: Frame, now: int = 0) -> list[Any]:
    return connection.receive(b"".join(map(encode, frames)), now)


def test_hello_is_answered_with_version_identity_and_limits() -> None:
    """The server's Hello says which version was chosen, who it is and what the client must keep to."""
    connection = Connection(SETTINGS, Identity("coordinator", "i-1", "orders"), 0)
    hello = Hello(0, "coordinator", 1, 7, "test")
    assert feed(connection, hello) == [hello]
    options = HelloOptions(
        instance="i-1",
        group="orders",
        frame_bytes_max=1 << 20,
        in_flight_max=1024,
        idle_timeout_ms=60_000,
        ping_interval_ms=20_000,
    )
    assert sent(connection) == [Hello(0, "coordinator", 1, 1, "coordinator", options)]


def test_submissions_may_follow_hello_at_once() -> None:
    """The client need not wait for the server's Hello: one read may hold both."""
    connection = Connection(SETTINGS, Identity(), 0)
    assert feed(connection, HELLO, submit(1), submit(2)) == [HELLO, submit(1), submit(2)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64])
def test_frames_arrive_in_any_pieces(size: int) -> None:
    """However the stream is cut, the same events come out in the same order."""
    data = b"".join(map(encode, [HELLO, submit(1), Ping(5), submit(2), Forget(1)]))
    connection = Connection(SETTINGS, Identity(), 0)
    events = [event for at in range(0, len(data), size) for event in connection.receive(data[at : at + size], at)]
    assert events == [HELLO, submit(1), submit(2), Gone(1)]
    assert sent(connection)[1:] == [Pong(5)]
    assert connection.held == 0


@pytest.mark.parametrize("vector", INVALID, ids=[vector["name"] for vector in INVALID])
def test_wrong_input_gets_the_answer_of_its_vector(vector: dict[str, Any]) -> None:
    """Each faulty input gets the Error that the vectors promise, and ends the connection or only its frame."""
    connection = Connection(SETTINGS, Identity(), 0) if vector["state"] == "new" else opened()
    events = connection.receive(unhex(vector["hex"]), 0)
    if events:  # a Request whose parameters are wrong: found by whoever performs it (transport.tcp)
        assert isinstance(events[0], Request)
        assert vector["error"]["seq"] == events[0].seq
        return
    [error] = sent(connection)
    assert (error.seq, error.code) == (vector["error"]["seq"], vector["error"]["code"])
    assert connection.closing == vector["closes"]
    if not vector["closes"]:
        assert feed(connection, submit(6)) == [submit(6)], "the connection goes on"


def test_an_oversized_frame_is_refused_by_its_prefix_and_nothing_is_kept() -> None:
    """Four bytes suffice to refuse it; the megabytes behind them are dropped as they come."""
    connection = opened()
    connection.receive(b"\x7f\xff\xff\xff", 0)
    assert [error.code for error in sent(connection)] == ["too_large"]
    for _ in range(100):
        connection.receive(b"x" * 65_536, 0)
        assert connection.held == 0


def test_no_hello_in_time_ends_the_connection() -> None:
    """A client that says nothing is told so after hello_timeout_ms."""
    connection = Connection(SETTINGS, Identity(), 1000)
    assert connection.next_deadline() == 1000 + SETTINGS.hello_timeout_ms
    connection.tick(1000 + SETTINGS.hello_timeout_ms - 1)
    assert not connection.closing
    connection.tick(1000 + SETTINGS.hello_timeout_ms)
    assert connection.closing
    assert [error.code for error in sent(connection)] == ["deadline_exceeded"]


def test_a_frame_must_be_completed_in_time_even_if_bytes_keep_coming() -> None:
    """One byte a second keeps a connection from being idle, but not from being slow."""
    connection = opened()
    data = encode(submit(1))
    for second in range(10):
        connection.receive(data[second : second + 1], second * 1000)
    assert connection.next_deadline() == SETTINGS.read_timeout_ms
    connection.tick(SETTINGS.read_timeout_ms)
    assert connection.closing
    assert "not completed" in sent(connection)[0].detail


def test_a_steady_stream_of_cut_frames_is_not_slow() -> None:
    """Each unfinished frame has its own clock, so a busy client is never timed out."""
    connection = opened()
    data = b"".join(encode(Ping(seq)) for seq in range(1, 400))
    now = 0
    for at in range(0, len(data), 5):
        now += 1000
        connection.receive(data[at : at + 5], now)
        connection.tick(now)
    assert not connection.closing


def test_silence_is_asked_for_a_sign_of_life_and_then_ended() -> None:
    """Pings go out every ping_interval_ms of silence; without any answer the peer counts as gone."""
    connection = opened()
    assert connection.next_deadline() == 20_000
    for now in (20_000, 40_000):
        connection.tick(now)
        assert sent(connection) == [Ping(0)]
    assert connection.next_deadline() == 60_000
    connection.tick(60_000)
    assert connection.closing


def test_a_quiet_client_that_answers_pings_stays() -> None:
    """A Pong counts as a sign of life for as long as it takes."""
    connection = opened()
    for now in range(20_000, 400_000, 20_000):
        connection.tick(now)
        assert sent(connection) == [Ping(0)]
        feed(connection, Pong(0), now=now)
    assert not connection.closing


def test_one_open_id_too_many_is_refused_by_itself() -> None:
    """The in-flight limit refuses the newest, retryable; when one ends there is room again."""
    connection = opened(TcpSettings(in_flight_max=2))
    assert len(feed(connection, submit(1), submit(2), submit(3))) == 2
    [error] = sent(connection)
    assert (error.seq, error.code, error.retryable, error.retry_after_ms) == (3, "limit_reached", True, 100)
    connection.send(Response(1, None), last=True)
    assert feed(connection, submit(4)) == [submit(4)]


def test_an_open_id_cannot_be_used_again_until_it_ends() -> None:
    """Reuse is a conflict that leaves the first one alone; after its end the number is free."""
    connection = opened()
    assert len(feed(connection, submit(1), submit(1))) == 1
    assert [(error.seq, error.code) for error in sent(connection)] == [(1, "conflict")]
    assert connection.in_flight == 1
    connection.fail(1, Suspended())
    assert feed(connection, submit(1)) == [submit(1)]


def test_a_deadline_ends_the_id_and_tells_the_program() -> None:
    """The caller gets deadline_exceeded for that id; later frames for it are dropped."""
    connection = opened()
    feed(connection, submit(1, deadline_ms=50), submit(2, deadline_ms=30), submit(3), now=1000)
    assert connection.next_deadline() == 1030
    assert connection.tick(1050) == [Gone(2), Gone(1)]
    assert [(error.seq, error.code) for error in sent(connection)] == [
        (2, "deadline_exceeded"),
        (1, "deadline_exceeded"),
    ]
    connection.send(Accepted(1, "c-1", "0:1", False))
    assert sent(connection) == []
    assert connection.in_flight == 1


def test_an_answer_before_the_deadline_disarms_it() -> None:
    """An id that has ended, even if its number is used again, is not ended by its old deadline."""
    connection = opened()
    feed(connection, submit(1, deadline_ms=50))
    connection.send(Response(1, None), last=True)
    feed(connection, submit(1))
    sent(connection)
    assert connection.tick(60) == []
    assert sent(connection) == []


def test_memory_for_deadlines_follows_the_open_ids() -> None:
    """A million short requests with long deadlines leave no million entries behind."""
    connection = opened()
    for seq in range(1, 2000):
        feed(connection, submit(seq, deadline_ms=3_600_000))
        connection.send(Response(seq, None), last=True)
        connection.take()
    assert len(connection._deadlines) < 100


def test_forget_ends_the_id_silently() -> None:
    """Nothing is sent for a forgotten id; forgetting an unknown one is nothing."""
    connection = opened()
    assert feed(connection, submit(1), Forget(1), Forget(77)) == [submit(1), Gone(1)]
    connection.send(Accepted(1, "c-1", "0:1", False))
    assert sent(connection) == []


def test_an_answer_longer_than_the_client_reads_becomes_an_error() -> None:
    """The client's own frame limit is kept, and it learns the size that it would need."""
    connection = opened(hello=Hello(0, "coordinator", 1, 1, "small", HelloOptions(frame_bytes_max=1000)))
    feed(connection, Request(1, "get"))
    connection.send(Response(1, "x" * 2000), last=True)
    [error] = sent(connection)
    assert (error.seq, error.code) == (1, "too_large")
    assert error.extra["bytes"] > 2000


def test_an_answer_that_cannot_be_encoded_is_an_internal_error_of_that_id() -> None:
    """A value outside msgpack's range costs one answer, not the stream."""
    connection = opened()
    feed(connection, Request(1, "get"), Request(2, "get"))
    connection.send(Response(1, 2**70), last=True)
    connection.send(Response(2, "fine"), last=True)
    error, response = sent(connection)
    assert (error.seq, error.code) == (1, "internal")
    assert response == Response(2, "fine")


def test_after_a_fatal_error_nothing_is_read_and_nothing_more_is_sent() -> None:
    """Closing is final: the Error is the last frame."""
    connection = opened()
    feed(connection, submit(1))
    connection.receive(encode(HELLO), 0)
    assert feed(connection, submit(2)) == []
    connection.send(Accepted(1, "c-1", "0:1", False))
    connection.announce(GoAway(0, "bye"))
    [error] = sent(connection)
    assert isinstance(error, Error)
    assert error.seq == 0
    assert connection.next_deadline() is None
    assert connection.tick(10**9) == []


def test_settings_that_would_cut_off_every_client_are_refused() -> None:
    """Limits that contradict each other are found when they are made."""
    with pytest.raises(ValueError, match="ping_interval_ms"):
        TcpSettings(ping_interval_ms=60_000)
    with pytest.raises(ValueError, match="frame_bytes_max"):
        TcpSettings(frame_bytes_max=1 << 30)


def test_the_vectors_are_where_the_documentation_says() -> None:
    """proto/tcp.md names a directory that other languages' clients read."""
    assert "vectors/" in (VECTORS.parent / "tcp.md").read_text()
    assert json.loads((VECTORS / "frames.json").read_text())["version"] == 1


def dialling(group: str = "orders") -> Hello:
    """The Hello of another instance."""
    return Hello(0, "coordinator", 1, 1, "coordinator", HelloOptions(peer="i-2", group=group))


def test_another_instance_gets_limits_of_its_own() -> None:
    """It carries many clients: more may be open than a client may open, and its frames may be longer."""
    settings = TcpSettings(in_flight_max=1, frame_bytes_max=4096, peer_in_flight_max=2, peer_frame_bytes_max=9999)
    connection = Connection(settings, Identity("coordinator", "i-1", "orders"), 0, peers=True)
    long = Submit(1, "final", None, Submission(id="c-1", type="T", payload="x" * 5000))
    assert feed(connection, dialling(), long, submit(2), submit(3)) == [dialling(), long, submit(2)]
    hello, refusal = sent(connection)
    assert (hello.options.in_flight_max, hello.options.frame_bytes_max) == (2, 9999)
    assert (refusal.seq, refusal.code) == (3, "limit_reached")
    assert connection.peer == "i-2"


@pytest.mark.parametrize(("group", "peers", "told"), [("payments", True, "'payments'"), ("orders", False, "alone")])
def test_an_instance_that_must_not_forward_here_is_refused_with_all_that_followed(
    group: str, peers: bool, told: str
) -> None:
    """Another group, or nobody to forward to: the Error is all that is sent, and nothing is acted on."""
    connection = Connection(SETTINGS, Identity("coordinator", "i-1", "orders"), 0, peers=peers)
    assert feed(connection, dialling(group), submit(1)) == []
    [error] = sent(connection)
    assert (error.seq, error.code, error.retryable) == (0, "conflict", False)
    assert told in error.detail
    assert connection.closing
