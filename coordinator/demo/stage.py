"""Puts the story on: a directory for its files, signals, the screen, and an empty stage afterwards."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from pathlib import Path

from rich.console import Console

from coordinator.demo.processes import Shop
from coordinator.demo.screen import Screen, print_report
from coordinator.demo.story import DemoFailed, Plot, play
from coordinator.demo.tally import Tally

_TAIL_LINES = 30


def perform(plot: Plot, *, keep: bool = False, console: Console | None = None) -> bool:
    """Plays ``plot`` and reports; True if the audit found every order whole.

    Every process it started is gone when it returns.  The files stay if ``keep``, or if something was wrong.
    """
    console = console or Console()
    shop = Shop(Path(tempfile.mkdtemp(prefix="coordinator-demo-")))
    sound = False
    try:
        sound = asyncio.run(_perform(plot, shop, console))
    except DemoFailed as failure:
        console.print(f"[bold red]the demo failed:[/] {failure}", highlight=False)
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("[bold red]the demo was interrupted[/]")
    except Exception:  # our own mistake; the logs below are needed all the more
        console.print_exception()
    finally:
        shop.kill_now()
    if sound and not keep:
        shutil.rmtree(shop.directory)
        return True
    if not sound:
        console.print(f"[bold]the last lines of {shop.daemon.log}:[/]", highlight=False, soft_wrap=True)
        console.print(shop.daemon.tail(_TAIL_LINES), markup=False, highlight=False, soft_wrap=True)
    console.print(f"log, ledgers and output: {shop.directory}", highlight=False, soft_wrap=True)
    return sound


async def _perform(plot: Plot, shop: Shop, console: Console) -> bool:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # SIGINT does the same by itself
    tally = Tally(plot.orders)
    try:
        async with Screen(console, tally) as screen:
            report = await play(plot, shop, tally, screen.tell)
    finally:
        await shop.stop()
    print_report(console, report)
    return not report.faults
