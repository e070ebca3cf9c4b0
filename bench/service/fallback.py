"""main.go in Python, at the speed of its C parts: uvloop's sockets and httptools' parser.  Same flags, same answers."""

from __future__ import annotations

import argparse
import asyncio
from typing import cast

import httptools
import uvloop

ANSWER = b'{"id":"0123456789abcdef","status":"done","note":"an answer of about one hundred bytes, as told"}'


def response(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


REPLY = response(ANSWER)


class Counts:
    """What GET /stats tells."""

    def __init__(self) -> None:
        self.requests = 0
        self.in_flight = 0
        self.peak = 0

    def begin(self) -> None:
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)

    def end(self) -> None:
        self.in_flight -= 1
        self.requests += 1

    def json(self) -> bytes:
        return b'{"requests":%d,"in_flight":%d,"peak":%d}' % (self.requests, self.in_flight, self.peak)


class Connection(asyncio.Protocol):
    """One keep-alive connection; also the callbacks of its parser."""

    def __init__(self, counts: Counts, delay_s: float) -> None:
        self._counts = counts
        self._delay_s = delay_s
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_message_complete(self) -> None:
        if self._parser.get_method() != b"POST":
            self._transport.write(response(self._counts.json()))
            return
        self._counts.begin()
        if self._delay_s:
            asyncio.get_running_loop().call_later(self._delay_s, self._reply)
        else:
            self._reply()

    def _reply(self) -> None:
        self._counts.end()
        self._transport.write(REPLY)


async def serve(port: int, delay_s: float) -> None:
    counts = Counts()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(counts, delay_s), "127.0.0.1", port)
    print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.service.fallback")
    parser.add_argument("-port", type=int, default=0)
    parser.add_argument("-delay", default="0ms", help="milliseconds, as 2ms")
    options = parser.parse_args()
    uvloop.run(serve(options.port, float(options.delay.removesuffix("ms")) / 1000))


if __name__ == "__main__":
    main()
