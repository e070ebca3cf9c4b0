"""Data, decisions and schedules against scripted peers: what is repeated, and what a repeat that is refused means."""

from __future__ import annotations

from typing import Any

import pytest
from coordinator_client import (
    AsyncClient,
    ConnectionLost,
    Forbidden,
    IllegalState,
    InvalidPayload,
    PendingDecision,
    RetryPolicy,
    ScheduledRun,
    UnknownSchedule,
    WaitTimeout,
)

QUICK = RetryPolicy(first_s=0.001, max_s=0.01)
APPROVED = {"approve": True, "by": "ann", "at": "2026-01-02T03:04:05.006Z"}


def refused(seq: int, code: str, retryable: bool = False, **extra: Any) -> list[Any]:
    return [10, seq, code, code.title(), f"because of {code}", retryable, 1 if retryable else None, extra]


class Lost:
    """A connection that breaks after its first request: ``seen`` has what that was."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def __call__(self, peer: Any) -> None:
        await peer.greet()
        self.seen.append(await peer.read())
        peer.close()


class Answers:
    """A connection that gives these answers, one a request: a value, or what makes an Error frame."""

    def __init__(self, *answers: Any) -> None:
        self.answers = answers
        self.seen: list[Any] = []

    async def __call__(self, peer: Any) -> None:
        await peer.greet()
        for answer in self.answers:
            request = await peer.read()
            self.seen.append(request)
            peer.send(answer(request[1]) if callable(answer) else [8, request[1], answer, False])


def no(code: str, retryable: bool = False, **extra: Any) -> Any:
    return lambda seq: refused(seq, code, retryable, **extra)


async def test_data_has_an_id_of_its_own(tcp: Any, view: dict[str, Any]) -> None:
    """Made here unless given, another one each time: the same value twice is two data."""
    server = Answers(view, view, view)
    tcp.play(server)
    async with AsyncClient(tcp.url) as client:
        for signal_id in (None, None, "mine"):
            await client.provide("c-1", "otp", {"code": 1}, signal_id=signal_id, by="ann")
    params = [request[4] for request in server.seen]
    ids = [each.pop("signal_id") for each in params]
    assert params == [{"id": "c-1", "name": "otp", "value": {"code": 1}, "by": "ann"}] * 3
    assert len({*ids}) == 3
    assert (ids[2], len(ids[0])) == ("mine", 32)


@pytest.mark.parametrize("doubt", ["lost", "in_doubt", "deadline"])
async def test_data_whose_answer_was_lost_is_sent_again_under_the_same_id(
    tcp: Any, view: dict[str, Any], doubt: str
) -> None:
    """So the server delivers it once, whether the first time was recorded or not."""
    answers = {
        "in_doubt": no("log_unavailable", True, in_doubt=True),
        "deadline": no("deadline_exceeded", True),
    }
    first: Any = Lost()
    second = Answers(view)
    if doubt == "lost":
        tcp.play(first, second)
    else:
        first = second = Answers(answers[doubt], view)
        tcp.play(first)
    async with AsyncClient(tcp.url, retry=QUICK) as client:
        assert (await client.provide("c-1", "otp", "123")).ok
    assert first.seen[0][4] == second.seen[-1][4]


async def test_data_that_is_no_json_is_found_here(tcp: Any) -> None:
    """With its path; nothing is sent."""
    async with AsyncClient(tcp.url) as client:
        with pytest.raises(InvalidPayload) as caught:
            await client.provide("c-1", "otp", {"n": float("nan")})
    assert caught.value.faults[0]["path"] == "$.value.n"


async def test_a_decision_says_who_decides_and_as_what(tcp: Any, view: dict[str, Any]) -> None:
    """One role may be given as a text."""
    server = Answers(view, view)
    tcp.play(server)
    async with AsyncClient(tcp.url) as client:
        await client.decide("c-1", "approve", approve=True, by="ann", comment="fine", roles=["manager", "auditor"])
        await client.decide("c-1", "approve", approve=False, roles="manager")
    said = {"id": "c-1", "step": "approve", "approve": True, "by": "ann", "comment": "fine"}
    assert server.seen[0][2:5:2] == ["decide", said | {"roles": ["manager", "auditor"]}]
    assert server.seen[1][4] == said | {"approve": False, "by": "", "comment": "", "roles": ["manager"]}


async def test_a_decision_that_is_refused_is_not_looked_up(tcp: Any) -> None:
    """Who was told so is the second to decide, even where the first said the same; who may is in the error."""
    tcp.play(Answers(no("illegal_state", decided=APPROVED), no("forbidden", roles=["manager"])))
    async with AsyncClient(tcp.url) as client:
        with pytest.raises(IllegalState):
            await client.decide("c-1", "approve", approve=True, by="ann")
        with pytest.raises(Forbidden) as caught:
            await client.decide("c-1", "approve", approve=True, by="eve")
    assert caught.value.roles == ["manager"]


async def test_a_decision_refused_as_made_already_may_be_our_own(tcp: Any, view: dict[str, Any]) -> None:
    """After a lost answer: what was decided is the same, by the same person, so it is what was asked for."""
    server = Answers(no("illegal_state", decided=APPROVED), view)
    tcp.play(Lost(), server)
    async with AsyncClient(tcp.url, retry=QUICK) as client:
        assert (await client.decide("c-1", "approve", approve=True, by="ann")).ok
    assert [request[2] for request in server.seen] == ["decide", "get"]


@pytest.mark.parametrize(
    "decided", [APPROVED | {"approve": False}, APPROVED | {"by": "bob"}, None], ids=["otherwise", "by another", "not"]
)
async def test_a_decision_that_somebody_else_made_first_is_refused(tcp: Any, decided: dict[str, Any] | None) -> None:
    """Whatever became of the lost answer, this decision is not the one that counts."""
    tcp.play(Lost(), Answers(no("illegal_state", **({"decided": decided} if decided else {}))))
    async with AsyncClient(tcp.url, retry=QUICK) as client:
        with pytest.raises(IllegalState) as caught:
            await client.decide("c-1", "approve", approve=True, by="ann")
    assert caught.value.command_id == "c-1"


async def test_pending_decisions_are_typed(tcp: Any) -> None:
    """Members of a later version are passed over."""
    tcp.play(
        Answers(
            [
                {"command_id": "c-1", "type": "T", "step": "approve", "input": {"amount": 5}, "roles": ["manager"]}
                | {"since": "2026-01-02T03:04:05.006Z", "timeout_at": None, "on_timeout": "reject", "colour": "red"}
            ]
        )
    )
    async with AsyncClient(tcp.url) as client:
        [pending] = await client.decisions()
    assert pending == PendingDecision(
        command_id="c-1",
        type="T",
        step="approve",
        input={"amount": 5},
        roles=["manager"],
        since="2026-01-02T03:04:05.006Z",
        on_timeout="reject",
    )


async def test_an_undo_is_not_taken_for_done_twice(tcp: Any) -> None:
    """As every control: a lost answer is told, not repeated; nor is one that the server could not give in time."""
    tcp.play(Lost(), Answers(no("deadline_exceeded", True)))
    async with AsyncClient(tcp.url, retry=QUICK) as client:
        with pytest.raises(ConnectionLost):
            await client.resolve("c-1", "charge", "refunded at the bank", "ann")
        with pytest.raises(WaitTimeout):
            await client.resolve("c-1", "charge")


async def test_a_schedule_is_put_shown_paused_and_deleted(tcp: Any) -> None:
    """Each answer is the schedule as it is then; one that is not there cannot be deleted."""
    last = {"due": "2026-01-02T03:03:35Z", "command": "m@2026-01-02T03:03:35Z", "state": "completed"}
    shown = {"name": "m", "spec": {"every": "30s"}, "state": "active", "next": "2026-01-02T03:04:05Z", "last": last}
    server = Answers(shown, shown, [shown], shown | {"state": "paused"}, shown, no("unknown_schedule"))
    tcp.play(server)
    async with AsyncClient(tcp.url, retry=QUICK) as client:
        put = await client.put_schedule("m", {"every": "30s"}, by="ann")
        assert put == await client.get_schedule("m") == (await client.schedules())[0]
        assert put.last == ScheduledRun(**last)
        assert (put.name, put.spec, put.next) == ("m", {"every": "30s"}, shown["next"])
        assert (await client.pause_schedule("m", "audit", "ann")).state == "paused"
        assert (await client.resume_schedule("m")).state == "active"
        with pytest.raises(UnknownSchedule):
            await client.delete_schedule("m")
    actions = [(request[2], request[4].get("action")) for request in server.seen]
    assert actions == [
        ("put_schedule", None),
        ("schedule", None),
        ("schedules", None),
        ("control_schedule", "pause"),
        ("control_schedule", "resume"),
        ("control_schedule", "delete"),
    ]


async def test_a_schedule_deleted_by_a_call_whose_answer_was_lost_is_gone(tcp: Any) -> None:
    """The second attempt finds nothing: that is what was asked for."""
    tcp.play(Lost(), Answers(no("unknown_schedule")))
    async with AsyncClient(tcp.url, retry=QUICK) as client:
        await client.delete_schedule("m")


async def test_a_submission_may_begin_later(tcp: Any, view: dict[str, Any]) -> None:
    """The delay goes out as the server reads durations; a command that waits for its start says so."""
    waiting = view | {"state": "waiting", "waiting_for": ["start"], "revision": 1}

    async def script(peer: Any) -> None:
        await peer.greet()
        seq, submission = await peer.submitted()
        assert submission["delay"] == "90000ms"
        peer.send([4, seq, "c-1", "0:1", False, waiting])

    tcp.play(script)
    async with AsyncClient(tcp.url) as client:
        command = await client.submit("T", delay=90)
    assert (command.state, command.waiting_for, command.revision) == ("waiting", ["start"], 1)
