"""Shows the demo: a live progress bar on a terminal, one line for each event and each tenth elsewhere."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from coordinator.demo.tally import Report, Tally

_REFRESH_S = 0.1
_FAULTS_SHOWN = 20


class Screen:
    """Follows a Tally until its block is left; ``tell`` adds a line."""

    def __init__(self, console: Console, tally: Tally) -> None:
        self._console = console
        self._tally = tally
        self._tenths = 0
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[status]}"), console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._bar: TaskID = self._progress.add_task("orders", total=tally.total, status="")

    def tell(self, line: str) -> None:
        """Adds a line, after whatever progress came before it."""
        self._show()
        self._print(line)

    def _print(self, line: str) -> None:
        self._console.print(f"  {line}", highlight=False, soft_wrap=True)

    async def __aenter__(self) -> Self:
        self._progress.start()
        self._follower = asyncio.create_task(self._follow())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._follower.cancel()
        self._show()
        self._progress.stop()

    async def _follow(self) -> None:
        while True:
            self._show()
            await asyncio.sleep(_REFRESH_S)

    def _show(self) -> None:
        self._progress.update(self._bar, completed=self._tally.settled, status=status_of(self._tally))
        tenths = self._tally.settled * 10 // self._tally.total
        if not self._console.is_terminal and tenths > self._tenths:
            self._tenths = tenths
            self._print(f"{self._tally.settled} of {self._tally.total} orders settled")


def status_of(tally: Tally) -> str:
    """What the coordinator is doing, in a few words beside the bar."""
    watch = tally.watch
    if not watch.up:
        return "[red]coordinator down[/]"
    if watch.suspended:
        return f"[yellow]suspended: {', '.join(sorted(watch.suspended))} · {watch.delayed} delayed[/]"
    return f"[yellow]{watch.delayed} delayed[/]" if watch.delayed else "[green]running[/]"


def print_report(console: Console, report: Report) -> None:
    """The table at the end, and the verdict."""
    table = Table(title="what became of the orders", title_justify="left", show_header=False)
    for what, figure in _rows(report):
        table.add_row(what, figure)
    console.print(table)
    for fault in report.faults[:_FAULTS_SHOWN]:
        console.print(f"[red]✗[/] {fault}", highlight=False, soft_wrap=True)
    if report.faults:
        console.print(f"[bold red]{len(report.faults)} contradictions between the coordinator and the ledgers[/]")
    else:
        console.print("[bold green]✓ every order wholly done or wholly undone; none missing, none double[/]")


def _rows(report: Report) -> list[tuple[str, str]]:
    counts = report.counts
    restart = "not killed" if report.restart_s is None else f"{report.restart_s:.2f} s"
    return [
        ("orders submitted", f"{report.orders}"),
        ("completed", f"{counts['completed']}"),
        ("compensated (refused half way, undone)", f"{counts['compensated']}"),
        ("failed (refused at the first step)", f"{counts['failed']}"),
        ("intake suspensions seen", f"{report.suspensions}"),
        ("delayed at the peak", f"{report.delayed_peak}"),
        ("from kill -9 to ready again", restart),
        ("entries in the three ledgers", f"{report.effects}"),
        ("repeats that changed nothing", f"{report.repeats}"),
        ("time, outage and restart included", f"{report.seconds:.1f} s, {report.orders / report.seconds:.0f} sagas/s"),
    ]
