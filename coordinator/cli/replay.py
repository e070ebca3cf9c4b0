"""``coordinator replay``: a service's past outcomes, in log order, to where they are needed again.

A service that lost its data is rebuilt by posting them to it: each with the ``Idempotency-Key`` under which it was
first asked (so a service that still has it answers as it did) and ``Coordinator-Replay: true`` (so it may tell a
rebuild from life).  One at a time and in log order, since a later outcome may rest on an earlier one.

Both ends may break.  The stream is taken up again after the last outcome seen; a delivery whose answer is unknown is
repeated until it is known.  Whatever ends the run, the last position delivered is told, with the words to go on from.

The stream's order is partition by partition, and within each by offset; ``--follow`` comes round to each again.  So
what was seen is remembered a partition, and a stream that is opened anew is read past it.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from coordinator.cli.api import Api
from coordinator.cli.errors import Refused, Unreachable, streamed_refusal
from coordinator.cli.options import Duration, Url, server_option
from coordinator.errors import InvalidPayload
from coordinator.model.ids import parse_position

if TYPE_CHECKING:
    import httpx
    from rich.progress import Progress, TaskID

QUIET_S = 60.0
PAUSE_S = (0.2, 5.0)
LOST_S = 120.0
UNKNOWN = frozenset({408, 425, 429})

Item = dict[str, Any]
Send = Callable[[Item, str], bool]
"""Delivers an outcome (parsed, and as the line it came in); True: accepted, False: refused."""


class Rate(click.ParamType[float]):
    """``100/s``, ``30/m``, or a plain number a second."""

    name = "N/s"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d{1,7}(?:\.\d{1,6})?)(?:/(s|m|h))?", str(value))
        if match is None or float(match[1]) == 0:
            self.fail(f"{value!r} is no rate such as 100/s or 30/m", param, ctx)
        return float(match[1]) / {"s": 1, "m": 60, "h": 3600}[match[2] or "s"]


class Start(click.ParamType[str]):
    """A position (``3:1841``, inclusive) or a time (RFC 3339)."""

    name = "POSITION|TIME"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            parse_position(value)
        except InvalidPayload:
            try:
                moment = datetime.fromisoformat(value)
            except ValueError:
                self.fail(
                    f"{value!r} is neither a position such as 3:1841 nor a time such as 2026-01-31T12:00:00Z",
                    param,
                    ctx,
                )
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)  # as all times that are printed here
            return moment.isoformat()
        return value


class Counts:
    """What became of the outcomes; ``position`` is the last one done with."""

    def __init__(self) -> None:
        self.sent = 0
        self.accepted = 0
        self.refused = 0
        self.skipped = 0
        self.position = ""

    def __str__(self) -> str:
        text = f"sent {self.sent}, accepted {self.accepted}, refused {self.refused}, skipped {self.skipped}"
        return f"{text}; last position {self.position}" if self.position else text


@click.command()
@click.option("--service", required=True, help="Whose outcomes.")
@click.option("--from", "start", type=Start(), help="Begin there, inclusive; at the log's start if absent.")
@click.option("--since", type=Start(), hidden=True, help="Leave out what was recorded before TIME.")
@click.option("--to", default="-", show_default=True, metavar="URL|-", help="Post each to the URL, or print it.")
@click.option("--rate", type=Rate(), help="At most so many, for example 100/s.")
@click.option("--dry-run", is_flag=True, help="Count, deliver nothing.")
@click.option("--follow", is_flag=True, help="Go on with new outcomes as they are recorded.")
@click.option("--timeout", type=Duration(), default="10s", show_default=True, help="For one delivery.")
@click.option("--give-up-after", type=Duration(), default="5m", show_default=True, help="Without an answer from URL.")
@server_option
def replay(
    service: str, start: str | None, since: str | None, to: str, rate: float | None, dry_run: bool, follow: bool,
    timeout: int, give_up_after: int, server: str,
) -> None:  # fmt: skip
    """Stream the past outcomes of a service in log order, exactly as recorded.

    They go to standard output as NDJSON, or each as a POST to a URL with its Idempotency-Key and Coordinator-Replay:
    true.  A lost connection is taken up again; an unknown answer is repeated.  Ends with counts; exits with 1 if any
    outcome was refused.
    """
    url = None if to == "-" else Url().convert(to, None, None)
    _interrupt_on_sigterm()
    counts = Counts()
    quiet = not sys.stderr.isatty()
    with Api(server) as api, Delivery(url, timeout, give_up_after) as delivery, Bar(service, quiet) as bar:
        send = None if dry_run else delivery.post if url else _print
        try:
            for item, line in outcomes(api, service, start, since, follow):
                _one(item, line, send, counts)
                bar.update(counts)
                if send is not None and rate is not None:
                    delivery.pace(rate)
        except KeyboardInterrupt:
            bar.close()
            _report(counts, service, start, since, follow, to)
            sys.exit(130)
        except (Unreachable, Refused):
            bar.close()
            if counts.position:
                _report(counts, service, start, since, follow, to)
            raise
    click.echo(str(counts), err=True)
    sys.exit(1 if counts.refused else 0)


def _one(item: Item, line: str, send: Send | None, counts: Counts) -> None:
    if send is None:
        counts.skipped += 1
    else:
        counts.sent += 1
        if send(item, line):
            counts.accepted += 1
        else:
            counts.refused += 1
    counts.position = item["position"]


def _print(_item: Item, line: str) -> bool:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
    return True


def _report(counts: Counts, service: str, start: str | None, since: str | None, follow: bool, to: str) -> None:
    click.echo(str(counts), err=True)
    # With --follow one position does not tell where every partition stood; the keys make a second time harmless.
    resume = start if follow else counts.position or start
    words = ["coordinator replay --service", service]
    if resume:
        words += ["--from", resume]
    earlier = since or (start if start and "T" in start else None)
    if earlier and earlier != resume:
        words += ["--since", earlier]
    words += (["--follow"] if follow else []) + (["--to", to] if to != "-" else [])
    again = f" ({counts.position} comes once more, under the same key)" if counts.position and not follow else ""
    click.echo(f"to go on: {' '.join(words)}{again}", err=True)


def _interrupt_on_sigterm() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


# ---------------------------------------------------------------- where they come from


def outcomes(
    api: Api, service: str, start: str | None, since: str | None = None, follow: bool = False
) -> Iterator[tuple[Item, str]]:
    """Each outcome once, with the line it came in, through any number of lost connections.

    Raises `Refused`, or `Unreachable` when the server was never reached or is gone for two minutes.
    """
    seen: dict[int, int] = {}  # the last offset, by partition
    begin, last = start, None
    earliest = _moment(since or (start if start and "T" in start else None))
    heard, reached = time.monotonic(), False
    while True:
        try:
            query: dict[str, Any] = {"service": service, "from": begin, "follow": "true" if follow else None}
            with api.lines("/v1/outcomes", quiet_s=None if follow else QUIET_S, **query) as lines:
                reached = True
                for line in lines:
                    heard = time.monotonic()
                    item = _parsed(line)
                    if item is None:
                        continue
                    partition, offset = parse_position(item["position"])
                    if offset <= seen.get(partition, -1) or (earliest and _moment(item["at"]) < earliest):
                        continue
                    seen[partition] = offset
                    last = item["position"]
                    yield item, line
            return
        except Refused as refusal:
            if not refusal.retryable:
                raise
            fault: Refused | Unreachable = refusal
            reached = True
        except Unreachable as error:
            if not reached:
                raise
            fault = error
        if time.monotonic() - heard > LOST_S:
            raise fault
        begin = start if follow else last or start
        time.sleep(getattr(fault, "retry_after_s", None) or PAUSE_S[0])


def _moment(text: str | None) -> float:
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def _parsed(line: str) -> Item | None:
    """An outcome; None for an empty line.  A line that tells an error ends the stream as a lost connection would."""
    if not line.strip():
        return None
    item: Item = json.loads(line)
    if isinstance(item.get("error"), dict) and "position" not in item:
        raise streamed_refusal(item["error"])
    return item


# ---------------------------------------------------------------- where they go


class Delivery:
    """Posts outcomes to one URL until each answer is known."""

    def __init__(self, url: str | None, timeout_ms: int, give_up_ms: int) -> None:
        self._url = url or ""
        self._timeout_s = timeout_ms / 1000
        self._give_up_s = give_up_ms / 1000
        self._due = 0.0
        self._client: httpx.Client | None = None

    def __enter__(self) -> Delivery:
        if self._url:
            import httpx

            self._client = httpx.Client(timeout=self._timeout_s, trust_env=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()

    def pace(self, rate: float) -> None:
        """Waits until the next one is due; time lost to a slow service is not made up by a burst."""
        now = time.monotonic()
        self._due = max(self._due + 1 / rate, now)
        time.sleep(self._due - now)

    def post(self, item: Item, line: str) -> bool:
        """True for 2xx, False for a known refusal; raises `Unreachable` when there was no known answer for too long."""
        import httpx

        from coordinator.gateway.request import encode_key

        assert self._client is not None
        headers = {
            "content-type": "application/json",
            "idempotency-key": encode_key(f"{item['command_id']}/{item['step']}"),  # as the gateway sent it
            "coordinator-replay": "true",
            "coordinator-position": item["position"],
        }
        until = time.monotonic() + self._give_up_s
        pause = PAUSE_S[0]
        told = False
        while True:
            wish = None
            try:
                answer = self._client.post(self._url, content=line.encode(), headers=headers)
                if answer.status_code < 500 and answer.status_code not in UNKNOWN:
                    if not answer.is_success:
                        click.echo(
                            f"{item['position']} refused: HTTP {answer.status_code} {answer.text[:200]}", err=True
                        )
                    return answer.is_success
                why = f"HTTP {answer.status_code}"
                wish = answer.headers.get("retry-after", "")
            except httpx.TransportError as error:
                why = str(error) or type(error).__name__
            if time.monotonic() + pause > until:
                raise Unreachable(f"{self._url} gave no answer to {item['position']} for {self._give_up_s:g} s: {why}")
            if not told:
                click.echo(f"{item['position']} not known to have arrived ({why}); repeating it", err=True)
                told = True
            time.sleep(min(float(wish), self._give_up_s) if wish and wish.isdigit() else pause)
            pause = min(2 * pause, PAUSE_S[1])


# ---------------------------------------------------------------- what a person sees meanwhile


class Bar:
    """Progress on standard error if that is a terminal; how many there are in all is not known, so it only moves."""

    def __init__(self, service: str, quiet: bool) -> None:
        self._service = service
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        if not quiet:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[counts]}"),
                TimeElapsedColumn(), console=Console(stderr=True, markup=False), transient=True,
            )  # fmt: skip

    def __enter__(self) -> Bar:
        if self._progress is not None:
            self._progress.start()
            self._task = self._progress.add_task(f"replay {self._service}", total=None, counts="")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, counts: Counts) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, counts=str(counts))
