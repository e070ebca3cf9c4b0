"""One call as many attempts, over the addresses of one group.

Errors that another address may not have (a lost connection; starting, stopping; no owner, or no log, to be seen from
there) move the client on to the next one, and so does a server that says it goes away; there it stays until that one
fails.

An attempt is *in doubt* when it may have been done although nobody said so: the connection broke, the time was up, or
the server says that it does not know.  What may be done twice is simply asked again.  What may not is not (``once``).
In between is what counts once however often it is asked, and is refused the second time: there a refusal after an
attempt in doubt may be the echo of our own, and ``settle`` finds out.
"""

from __future__ import annotations

import asyncio
import math
import ssl as ssl_module
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from coordinator_client.endpoint import Endpoint
from coordinator_client.errors import ELSEWHERE, ConnectionLost, CoordinatorError, Refused, WaitTimeout
from coordinator_client.http import HttpEndpoint
from coordinator_client.retry import Backoff, RetryPolicy
from coordinator_client.tcp import TcpEndpoint

Settle = Callable[[Refused], Awaitable[Any]]
"""Given a refusal that came after an attempt in doubt: the answer where that attempt was done, else it raises."""


class Calls:
    """The addresses, one of which is the present one, and the retries over them."""

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        connections: int = 1,
        policy: RetryPolicy | None = None,
        ssl: ssl_module.SSLContext | None = None,
        token: str | None = None,
    ) -> None:
        urls = _addresses(url) if isinstance(url, str) else list(url)
        if not urls:
            raise ValueError("at least one address is needed")
        self._make = [_maker(one, connections, ssl, token, alone=len(urls) == 1) for one in urls]
        self._policy = policy or RetryPolicy()
        self._endpoints: list[Endpoint] = []
        self._current = 0

    async def close(self) -> None:
        """Closes all connections; the next call opens new ones."""
        endpoints, self._endpoints = self._endpoints, []
        for endpoint in endpoints:
            await endpoint.close()

    def backoff(self) -> Backoff:
        """The delays of one call."""
        return Backoff(self._policy, addresses=len(self._make))

    async def ask(
        self,
        operation: str,
        params: dict[str, Any],
        patience_s: float,
        *,
        once: bool = False,
        settle: Settle | None = None,
    ) -> Any:
        """The answer to an operation of proto/tcp.md.

        ``once``: it is not asked again after an attempt in doubt, which is raised.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + patience_s
        backoff, id = self.backoff(), params.get("id")
        last: CoordinatorError | None = None
        doubted = False
        while True:
            endpoint = self.endpoint()
            try:
                async with asyncio.timeout_at(None if math.isinf(until) else until):
                    return await endpoint.request(operation, params, until - loop.time())
            except TimeoutError:
                last = last or WaitTimeout("no answer came in time")
                last.command_id = id
                raise last from None
            except CoordinatorError as error:
                if doubted and settle is not None and isinstance(error, Refused):
                    error.command_id = id
                    return await settle(error)
                if in_doubt(error):
                    if once:
                        error.command_id = id
                        raise
                    doubted = True
                last = error
                await self.pause(endpoint, error, backoff, until - loop.time(), id)

    async def pause(
        self, endpoint: Endpoint, error: CoordinatorError, backoff: Backoff, remaining_s: float, id: str | None
    ) -> None:
        """Waits before the next attempt; raises ``error`` where there is none."""
        error.command_id = error.command_id or id
        self.leave(endpoint, error)
        delay_s = backoff.delay(error, remaining_s)
        if delay_s is None:
            raise error
        await asyncio.sleep(delay_s)

    def endpoint(self) -> Endpoint:
        """Where the next attempt goes."""
        if not self._endpoints:
            self._endpoints = [make() for make in self._make]  # within the loop that will use them
        for _ in self._endpoints:
            endpoint = self._endpoints[self._current % len(self._endpoints)]
            if not endpoint.leaving:
                return endpoint
            self._current += 1
        return self._endpoints[self._current % len(self._endpoints)]

    def leave(self, endpoint: Endpoint, error: CoordinatorError) -> None:
        """Moves on to the next address, unless another call has done so already."""
        if isinstance(error, ELSEWHERE) and self._endpoints and self.endpoint() is endpoint:
            self._current = (self._current + 1) % len(self._endpoints)


def in_doubt(error: CoordinatorError) -> bool:
    """Whether what was asked may have been done nevertheless."""
    match error:
        case ConnectionLost():
            return error.sent
        case WaitTimeout():
            return True
        case _:
            return bool(error.extra.get("in_doubt"))


def _addresses(text: str) -> list[str]:
    """``tcp://a:1,b:2`` as two addresses: what has no scheme of its own has that of the one before it."""
    found: list[str] = []
    for each in filter(None, (part.strip() for part in text.split(","))):
        scheme = found[-1].partition("://")[0] if found else ""
        found.append(each if "://" in each or not scheme else f"{scheme}://{each}")
    return found


def _maker(
    url: str, connections: int, ssl: ssl_module.SSLContext | None, token: str | None, *, alone: bool
) -> Callable[[], Endpoint]:
    """What makes the endpoint for an address; raises ValueError for what is no address."""
    parts = urlsplit(url)
    if parts.scheme in ("tcp", "tcps"):
        host, port = parts.hostname, parts.port
        if host is None or port is None or parts.path not in ("", "/"):
            raise ValueError(f"{url!r}: an address is tcp://host:port")
        context = ssl or (ssl_module.create_default_context() if parts.scheme == "tcps" else None)
        return lambda: TcpEndpoint(host, port, size=connections, ssl=context, token=token)
    if parts.scheme in ("http", "https") and parts.hostname:
        verify = parts.scheme == "https" and (ssl if ssl is not None else True)  # a context costs 45 ms of CPU
        return lambda: HttpEndpoint(url, token=token, verify=verify, alone=alone)
    raise ValueError(f"{url!r}: an address begins with tcp://, tcps://, http:// or https://")
