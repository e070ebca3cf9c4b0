"""One connection to another instance without a socket: what it writes, what it makes of what it reads."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from coordinator.cluster.base import Member
from coordinator.cluster.connection import Connection, LinkSettings
from coordinator.errors import LinkLost, NoOwner, Unavailable
from coordinator.model.command import Submission
from coordinator.transport.base import Event
from coordinator.wire import frames
from coordinator.wire.frames import (
    Accepted,
    Error,
    Final,
    Forget,
    GoAway,
    Hello,
    HelloOptions,
    Ping,
    Pong,
    Response,
    StateChanged,
    Step,
    Submit,
)

HELLO = Hello(
    0, "coordinator", 1, 1, "coordinator", HelloOptions(instance="b", group="g", in_flight_max=3, frame_bytes_max=9999)
)


class Socket(asyncio.Transport):
    """Stands in for the operating system: keeps what is written."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection
        self.writes: list[bytes] = []
        self.reading = True
        self.aborted = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        if not self.aborted:
            self.aborted = True
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def decoded(data: bytes) -> list[Any]:
    """The frames of a client's bytes."""
    found = []
    while data:
        size = int.from_bytes(data[:4], "big")
        found.append(frames.read(data[4 : 4 + size]))
        data = data[4 + size :]
    return found


async def turns(count: int = 2) -> None:
    """Lets what was scheduled happen."""
    for _ in range(count):
        await asyncio.sleep(0)


async def met(settings: LinkSettings | None = None, hello: Hello = HELLO) -> tuple[Connection, Socket]:
    """A connection after both Hellos, and the socket that it writes to."""
    connection = Connection(Member("a", ""), Member("b", "h:1"), "g", settings or LinkSettings())
    socket = Socket(connection)
    connection.connection_made(socket)
    connection.data_received(frames.encode(hello))
    await turns()
    return connection, socket


def submission(id: str = "c-1") -> Submission:
    return Submission(id=id, type="T")


async def test_it_introduces_itself_as_an_instance_of_its_group() -> None:
    """Its Hello has its instance id, its group and what it reads."""
    _, socket = await met()
    hello, *_ = decoded(socket.writes[0])
    assert hello.options == HelloOptions(peer="a", group="g", frame_bytes_max=LinkSettings().frame_bytes_max)


async def test_all_of_one_turn_leaves_in_one_write() -> None:
    """However many requests one turn of the event loop makes, the socket is written to once."""
    connection, socket = await met()
    socket.writes.clear()
    for number in range(3):
        connection.submit(submission(f"c-{number}"), lambda event: None, "final", None, {})
    await turns()
    [written] = socket.writes
    assert [(type(frame), frame.submission.id) for frame in decoded(written)] == [
        (Submit, f"c-{number}") for number in range(3)
    ]


@pytest.mark.parametrize("size", [1, 3, 4, 5, 64, 1000])
async def test_answers_arrive_in_any_pieces(size: int) -> None:
    """However the stream is cut, the same events come out in the same order."""
    connection, _ = await met()
    told: list[Event] = []
    connection.submit(submission(), told.append, "events", None, {})
    stream = b"".join(
        map(
            frames.encode,
            [
                Accepted(1, "c-1", "0:1", True, None, "delayed"),
                Step(1, "c-1", "0:2", "running", {"kind": "outcome"}),
                StateChanged(1, "c-1", "0:2", "blocked"),
                Final(1, "c-1", "0:3", None),
            ],
        )
    )
    for at in range(0, len(stream), size):
        connection.data_received(stream[at : at + size])
    assert told == [
        Event("accepted", "c-1", "0:1", "delayed", attached=True),
        Event("step", "c-1", "0:2", "running", record={"kind": "outcome"}),
        Event("state", "c-1", "0:2", "blocked"),
        Event("final", "c-1", "0:3"),
    ]


async def test_the_last_frame_closes_the_id_and_forget_is_sent_only_before_it() -> None:
    """An Unwatch after the end says nothing; before it, it says Forget once."""
    connection, socket = await met()
    ended = connection.submit(submission(), lambda event: None, "accepted", None, {})
    connection.data_received(frames.encode(Accepted(1, "c-1", "0:1", False)))
    left = connection.submit(submission(), lambda event: None, "final", None, {})
    await turns()
    socket.writes.clear()
    ended()
    left()
    left()
    await turns()
    assert decoded(b"".join(socket.writes)) == [Forget(2)]


async def test_frames_of_a_later_version_are_passed_over() -> None:
    """A newer instance may send frame types that this one does not know; it is not cut off for that."""
    connection, socket = await met()
    connection.data_received(b"\x00\x00\x00\x05\x93\x63\x00\xa1?")
    connection.data_received(frames.encode(Ping(7)))
    await turns()
    assert connection.up
    assert decoded(socket.writes[-1]) == [Pong(7)]


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad", b"\x00\x00\x00\x03\x93\x04\xc1"], ids=["http", "garbage"])
async def test_what_no_instance_sends_ends_the_connection(data: bytes) -> None:
    """It is given up, with the reason, and everybody is told in a later turn of the loop."""
    connection, _ = await met()
    told: list[Event] = []
    connection.submit(submission(), told.append, "final", None, {})
    connection.data_received(data)
    assert (connection.up, told) == (False, [])
    await turns()
    assert type(told[0].error) is LinkLost
    assert connection.closed.is_set()


