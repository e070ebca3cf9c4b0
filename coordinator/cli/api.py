"""The server as the verbs see it: paths in, JSON out, `Refused` or `Unreachable` otherwise.

A thin layer over the HTTP contract (API.md) and nothing more; which path means what is known by the verbs.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import click

from coordinator.cli.errors import Refused, Unreachable

if TYPE_CHECKING:
    import httpx

CONNECT_S = 5.0
ANSWER_S = 30.0


class Lost(Unreachable):
    """The connection broke after the request was sent: the server may or may not have acted on it."""


class Api:
    """One server; close it, or use it as a context manager.

    Every method raises `Refused` (the server said no), `Unreachable` (nobody answered) or its kind `Lost`.
    """

    def __init__(self, server: str) -> None:
        import httpx

        self.server = server.rstrip("/")
        self._client = httpx.Client(
            base_url=self.server,
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            trust_env=not _is_local(self.server),  # a proxy of the environment is not for this machine
            headers={"accept": "application/json, application/problem+json", "user-agent": "coordinator-cli"},
        )

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str, *, wait_s: float = 0, **query: Any) -> Any:
        """The JSON of a GET; ``query`` without its Nones."""
        return self.call("GET", path, query=query, wait_s=wait_s)

    def gathered(self, path: str) -> tuple[list[Any], set[int]]:
        """The list of a GET, and the partitions of which something may be missing in it."""
        with self._translated():
            answer = self._client.get(path)
        rows = self._read(answer)
        if not isinstance(rows, list):
            raise Unreachable(f"what answers at {self.server} is no coordinator: a list was expected")
        return rows, {int(each) for each in re.findall(r"\d+", answer.headers.get("coordinator-incomplete", ""))}

    def post(self, path: str, body: Any, *, wait_s: float = 0, **query: Any) -> Any:
        return self.call("POST", path, body=body, query=query, wait_s=wait_s)

    def call(
        self, method: str, path: str, *, body: Any = None, query: dict[str, Any] | None = None, wait_s: float = 0
    ) -> Any:
        """``wait_s`` is how long the server was asked to wait, on top of the usual time for an answer."""
        import httpx

        timeout = httpx.Timeout(ANSWER_S + wait_s, connect=CONNECT_S)
        given = {name: value for name, value in (query or {}).items() if value is not None}
        content = None if method == "GET" else json.dumps(body).encode()
        headers = {"content-type": "application/json"} if content is not None else {}
        with self._translated():
            answer = self._client.request(method, path, params=given, content=content, headers=headers, timeout=timeout)
        return self._read(answer)

    def text(self, path: str) -> str:
        """The body of a GET whose answer is text (diagrams)."""
        with self._translated():
            answer = self._client.get(path, headers={"accept": "*/*"})
        if answer.is_error:
            raise self._refusal(answer)
        return answer.text

    @contextlib.contextmanager
    def lines(
        self, path: str, *, quiet_s: float | None = None, headers: dict[str, str] | None = None, **query: Any
    ) -> Iterator[Iterator[str]]:
        """The lines of a streamed answer, as they come; ``quiet_s`` bounds the silence in between (None: for ever)."""
        import httpx

        given = {name: value for name, value in query.items() if value is not None}
        timeout = httpx.Timeout(CONNECT_S, read=quiet_s)
        accept = {"accept": "*/*", **(headers or {})}
        with (
            self._translated(),
            self._client.stream("GET", path, params=given, headers=accept, timeout=timeout) as answer,
        ):
            if answer.is_error:
                answer.read()
                raise self._refusal(answer)
            yield answer.iter_lines()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unreachable(f"no server at {self.server}: {error or 'it does not answer'}") from error
        except httpx.TimeoutException as error:
            raise Lost(f"the server at {self.server} did not answer in time") from error
        except httpx.TransportError as error:
            raise Lost(f"lost the connection to {self.server}: {error}") from error
        except httpx.InvalidURL as error:
            raise click.UsageError(f"--server: {error}") from error

    def _read(self, answer: httpx.Response) -> Any:
        if answer.is_error:
            raise self._refusal(answer)
        try:
            return answer.json()
        except ValueError:
            raise Unreachable(f"what answers at {self.server} is no coordinator: its answer is not JSON") from None

    def _refusal(self, answer: httpx.Response) -> Refused:
        try:
            problem = answer.json()
        except ValueError:
            problem = None
        if not isinstance(problem, dict):
            problem = {"code": f"http_{answer.status_code}", "detail": answer.text[:500] or answer.reason_phrase}
        return Refused(
            answer.status_code, problem, _seconds(problem.get("retry_after_ms"), answer.headers.get("retry-after"))
        )


def _seconds(millis: object, header: str | None) -> float | None:
    if isinstance(millis, int):
        return millis / 1000
    return float(header) if header and header.isdigit() else None


def _is_local(server: str) -> bool:
    host = urlsplit(server).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def command_path(id: str, rest: str = "") -> str:
    """``/v1/commands/{id}`` and what follows it; the id may hold any character that ids may have."""
    return f"/v1/commands/{quote(id, safe='')}{rest}"
