"""Holds what a daemon answers to the OpenAPI document that it serves."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from coordinator.transport.http.problem import HttpError
from coordinator.transport.http.routes import ROUTES
from coordinator.transport.http.routing import JSON, PROBLEM, Router


class Documented:
    """Checks each answer against the document, and remembers which operations were asked."""

    def __init__(self) -> None:
        self.document: dict[str, Any] = {}
        self.asked: set[str] = set()
        self._router = Router(ROUTES)

    async def check(self, response: httpx.Response) -> None:
        request = response.request
        try:
            route, _ = self._router.find(request.method, request.url.raw_path.partition(b"?")[0])
        except HttpError:
            return
        self.asked.add(route.name)
        replies = self.document["paths"][route.path][route.method.lower()]["responses"]
        assert str(response.status_code) in replies, (route.name, response.status_code)
        content = replies[str(response.status_code)]["content"]
        media = response.headers["content-type"].partition(";")[0]
        assert media in content, (route.name, media)
        if media in (JSON, PROBLEM):
            await response.aread()
            schema = {**content[media]["schema"], "components": self.document["components"]}
            Draft202012Validator(schema).validate(response.json())


@contextlib.asynccontextmanager
async def documented_client(url: str, documented: Documented) -> AsyncIterator[httpx.AsyncClient]:
    """A client, each of whose answers is checked."""
    async with httpx.AsyncClient(base_url=url, timeout=20) as plain:
        documented.document = (await plain.get("/openapi.json")).json()
    hooks = {"response": [documented.check]}
    async with httpx.AsyncClient(base_url=url, timeout=20, event_hooks=hooks) as client:
        yield client