@pytest.mark.parametrize(
    ("hello", "why"),
    [
        (Hello(0, "coordinator", 1, 1, "", HelloOptions(instance="c", group="g")), "'c' answers"),
        (Hello(0, "coordinator", 1, 1, "", HelloOptions(instance="a", group="g")), "this very one"),
        (Hello(0, "coordinator", 1, 1, "", HelloOptions(instance="b", group="h")), "group 'h'"),
        (Hello(0, "coordinator", 9, 9, "", HelloOptions(instance="b", group="g")), "version 9"),
        (Hello(0, "kafka", 1, 1, "", HelloOptions(instance="b", group="g")), "'kafka'"),
    ],
)
async def test_only_the_member_itself_is_taken_for_it(hello: Hello, why: str) -> None:
    """Another instance, group, version or protocol at the address is told apart by its Hello."""
    connection, socket = await met(hello=hello)
    assert not connection.up
    assert why in connection.why
    assert socket.aborted


async def test_an_error_of_the_connection_is_why_it_ended() -> None:
    """What the other says under sequence id 0 is what those who wait are told."""
    connection, _ = await met()
    told: list[Event] = []
    connection.submit(submission(), told.append, "final", None, {})
    connection.data_received(frames.encode(Error(0, "stopping", "Stopping", "so long", True)))
    await turns()
    error = told[0].error
    assert isinstance(error, NoOwner)
    assert "so long" in error.detail
    assert error.retry_after_ms


async def test_an_error_of_a_later_version_is_told_on() -> None:
    """A code that this version does not know keeps its name and whether it can be retried."""
    connection, _ = await met()
    told: list[Event] = []
    connection.submit(submission(), told.append, "final", None, {})
    connection.data_received(frames.encode(Error(1, "no_cheese", "No cheese", "none left", True, 50, {"kinds": 0})))
    error = told[0].error
    assert error is not None
    assert (error.code, error.title, error.detail) == ("no_cheese", "No cheese", "none left")
    assert (error.retryable, error.retry_after_ms, error.extra) == (True, 50, {"kinds": 0})
    assert error.http == Unavailable.http


async def test_going_away_is_told_and_what_is_open_goes_on() -> None:
    """GoAway ends nothing by itself."""
    connection, _ = await met()
    left: list[str] = []
    connection.on_leaving = lambda: left.append("b")
    told: list[Event] = []
    connection.submit(submission(), told.append, "final", None, {})
    connection.data_received(frames.encode(GoAway(0, "bye")) + frames.encode(Final(1, "c-1", "0:3", None)))
    assert (left, [event.kind for event in told]) == (["b"], ["final"])


async def test_a_stream_stops_the_socket_while_its_reader_is_slow() -> None:
    """Answers that pile up pause the reading; it goes on when most have been read."""
    connection, socket = await met()
    values = connection.stream("outcomes", {}, None, {}).values()
    connection.data_received(b"".join(frames.encode(Response(1, [n], True)) for n in range(20)))
    assert not socket.reading
    assert [await anext(values) for _ in range(16)] == [[n] for n in range(16)]
    assert socket.reading
    connection.data_received(frames.encode(Response(1, [], False)))
    assert [value async for value in values] == [[16], [17], [18], [19]]
    connection.lose("done")
    await turns()


async def test_an_answer_that_fits_no_question_is_an_error_and_no_more() -> None:
    """A view where a value was asked for is an internal error of that request; the connection lives."""
    connection, _ = await met()
    told: list[Event] = []
    connection.watch("c-1", told.append, None)
    connection.data_received(frames.encode(Response(1, "?")))
    assert told[0].error is not None
    assert told[0].error.code == "internal"
    assert connection.up


async def test_an_answer_that_only_a_later_version_can_read_fails_by_itself() -> None:
    """A view with a state that this version does not know ends its request; the others go on."""
    connection, _ = await met()
    told: list[Event] = []
    other: list[Event] = []
    connection.submit(submission("c-1"), told.append, "final", None, {})
    connection.submit(submission("c-2"), other.append, "final", None, {})
    body = msgspec.msgpack.encode([7, 1, "c-1", "0:1", {"id": "c-1", "state": "in_limbo"}])
    connection.data_received(len(body).to_bytes(4, "big") + body + frames.encode(Final(2, "c-2", "0:3", None)))
    assert told[0].error is not None
    assert told[0].error.code == "internal"
    assert [event.kind for event in other] == ["final"]
    assert connection.up


async def test_nothing_is_read_after_the_end() -> None:
    """What follows the Error that ended the connection neither revives it nor is told."""
    connection = Connection(Member("a", ""), Member("b", "h:1"), "g", LinkSettings())
    connection.connection_made(Socket(connection))
    connection.data_received(frames.encode(Error(0, "conflict", "Conflict", "no", False)) + frames.encode(HELLO))
    assert not connection.up
    assert "no" in connection.why
    await turns()
    assert connection.closed.is_set()
