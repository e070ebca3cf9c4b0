"""The services of the worked examples, all in one process, each under its own path.

    python -m examples.services [--port 9010]

They do what they are asked and show it, refuse a few things so that something goes wrong (the table below), and keep
the promise of every service: the same Idempotency-Key gets the same answer and no second deed.  They remember in
memory, so start them once and leave them running.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import count
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Body = dict[str, Any]

REFUSALS: list[tuple[str, Callable[[str, Body], bool], str]] = [
    ("/bank/charges", lambda path, body: body["amount"] > 9000, "above the card's limit"),
    ("/bank/challenges/", lambda path, body: body["code"] != "1234", "wrong password"),
    ("/bank/invoices/", lambda path, body: "sticky" in path, "this invoice cannot be cancelled"),
    ("/carriers/courier", lambda path, body: body.get("item") == "glass", "too fragile"),
    ("/stock/labels", lambda path, body: body.get("street") == "", "no street"),
]
"""Beginning of the path, whether it is refused, why."""


def answer(path: str, body: Body, number: int) -> tuple[int, Body]:
    """What a service says, with the status."""
    for beginning, refused, why in REFUSALS:
        if path.startswith(beginning) and refused(path, body):
            return 422, {"message": why}
    said: Body = {"id": f"{path.rpartition('/')[2]}-{number}", "amount": body.get("amount", 0)}
    if path == "/warehouse/checks":
        said["bad"] = 3 if body["day"] < "2000" else 0
    return 200, said


def build(show: Callable[[str], None] = print) -> Starlette:
    """The web application; ``show`` is told of each deed."""
    remembered: dict[str, tuple[int, Body]] = {}
    numbers = count(1)

    async def do(request: Request) -> Response:
        key = request.headers.get("idempotency-key", "")
        path = request.url.path
        body = json.loads(await request.body() or "{}")
        if key not in remembered:
            remembered[key] = answer(path, body, next(numbers))
            show(f"{remembered[key][0]} {path} {json.dumps(body)}   [{key}]")
        status, said = remembered[key]
        if status != 200:
            del remembered[key]  # a refusal did nothing, so who asks again with another body may do better
        return JSONResponse(said, status)

    return Starlette(routes=[Route("/{path:path}", do, methods=["POST"])])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.services", description="the services of the examples")
    parser.add_argument("--port", type=int, default=9010)
    uvicorn.run(build(), host="127.0.0.1", port=parser.parse_args().port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
