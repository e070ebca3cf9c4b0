"""``python -m coordinator.testing.simulator``: see the package.  Exit code 1 when a promise was broken."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable

from coordinator.testing.simulator import Cut, Report, command_line, search, shrink, simulate
from coordinator.testing.simulator.plan import FAULTS


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.replay is not None:
        return _replay(options.replay, Cut(options.commands, options.without, options.until))
    seeds = options.seeds if options.minutes is None else None
    return _search(search(options.first, seeds, minutes=options.minutes, jobs=options.jobs))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m coordinator.testing.simulator", description="Whole daemons in a box."
    )
    parser.add_argument("--seeds", type=int, default=100, help="how many worlds to run (100)")
    parser.add_argument("--from", type=int, default=0, dest="first", metavar="SEED", help="the first one (0)")
    parser.add_argument("--minutes", type=float, help="instead of --seeds: for so long")
    parser.add_argument("--jobs", type=int, default=0, help="processes that share the work (as many as cores)")
    parser.add_argument(
        "--replay", type=int, metavar="SEED", help="run one world twice, and tell all that happens in it"
    )
    parser.add_argument("--commands", type=_numbers, help="replay: only these commands, for example 0,3")
    parser.add_argument("--without", type=_faults, default=(), help=f"replay: not these faults: {','.join(FAULTS)}")
    parser.add_argument("--until", type=float, metavar="S", help="replay: the trouble ends after so many seconds")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _faults(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(FAULTS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: there are {', '.join(FAULTS)}")
    return names


def _replay(seed: int, cut: Cut) -> int:
    report = simulate(seed, cut, journal=True)
    print("\n".join(report.journal))
    again = simulate(seed, cut)
    same = "again the same" if again.trace == report.trace else f"BUT {again.trace} WHEN RUN AGAIN"
    print(f"\ntrace {report.trace}, {same}\n{_told(report)}")
    for violation in report.violations:
        print(f"BROKEN: {violation}")
    return 1 if report.violations or again.trace != report.trace else 0


def _search(found: Iterable[Report]) -> int:
    began = time.monotonic()
    reports: list[Report] = []
    failing: list[Report] = []
    for report in found:
        reports.append(report)
        if report.violations:
            failing.append(report)
            _tell_broken(report)
    took = time.monotonic() - began
    total = sum((Counter(report.faults) for report in reports), Counter[str]())
    print(
        f"{len(reports)} worlds in {took:.1f} s, {sum(each.seconds for each in reports):.0f} s of their time: "
        f"{sum(each.commands for each in reports)} commands, {sum(each.appends for each in reports)} appends, "
        f"{sum(each.calls for each in reports)} calls, {sum(each.epochs for each in reports)} epochs, "
        f"{sum(each.lives for each in reports)} lives, {sum(each.callbacks for each in reports)} callbacks in an order "
        f"of their own in each"
    )
    print("faults: " + ", ".join(f"{count} {name}" for name, count in sorted(total.items())))
    print(f"broken: {', '.join(str(each.seed) for each in failing) or 'nothing'}")
    return 1 if failing else 0


def _tell_broken(report: Report) -> None:
    print(f"seed {report.seed} BROKEN: {report.violations[0]}")
    print(f"  again:   {command_line(report)}")
    small = shrink(report)
    if small.cut != report.cut:
        print(f"  smaller: {command_line(small)}\n           {small.violations[0]}")
    sys.stdout.flush()


def _told(report: Report) -> str:
    ends = ", ".join(f"{count} {state}" for state, count in report.ends.items())
    return (
        f"seed {report.seed}: {report.seconds} s, {report.commands} commands ({ends}), {report.appends} appends, "
        f"{report.calls} calls, {report.epochs} epochs, {report.lives} lives"
    )


if __name__ == "__main__":
    sys.exit(main())
