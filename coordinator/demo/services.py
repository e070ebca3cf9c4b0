"""Three plain services: stock, payments and shipping.

    python -m coordinator.demo.services payments --port 9001 --ledger payments.db

None of them knows of the coordinator.  Each does one thing (``POST /charges``), can take it back (``POST
/charges/{id}/refund``), refuses what it must with a 4xx, and keeps the one promise that a saga asks of a service:
**the same Idempotency-Key gets the same answer and no second deed**, refusals included (`ledger`).

A service prints ``listening on 127.0.0.1:9001`` once connections are accepted.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn
from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from coordinator.demo.ledger import Ledger

CREDIT_LIMIT = 90_00  # cents
SOLD_OUT = "teapot"
UNREACHABLE = "Atlantis"


class Refusal(Exception):
    """The service says no, for good: a 4xx, which makes the coordinator undo the order."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


class Service(Struct, frozen=True):
    """What tells the services apart: the noun they keep, the verb that takes it back, and what they refuse."""

    noun: str
    undo: str
    rule: Callable[[dict[str, Any]], None]


def _in_stock(order: dict[str, Any]) -> None:
    if order["item"] == SOLD_OUT:
        raise Refusal(409, "sold_out")


def _within_credit(order: dict[str, Any]) -> None:
    if order["amount"] > CREDIT_LIMIT:
        raise Refusal(402, "declined")


def _reachable(order: dict[str, Any]) -> None:
    if order["city"] == UNREACHABLE:
        raise Refusal(409, "no_courier")


SERVICES = {
    "stock": Service("reservations", "release", _in_stock),
    "payments": Service("charges", "refund", _within_credit),
    "shipping": Service("shipments", "cancel", _reachable),
}


def build(name: str, ledger: Ledger, work_ms: int = 0) -> Starlette:
    """The web application of one service; every answer takes about ``work_ms``, as real work would."""
    service = SERVICES[name]

    async def do(request: Request) -> Response:
        """``POST /charges {"order": "o-1", "amount": 1999}`` → 201 ``{"id": 7}``, or a refusal."""
        key, fence = _headers(request)
        order = await request.json()
        await asyncio.sleep(work_ms / 1000)
        return _once(key, fence, lambda: _do(key, fence, order))

    def _do(key: str, fence: str, order: dict[str, Any]) -> tuple[int, Any]:
        try:
            service.rule(order)
        except Refusal as refusal:
            answer = {"code": refusal.code, "message": f"{name} refused order {order['order']}: {refusal.code}"}
            ledger.write(key, order["order"], "refused", refusal.status, answer, fence)
            return refusal.status, answer
        done = {"id": ledger.next_number()}
        ledger.write(key, order["order"], "done", 201, done, fence)
        return 201, done

    async def undo(request: Request) -> Response:
        """``POST /charges/7/refund`` → 200; 404 where there is no such charge."""
        key, fence = _headers(request)
        number = int(request.path_params["number"])
        await asyncio.sleep(work_ms / 1000)
        return _once(key, fence, lambda: _undo(key, fence, number))

    def _undo(key: str, fence: str, number: int) -> tuple[int, Any]:
        order = ledger.order_of(number)
        if order is None:
            return 404, {"code": "unknown", "message": f"{name} has no {service.noun} {number}"}
        answer = {"id": number, "undone": True}
        ledger.write(key, order, "undone", 200, answer, fence)
        return 200, answer

    def _once(key: str, fence: str, deed: Callable[[], tuple[int, Any]]) -> Response:
        # Nothing awaits between the look-up and the write, so that two requests with one key can not both do the deed.
        status, answer = ledger.remembered(key, fence) or deed()
        return JSONResponse(answer, status)

    return Starlette(
        routes=[
            Route(f"/{service.noun}", do, methods=["POST"]),
            Route(f"/{service.noun}/{{number:int}}/{service.undo}", undo, methods=["POST"]),
        ],
        exception_handlers={KeyError: _malformed, ValueError: _malformed},
    )


def _headers(request: Request) -> tuple[str, str]:
    """Idempotency-Key, and Coordinator-Fence: kept to show which attempt of which epoch was served."""
    key = request.headers.get("idempotency-key")
    if not key:
        raise ValueError("Idempotency-Key is missing")
    return key, request.headers.get("coordinator-fence", "")


async def _malformed(request: Request, error: Exception) -> Response:
    return JSONResponse({"code": "malformed", "message": str(error)}, 400)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m coordinator.demo.services", description="one example service")
    parser.add_argument("name", choices=SERVICES)
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--ledger", type=Path, help="SQLite file (default: NAME.db)")
    parser.add_argument("--work-ms", type=int, default=0, help="how long every answer takes")
    options = parser.parse_args(arguments)

    ledger = Ledger(options.ledger or Path(f"{options.name}.db"))
    app = build(options.name, ledger, options.work_ms)
    with socket.create_server(("127.0.0.1", options.port), backlog=1024) as listener:
        print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    ledger.close()


if __name__ == "__main__":
    main()
