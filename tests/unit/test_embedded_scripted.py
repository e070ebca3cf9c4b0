"""Scripted services: what they answer, what they remember, and what they call a mistake."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.embedding.scripted import Scripted, ServiceCall, Unscripted
from coordinator.model.call import Request, Response
from coordinator.saga import Blocked, Delayed


class Stage:
    """Where the service stands: it is asked here as the gateway asks."""

    def __init__(self, service: Scripted) -> None:
        self.mistakes: list[Exception] = []
        self.passed: list[int] = []
        self.journal: list[ServiceCall] = []
        self._client = service.client("stock", self)

    async def pass_time(self, delay_ms: int) -> None:
        self.passed.append(delay_ms)

    def called(self, call: ServiceCall) -> None:
        self.journal.append(call)

    def mistake(self, error: Exception) -> None:
        self.mistakes.append(error)

    async def ask(self, path: str, body: Any = None, *, key: str = "o-1/reserve", method: str = "POST") -> Response:
        request = Request(service="stock", method=method, path=path, body=body)
        return await self._client(request, {"Idempotency-Key": key, "Coordinator-Fence": "4.1"})


async def test_a_call_is_kept_with_all_that_the_service_was_told() -> None:
    """Path, parts of it, query, body, key and fence, and the command and step that the key names."""
    stock = Scripted()
    route = stock.on("POST", "/shelves/{shelf}/reservations").answers(201, {"id": "r-1"})
    stage = Stage(stock)
    answer = await stage.ask("/shelves/a%20b/reservations?dry=1", {"n": 2})
    assert (answer.status, answer.body) == (201, b'{"id":"r-1"}')
    (call,) = stock.calls
    assert (call.params, call.query, call.body) == ({"shelf": "a b"}, {"dry": "1"}, {"n": 2})
    assert (call.key, call.fence, call.status) == ("o-1/reserve", "4.1", 201)
    assert (call.command, call.step, call.undo) == ("o-1", "reserve", False)
    assert route.calls == stage.journal == [call]
    assert "201" in str(call)


async def test_the_key_of_an_undo_names_the_step_that_is_undone() -> None:
    """So tests tell forward and undo apart."""
    stock = Scripted()
    stock.on("POST", "/release").answers(204)
    await Stage(stock).ask("/release", key="o-1/reserve/undo")
    assert (stock.calls[0].step, stock.calls[0].undo) == ("reserve", True)


async def test_the_same_key_has_one_effect_and_one_answer() -> None:
    """A second call is seen, answered alike, and changes nothing."""
    stock = Scripted()
    stock.on("POST", "/reservations").answers(200, {"id": 1}).answers(200, {"id": 2})
    stage = Stage(stock)
    first, again = await stage.ask("/reservations"), await stage.ask("/reservations")
    other = await stage.ask("/reservations", key="o-2/reserve")
    assert first.body == again.body == b'{"id":1}'
    assert other.body == b'{"id":2}'
    assert [call.repeated for call in stock.calls] == [False, True, False]
    assert [call.key for call in stock.effects] == ["o-1/reserve", "o-2/reserve"]


async def test_a_service_that_is_not_idempotent_does_it_twice() -> None:
    """What a saga does to such a service can be shown."""
    stock = Scripted(idempotent=False)
    stock.on("POST", "/reservations").answers(200)
    stage = Stage(stock)
    await stage.ask("/reservations")
    await stage.ask("/reservations")
    assert len(stock.effects) == 2


async def test_acts_follow_one_another_and_the_last_stays() -> None:
    """Twice nothing, one refusal, then yes for ever: a refusal is not remembered by its key."""
    stock = Scripted()
    stock.on("POST", "/charges").unknown(times=2).fails(402, {"why": "poor"}).then.answers(200)
    stage = Stage(stock)
    for _ in range(2):
        with pytest.raises(Delayed):
            await stage.ask("/charges")
    statuses = [(await stage.ask("/charges", key=f"o-{n}/charge")).status for n in (1, 1, 2, 3)]
    assert statuses == [402, 200, 200, 200]
    assert [call.status for call in stock.calls] == [None, None, 402, 200, 200, 200]
    assert not stage.mistakes


async def test_an_answer_that_is_lost_leaves_its_effect() -> None:
    """The service has done it; asked again, it answers what it did."""
    stock = Scripted()
    stock.on("POST", "/charges").unknown(after_effect=True).then.answers(200, {"id": "c-1"})
    stage = Stage(stock)
    with pytest.raises(Delayed):
        await stage.ask("/charges")
    assert len(stock.effects) == 1
    assert (await stage.ask("/charges")).body == b'{"id":"c-1"}'
    assert len(stock.effects) == 1
    assert stock.calls[1].repeated


async def test_a_request_that_no_route_fits_is_a_mistake() -> None:
    """It is told with the request and with what the script knows, and is no answer to the saga."""
    stock = Scripted()
    stock.on("POST", "/reservations").answers(200)
    stage = Stage(stock)
    with pytest.raises(Delayed):
        await stage.ask("/reservation", {"order": "o-1"})
    (mistake,) = stage.mistakes
    assert isinstance(mistake, Unscripted)
    assert str(mistake) == (
        "stock was asked POST /reservation with {'order': 'o-1'} (key o-1/reserve), "
        "but its script knows POST /reservations"
    )


async def test_a_script_that_is_used_up_is_a_mistake() -> None:
    """`times` on the last act bounds it."""
    stock = Scripted()
    stock.on("POST", "/charges").fails(409, times=1)
    stage = Stage(stock)
    await stage.ask("/charges")
    with pytest.raises(Delayed):
        await stage.ask("/charges")
    assert "says no more" in str(stage.mistakes[0])


async def test_the_last_route_that_fits_counts() -> None:
    """A test may say something else than its fixture did."""
    stock = Scripted()
    stock.on("POST", "/*").answers(200, "any")
    stock.on("POST", "/charges/{id}").answers(200, "one")
    stage = Stage(stock)
    assert (await stage.ask("/charges/7", key="a/1")).body == b'"one"'
    assert (await stage.ask("/charges/7/refund", key="a/2")).body == b'"any"'


async def test_a_handler_answers_what_it_returns() -> None:
    """Plain or async; a body, a status with a body, or a Response."""
    stock = Scripted()

    async def later(call: ServiceCall) -> Any:
        return 201, {"of": call.body["n"]}

    stock.on("POST", "/a").does(lambda call: {"n": call.body})
    stock.on("POST", "/b").does(later)
    stock.on("POST", "/c").does(lambda call: Response(404, {}, b"no"))
    stage = Stage(stock)
    assert (await stage.ask("/a", 1, key="x/a")).body == b'{"n":1}'
    answer = await stage.ask("/b", {"n": 2}, key="x/b")
    assert (answer.status, answer.body) == (201, b'{"of":2}')
    assert (await stage.ask("/c", key="x/c")).status == 404
    assert [call.key for call in stock.effects] == ["x/a", "x/b"]


async def test_a_handler_may_be_unsure_and_one_that_fails_is_a_mistake() -> None:
    """Delayed and Blocked mean what they say; an assertion in a handler belongs to the test."""
    stock = Scripted()

    def asserts(call: ServiceCall) -> None:
        assert call.body == "expected"

    def delays(call: ServiceCall) -> None:
        raise Delayed

    stock.on("POST", "/a").does(asserts)
    stock.on("POST", "/b").does(delays)
    stock.on("POST", "/c").blocks()
    stage = Stage(stock)
    with pytest.raises(Delayed):
        await stage.ask("/b")
    with pytest.raises(Blocked):
        await stage.ask("/c")
    assert not stage.mistakes
    with pytest.raises(Delayed):
        await stage.ask("/a", "other")
    (mistake,) = stage.mistakes
    assert isinstance(mistake, AssertionError)
    assert "in the script of stock" in mistake.__notes__[0]


async def test_answers_can_take_their_time() -> None:
    """By the clock of whoever plays the service."""
    stock = Scripted()
    stock.on("POST", "/slow").takes("3s").answers(200)
    stage = Stage(stock)
    await stage.ask("/slow")
    assert stage.passed == [3_000]


async def test_a_status_5xx_is_an_unknown_answer_of_its_own() -> None:
    """It is answered, and the coordinator will ask again."""
    stock = Scripted()
    stock.on("POST", "/x").unknown(status=503).then.answers(200)
    stage = Stage(stock)
    assert (await stage.ask("/x")).status == 503
    assert (await stage.ask("/x")).status == 200


async def test_forgetting_keeps_the_script() -> None:
    """Calls and keys go."""
    stock = Scripted()
    stock.on("POST", "/x").answers(200)
    stage = Stage(stock)
    await stage.ask("/x")
    stock.forget()
    assert stock.calls == []
    await stage.ask("/x")
    assert len(stock.effects) == 1


@pytest.mark.parametrize(
    ("say", "told"),
    [
        (lambda route: route.answers(409), "success"),
        (lambda route: route.fails(500), "no refusal"),
        (lambda route: route.fails(429), "no refusal"),
        (lambda route: route.fails(200), "no refusal"),
        (lambda route: route.answers(200, times=0), "times"),
        (lambda route: route.unknown(status=503, after_effect=True), "after_effect"),
        (lambda route: route.takes("soon"), "duration"),
    ],
)
def test_what_a_script_cannot_mean_is_refused_when_it_is_said(say: Any, told: str) -> None:
    """A 500 is no refusal to a coordinator, so a test that says so would test something else."""
    with pytest.raises(ValueError, match=told):
        say(Scripted().on("POST", "/x"))
