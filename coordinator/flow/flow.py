"""A flow: steps that find each other by the types of what they take and make.

    flow = Flow("CardPayment", payload=Payment, provided=(Otp,), result=Receipt, steps=[tokenise, verify, invoice])
    app.add(flow.type())

It is checked when it is built, with all that is wrong with it in one FlowError, and its plan is made then, once.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, Literal

from coordinator.engine.graph import run_graph
from coordinator.flow import drawing
from coordinator.flow.plan import plan_of
from coordinator.flow.running import graph_of
from coordinator.flow.steps import FlowStep
from coordinator.model.command import StepView
from coordinator.saga import App, CommandType, PauseAfter, Saga, check_pause_after, state_deadlines


class Flow:
    """A command made of steps.

    ``payload`` is its payload's type, a datum itself, as are those of its fields that steps take.  ``provided`` are
    data that clients give later, by name; ``late`` those that may come, or come again, when the command has completed,
    and open it again.  ``result`` is the datum that is the command's result.  ``services`` are those whose outage
    suspends its intake: those that its steps declare, unless given.  The rest is as in `App.command`.  With ``app`` it
    is registered there.  Raises FlowError.
    """

    def __init__(
        self,
        name: str,
        *,
        payload: Any,
        steps: Sequence[FlowStep],
        result: Any = None,
        provided: Sequence[Any] = (),
        late: Sequence[Any] = (),
        version: int = 1,
        services: Iterable[str] | None = None,
        on_failure: Literal["undo", "dead_letter"] = "undo",
        deadlines: Mapping[str, str] | None = None,
        pause_after: PauseAfter | None = None,
        app: App | None = None,
    ) -> None:
        services = None if services is None else frozenset(services)
        self.name = name
        self.version = version
        self.plan = plan_of(name, payload, steps, provided, late, result, services)
        self._graph = graph_of(self.plan)
        self._services = self._declared() if services is None else services
        self._on_failure = on_failure
        self._deadlines = state_deadlines(deadlines or {})
        check_pause_after(pause_after)
        self._pause_after = pause_after
        self._payload = payload
        if app is not None:
            app.add(self.type())

    def type(self) -> CommandType:
        """What `App.add` takes."""
        return CommandType(
            self.name,
            self.version,
            self._payload,
            self._services,
            self._run,
            on_failure=self._on_failure,
            deadlines=self._deadlines,
            pause_after=self._pause_after,
            data=frozenset(kind.name for kind in self.plan.provided),
            reopens=self.plan.late,
            shapes={kind.name: kind.type for kind in self.plan.provided},
            diagram=self.diagram,
        )

    def diagram(self, steps: Sequence[StepView] = ()) -> str:
        """The flow as a Mermaid flowchart; ``steps`` colour it with the states of a command that runs it."""
        return drawing.drawn(self.plan, steps)

    def _declared(self) -> frozenset[str]:
        """The services of its steps; none, which is any, if one of them does not say."""
        asked = [step.asks for step in self.plan.steps if step.sort != "within"]
        return frozenset() if "" in asked else frozenset(asked) - {"local"}

    def _run(self, payload: Any, saga: Saga) -> Coroutine[Any, Any, Any]:
        return self._exec(payload, saga)

    async def _exec(self, payload: Any, saga: Saga) -> Any:
        alone = self._on_failure == "dead_letter"
        values = await run_graph(self._graph, saga, context=payload, dead_letter=alone)
        return None if self.plan.result is None else values[self.plan.result]
