"""What can go wrong between the command line and a server, in the words of its answer."""

from __future__ import annotations

from typing import Any


class Unreachable(Exception):
    """No coordinator answered; the text names the server and why."""


class Refused(Exception):
    """The server said no; ``problem`` is its problem document (RFC 9457), ``status`` the HTTP status."""

    def __init__(self, status: int, problem: dict[str, Any], retry_after_s: float | None = None) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or f"HTTP {status}"))
        self.status = status
        self.problem = problem
        self.retry_after_s = retry_after_s

    @property
    def code(self) -> str:
        return str(self.problem.get("code") or f"http_{self.status}")

    @property
    def retryable(self) -> bool:
        """Whether the same request may be sent again (`coordinator.errors`)."""
        return self.status in (429, 503, 504)


def streamed_refusal(problem: dict[str, Any]) -> Refused:
    """An error told within a stream: ``{"code", "detail", "retryable", "retry_after_ms"?}``."""
    millis = problem.get("retry_after_ms")
    status = 503 if problem.get("retryable", True) else 500
    return Refused(status, problem, millis / 1000 if isinstance(millis, int) else None)


def explain(refusal: Refused) -> str:
    """For people: the code, what was wrong, what is allowed, and whether to try again."""
    lines = [f"{refusal.code}: {refusal}"]
    problem = refusal.problem
    faults = [fault for fault in problem.get("faults") or [] if isinstance(fault, dict)]
    if len(faults) > 1:
        lines += [f"  {fault.get('path')}: {fault.get('fault')}" for fault in faults]
    if states := problem.get("legal_states"):
        lines.append(f"  legal in the states: {', '.join(map(str, states))}")
    if roles := problem.get("roles"):
        lines.append(f"  roles that may: {', '.join(map(str, roles))}")
    if services := problem.get("services"):
        lines.append(f"  services that are down: {', '.join(map(str, services))}")
    if refusal.retryable:
        delay = f" in {refusal.retry_after_s:g} s" if refusal.retry_after_s else ""
        lines.append(f"  the same request may be sent again{delay}")
    return "\n".join(lines)
