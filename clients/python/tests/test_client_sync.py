"""The synchronous client: the same calls from plain code and from many threads."""

from __future__ import annotations

import asyncio
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from coordinator_client import AsyncClient, Client, UnknownCommand


def test_both_clients_have_the_same_methods() -> None:
    """With the same parameters: whoever reads one knows the other."""

    def methods(client: type[Any]) -> dict[str, list[tuple[str, Any, Any]]]:
        found = inspect.getmembers(client, inspect.isfunction)
        return {
            name: [(each.name, each.kind, each.default) for each in inspect.signature(method).parameters.values()]
            for name, method in found
            if not name.startswith("_")
        }

    assert methods(Client) == methods(AsyncClient)


async def test_calls_block_and_return(tcp: Any, view: dict[str, Any]) -> None:
    """Submit, refusal and iteration work without a line of asyncio in the caller."""

    async def script(peer: Any) -> None:
        await peer.greet()
        seq, submission = await peer.submitted()
        peer.send([7, seq, submission["id"], "0:7", view])
        request = await peer.read()
        peer.send([10, request[1], "unknown_command", "Unknown", "no such command", False, None, {}])
        request = await peer.read()
        peer.send([4, request[1], "c-1", "0:1", False, None], [7, request[1], "c-1", "0:7", view])

    def use() -> list[str]:
        with Client(tcp.url) as client:
            assert client.submit("T", {"n": 1}, wait="5s").ok
            with pytest.raises(UnknownCommand):
                client.get("nope")
            return [event.kind for event in client.watch("c-1")]

    tcp.play(script)
    assert await asyncio.to_thread(use) == ["accepted", "final"]


async def test_threads_share_one_connection(tcp: Any, view: dict[str, Any]) -> None:
    """Calls of four threads are in flight together on the one connection that the server sees."""

    async def script(peer: Any) -> None:
        await peer.greet()
        calls = [await peer.submitted() for _ in range(4)]
        for seq, submission in calls:
            peer.send([7, seq, submission["id"], "0:7", view | {"result": submission["payload"]}])

    def use() -> list[int]:
        with Client(tcp.url) as client, ThreadPoolExecutor(4) as threads:
            return sorted(threads.map(lambda n: client.submit("T", n, wait=5).result, range(4)))

    tcp.play(script)
    assert await asyncio.to_thread(use) == [0, 1, 2, 3]


async def test_close_ends_the_thread_and_stops_an_iteration_early(tcp: Any) -> None:
    """Leaving a watch and the client behind leaves neither a task nor a thread."""

    async def script(peer: Any) -> None:
        await peer.greet()
        request = await peer.read()
        peer.send([4, request[1], "c-1", "0:1", False, None])
        assert await peer.read() == [3, request[1]]

    def use() -> list[str]:
        with Client(tcp.url) as client:
            events = client.watch("c-1")
            first = next(events)
            events.close()  # type: ignore[attr-defined]
            client._client._calls.endpoint()  # still connected: only the watch ended
        assert first.kind == "accepted"
        return [thread.name for thread in threading.enumerate()]

    tcp.play(script)
    assert "coordinator-client" not in await asyncio.to_thread(use)
