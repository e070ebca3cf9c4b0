"""`coordinator demo` itself, small: real processes, a real outage, a real kill -9, and an audit that must be clean."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

from coordinator.demo.story import make_orders


async def start_demo(directory: Path, *options: str) -> asyncio.subprocess.Process:
    """The demo as a user starts it, without a terminal, with its files under ``directory``."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "coordinator", "demo", *options, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT, env=os.environ | {"TMPDIR": str(directory)},
    )  # fmt: skip


def children_of(directory: Path) -> list[str]:
    """Command lines of living processes that have ``directory`` in their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(directory) in line:
            found.append(line)
    return found


async def test_the_demo_ends_with_every_order_whole(tmp_path: Path) -> None:
    """Outage and kill -9 included: exit 0, the verdict printed, nothing left running, nothing left on disk."""
    demo = await start_demo(tmp_path, "--orders", "150")
    output = (await demo.communicate())[0].decode()
    assert demo.returncode == 0, output
    assert "every order wholly done or wholly undone" in output
    assert "intake of orders is suspended: payments" in output
    assert re.search(r"kill -9 \d+: the coordinator dies", output)
    assert children_of(tmp_path) == []
    assert os.listdir(tmp_path) == []


async def test_an_interrupted_demo_leaves_no_process_behind(tmp_path: Path) -> None:
    """Ctrl-C in the middle: exit 1, all four processes are gone, the logs are kept and named."""
    demo = await start_demo(tmp_path, "--orders", "100000")
    assert demo.stdout is not None
    lines = []
    async for line in demo.stdout:
        lines.append(line.decode())
        if "submitting" in lines[-1]:
            assert len(children_of(tmp_path)) == 4
            demo.send_signal(signal.SIGINT)
    assert await demo.wait() == 1
    assert children_of(tmp_path) == []
    assert any("interrupted" in line for line in lines)
    (kept,) = os.listdir(tmp_path)
    assert {"daemon.log", "payments.log", "payments.db"} <= set(os.listdir(tmp_path / kept))
    assert any(kept in line for line in lines)


async def test_three_instances_lose_one_get_one_and_let_one_go(kafka_bootstrap: str, tmp_path: Path) -> None:
    """`make demo-cluster`, small: a kill -9 under load, a take-over, a newcomer, a drain, and a clean audit."""
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "coordinator.demo.group", "--bootstrap", kafka_bootstrap, "--orders", "900"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    output = (await demo.communicate())[0].decode()
    assert demo.returncode == 0, output
    (takeover,) = re.findall(r"the others act for all of them ([0-9.]+) s later", output)
    assert float(takeover) < 5
    assert "exit code 0" in output
    assert "audit: every order is wholly done" in output
    assert children_of(tmp_path) == []
    assert os.listdir(tmp_path) == []


def test_orders_are_the_same_for_the_same_seed() -> None:
    """A demo that fails can be played again; each of the three services has something to refuse."""
    assert make_orders(1000, 7) == make_orders(1000, 7) != make_orders(1000, 8)
    orders = make_orders(1000, 1)
    assert len({order.order for order in orders}) == 1000
    assert any(order.item == "teapot" for order in orders)
    assert any(order.amount > 90_00 for order in orders)
    assert any(order.city == "Atlantis" for order in orders)
