"""``coordinator demo``: a shop of four processes, an outage and a kill -9, ended by an audit of every ledger."""

from __future__ import annotations

import sys

import click


@click.command()
@click.option(
    "--orders", type=click.IntRange(min=1), default=1000, show_default=True, help="How many orders to submit."
)
@click.option("--kill/--no-kill", default=True, show_default=True, help="Kill the coordinator with -9 half way.")
@click.option("--keep", is_flag=True, help="Keep the log, the ledgers and all output.")
@click.option("--seed", type=int, default=1, show_default=True, help="Makes the orders.")
def demo(orders: int, kill: bool, keep: bool, seed: int) -> None:
    """Run orders through an outage and a kill -9, then audit what the services did.

    Exits with 1 if any order is neither wholly done nor wholly undone.
    """
    from coordinator.demo.stage import perform  # here: other verbs need not wait for a web server's imports
    from coordinator.demo.story import Plot

    sys.exit(0 if perform(Plot(orders, kill, seed), keep=keep) else 1)
