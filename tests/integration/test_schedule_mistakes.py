"""A mistake of this program costs a schedule some time, and not its life."""

from __future__ import annotations

from typing import Any

import pytest

import coordinator
from coordinator import FakeClock, Scripted
from coordinator.front import CoordinatorFront
from coordinator.transport.base import Unwatch


async def test_a_run_that_could_not_be_submitted_for_a_mistake_of_ours_is_submitted_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether an answer was on its way is forgotten, and the schedule goes on by its records, as a new owner would."""
    shop = Scripted()
    shop.on("POST", "/a").answers(200, {})
    submit, mistakes = CoordinatorFront.submit, [RuntimeError("a mistake of ours")]

    def mistaken(front: CoordinatorFront, submission: Any, *rest: Any) -> tuple[str, Unwatch]:
        if mistakes and submission.id is not None:
            raise mistakes.pop()
        return submit(front, submission, *rest)

    monkeypatch.setattr(CoordinatorFront, "submit", mistaken)
    async with coordinator.embedded(services={"shop": shop}, clock=FakeClock("2026-11-21T09:00:00Z")) as c:
        definition = {"name": "d", "steps": [{"name": "a", "service": "shop", "path": "/a"}]}
        await c.put_schedule("tick", {"every": "60s", "command": {"definition": definition}})
        await c.clock.advance("61s")
        assert not mistakes
        await c.clock.advance("40s")
        assert (await c.schedule("tick"))["last"]["command"] == "tick@2026-11-21T09:01:00Z"
