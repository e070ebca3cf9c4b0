"""``python -m bench.expressions``: what definitions cost in CPU, beside the CEL library used the plain way.

A definition should cost hardly more than code.  The tables say what one evaluation of each kind of expression costs,
what a body of five look-ups costs, and what a three-step definition costs beyond the same steps in code.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from coordinator.engine.cel_library import program
from coordinator.engine.expressions import compile_expression
from coordinator.engine.interpreter import definition_type
from coordinator.engine.plan import compile_definition
from coordinator.engine.registry import fingerprint
from coordinator.engine.stepper import Execution
from coordinator.engine.templates import value_template
from coordinator.model.records import raw
from coordinator.saga import Saga, post

PAYLOAD: dict[str, Any] = {
    "order_id": "o-1",
    "amount": 1999,
    "customer": {"id": "c-1", "vip": False},
    "items": [{"sku": f"s-{n}", "quantity": n % 3 + 1} for n in range(10)],
}
SCOPE = {"payload": PAYLOAD, "steps": {"charge": {"id": "ch-1"}}, "command": {"id": "c", "type": "t", "attributes": {}}}
EXPRESSIONS = (
    "payload.order_id",
    "steps.charge.id",
    'payload.items[3]["sku"]',
    "has(payload.coupon)",
    "payload.amount > 1000",
    "payload.amount > 1000 && payload.customer.vip",
    "payload.items.all(i, i.quantity > 0)",
    "payload.items.map(i, i.sku)",
)
BODY = {
    "order": "${payload.order_id}",
    "amount": "${payload.amount}",
    "customer": "${payload.customer.id}",
    "charge": "${steps.charge.id}",
    "first": "${payload.items[0].sku}",
}


def micros(run: Callable[[], object], seconds: float = 0.2) -> float:
    """CPU microseconds of one call: the best of five rounds, since other programs run too."""
    rounds, best = 16, float("inf")
    while True:
        start = time.process_time()
        for _ in range(rounds):
            run()
        spent = time.process_time() - start
        if spent > seconds / 5:
            break
        rounds *= 2
    for _ in range(5):
        start = time.process_time()
        for _ in range(rounds):
            run()
        best = min(best, (time.process_time() - start) / rounds)
    return best * 1e6


async def in_code(payload: Any, saga: Saga) -> Any:
    """The same three steps as DEFINITION."""
    for name in ("reserve", "charge", "ship"):
        await saga.step(name, post("stock", f"/{name}", {"order": payload["order_id"]}))


DEFINITION = {
    "steps": [
        {"name": name, "service": "stock", "path": f"/{name}", "body": {"order": "${payload.order_id}"}}
        for name in ("reserve", "charge", "ship")
    ]
}


def three_steps(start: Callable[[Any, Saga], Any]) -> None:
    saga = Saga(id="c", type="t", version=1, attributes={}, now=0)
    execution = Execution(lambda given: start(PAYLOAD, given), saga)
    for at, name in enumerate(("reserve", "charge", "ship")):
        execution.outcome(name, OUTCOME, at)
    assert execution.done


OUTCOME = raw({"id": "x-1"})


def main() -> None:
    print("| expression | µs | by the CEL library alone, µs |")
    print("| --- | ---: | ---: |")
    for text in EXPRESSIONS:
        ours, theirs = compile_expression(text, "$"), program(text)
        print(f"| `{text}` | {micros(lambda: ours.value(SCOPE)):.2f} | {micros(lambda: theirs(SCOPE)):.1f} |")  # noqa: B023
    body = value_template(BODY, "$", lambda path, fault: None)
    linear = definition_type(compile_definition(DEFINITION, services=None))
    graph = {"steps": [DEFINITION["steps"][0], *({**step, "after": ["reserve"]} for step in DEFINITION["steps"][1:])]}
    forked = definition_type(compile_definition(graph, services=None))
    print("\n| work | µs |")
    print("| --- | ---: |")
    print(f"| a body with five look-ups | {micros(lambda: body.render(SCOPE)):.1f} |")
    print(f"| three steps in code, start to end | {micros(lambda: three_steps(in_code)):.1f} |")
    print(f"| the same as a definition, one after the other | {micros(lambda: three_steps(linear.run)):.1f} |")
    print(f"| the same as a definition with a fork | {micros(lambda: three_steps(forked.run)):.1f} |")
    print(f"| compiling the definition | {micros(lambda: compile_definition(DEFINITION, services=None)):.0f} |")
    print(f"| fingerprint of a submission | {micros(lambda: fingerprint('t', 1, PAYLOAD, None)):.1f} |")


if __name__ == "__main__":
    main()
