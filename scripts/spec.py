#!/usr/bin/env python3
"""Checks the model of docs/spec/ with spin: what must hold holds, each shortcut is found broken, each sight is seen.

    scripts/spec.py               all checks of `make spec`; exit 1 if one ends otherwise than it must
    scripts/spec.py --deep        larger bounds as well (half an hour, up to 3 GB each)
    scripts/spec.py --at-once 2   two checks at a time
    scripts/spec.py --only WORD   the checks whose names contain it
    scripts/spec.py --trace NAME  the shortest counterexample of a shortcut, in words
    scripts/spec.py --write       with --deep: also puts the tables into docs/spec/README.md

Needs spin (6.5) and gcc, both Debian packages; installs nothing, and exits 2 where one is missing.  A check is the
model compiled with its switches; nothing is kept between runs.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

SPEC: Final = Path(__file__).resolve().parent.parent / "docs" / "spec"
MODEL: Final = SPEC / "protocol.pml"
PACKAGES: Final = ("spin", "gcc")  # of Debian; each has a command of the same name
MEMORY_MB, MEMORY_DEEP_MB = 1_500, 4_000  # at most, of one check


class Check(NamedTuple):
    """One run of the model: ``flags`` are its switches and bounds; ``broken`` names the assertion that must fail."""

    name: str
    flags: str
    broken: str = ""
    finite: bool = False  # look for an endless run instead of a violation
    deep: bool = False


HOLDS: Final = [
    Check("killed, with a cancel", "REDUCED CRASHES=1 REFUSALS=0"),
    Check("a snapshot", "REDUCED SNAPS=1"),
    Check("killed, a step given up", "REDUCED CRASHES=1 CANCELS=0 REFUSALS=0 GIVEUPS=1"),
    Check("two faults", "REDUCED FAULTS=2 CANCELS=0 REFUSALS=0"),
    Check("one fault, unreduced", "FAULTS=1"),
    Check("three instances", "REDUCED NI=3"),
    Check("one fault, submitted twice", "REDUCED FAULTS=1 SUBMITS=2 CANCELS=0"),
    Check("a fault and a lying probe", "REDUCED FAULTS=1 MISTAKES=1 CANCELS=0 REFUSALS=0"),
    Check("killed, with a refusal", "REDUCED CRASHES=1 CANCELS=0"),
    Check("ownership alone, three instances", "NI=3 FAULTS=1 MISTAKES=1 SUBMITS=0"),
    Check("ownership alone, fault and kill", "FAULTS=2 CRASHES=1 SUBMITS=0 TOKENS=13"),
    Check("a lying probe, unreduced", "MISTAKES=1"),
    Check("no run is endless", "GIVEUPS=1", finite=True),
    Check("no run is endless, lying probe", "MISTAKES=1 REFUSALS=0", finite=True),
    Check("group: moved, and killed", "GROUP REDUCED MOVES=1 CRASHES=1 REFUSALS=0"),
    Check("group: moved, and one leaves", "GROUP REDUCED MOVES=1 LEAVES=1 REFUSALS=0"),
    Check("group: a fault and a mistake", "GROUP REDUCED FAULTS=1 MISTAKES=1 REFUSALS=0"),
    Check("group: two mistakes", "GROUP REDUCED MISTAKES=2 CANCELS=0 REFUSALS=0"),
    Check("group: a mistake, unreduced", "GROUP MISTAKES=1 REFUSALS=0"),
    Check("group alone: moves, mistakes, a fault", "GROUP MOVES=1 MISTAKES=2 FAULTS=1 SUBMITS=0"),
    Check("group alone: three, one killed", "GROUP NI=3 MOVES=1 MISTAKES=1 CRASHES=1 SUBMITS=0"),
    Check("group alone: three, one leaves", "GROUP NI=3 MOVES=1 LEAVES=1 FAULTS=1 SUBMITS=0"),
    Check("group: no run is endless", "GROUP MOVES=2 LEAVES=1 MISTAKES=1 SUBMITS=0", finite=True),
    Check("group: no run is endless, three", "GROUP NI=3 MOVES=1 LEAVES=1 SUBMITS=0", finite=True),
    Check("one fault, a step given up", "REDUCED FAULTS=1 GIVEUPS=1 REFUSALS=0", deep=True),
    Check("a snapshot, a lying probe", "REDUCED SNAPS=1 MISTAKES=1", deep=True),
    Check("a fault and a kill", "REDUCED FAULTS=1 CRASHES=1 CANCELS=0 REFUSALS=0", deep=True),
    Check("three instances, one killed", "REDUCED NI=3 CRASHES=1 CANCELS=0 REFUSALS=0", deep=True),
    Check("three instances, a lying probe", "REDUCED NI=3 MISTAKES=1 REFUSALS=0", deep=True),
    Check("a fault, a lying probe, a cancel", "REDUCED FAULTS=1 MISTAKES=1 REFUSALS=0", deep=True),
    Check("one fault, a step given up, unreduced", "FAULTS=1 GIVEUPS=1 REFUSALS=0", deep=True),
    Check("group: three, one leaves", "GROUP REDUCED NI=3 LEAVES=1 REFUSALS=0", deep=True),
    Check("group: two mistakes, a cancel", "GROUP REDUCED MISTAKES=2 REFUSALS=0 LOG_MAX=20", deep=True),
    Check("group: moved, and a mistake", "GROUP REDUCED MOVES=1 MISTAKES=1 CANCELS=0 REFUSALS=0", deep=True),
]

SHORTCUTS: Final = [
    Check("ACT_BEFORE_ACK", "REFUSALS=0", "durability"),
    Check("SKIP_GAP_CHECK", "REFUSALS=0", "durability"),
    Check("UNKNOWN_IS_SUCCESS", "REFUSALS=0 FAULTS=1", "durability"),
    Check("FOLD_TO_ASSIGNMENT", "REFUSALS=0", "durability"),
    Check("ACK_COVERS_EARLIER", "REFUSALS=0 FAULTS=1", "durability"),
    Check("REUSE_TOKEN", "REFUSALS=0 CRASHES=1 TOKENS=8", "durability"),
    Check("KEEP_TOKEN_OVER_RESTART", "REFUSALS=0 FAULTS=1", "agreement"),
    Check("OWN_GHOST_IS_NO_STRANGER", "REFUSALS=0 FAULTS=1", "durability"),
    Check("SNAPSHOT_AT_ITS_POSITION", "REFUSALS=0 SNAPS=1", "durability"),
    Check("SNAPSHOT_WITHOUT_TOKEN", "REFUSALS=0 SNAPS=1", "durability"),
    Check("UNDO_ONLY_WHAT_IS_RECORDED", "REFUSALS=0", "effect"),
    Check("CANCEL_BELIEVES_GIVEN_UP", "REFUSALS=0 GIVEUPS=1", "effect"),
    Check("COMPLETE_OVER_CANCEL", "REFUSALS=0", "effect"),
    Check("SERVICES_FORGET_REFUSALS", "", "effect"),
    Check("SKIP_IDLE_CHECK", "REFUSALS=0 FAULTS=1", "owner"),
    Check("STANDBY_IGNORES_GHOSTS", "REFUSALS=0 FAULTS=1", "owner"),
    Check("STANDBY_DOES_NOT_FOLLOW", "REFUSALS=0 CANCELS=0 FAULTS=1 CRASHES=1", "owner"),
    Check("FOUND_EPOCH_IS_NO_GHOST", "REFUSALS=0 CANCELS=0 FAULTS=1 MISTAKES=1", "owner"),
    Check("EPOCH_MEANS_OWNER", "GROUP SUBMITS=0 MOVES=1", "owner"),
    Check("DEATH_IS_FINAL", "GROUP SUBMITS=0 MISTAKES=1", "owner"),
    Check("HAND_OVER_AT_ONCE", "GROUP SUBMITS=0 MOVES=1", "settling"),
]

SIGHTS: Final = [
    Check("stale records in a gap, acted on", "SIGHT=1 REFUSALS=0 MISTAKES=1 FAULTS=1", "seen"),
    Check("an append in doubt, found", "SIGHT=2 REFUSALS=0 FAULTS=1", "seen"),
    Check("an append in doubt, not found", "SIGHT=3 REFUSALS=0 FAULTS=1", "seen"),
    Check("a dead owner's standby takes over", "SIGHT=4 REFUSALS=0 CRASHES=1", "seen"),
    Check("a ghost's author takes over", "SIGHT=5 REFUSALS=0 FAULTS=1", "seen"),
    Check("a completion that crossed a cancel", "SIGHT=6 REFUSALS=0", "seen"),
    Check("another's step in doubt, resolved", "SIGHT=7 REFUSALS=0", "seen"),
    Check("another's undo, gone on with", "SIGHT=8 REFUSALS=0", "seen"),
    Check("a command is handed over", "GROUP SIGHT=9 REFUSALS=0 MOVES=1", "seen"),
    Check("a hand-over is lost, the heir acquires", "GROUP SIGHT=10 REFUSALS=0 MOVES=1", "seen"),
    Check("two heirs acquire at once", "GROUP SIGHT=11 REFUSALS=0 MOVES=1 MISTAKES=1", "seen"),
]

# Which property an assertion of the model states, by a piece of it as spin prints it.  The first that fits counts; one
# that none fits is a bound of the model that is too small, which proves nothing.  ("settling" is a bound, too: on how
# often the partition changes hands.)
PROPERTIES: Final = [
    ("history[c]==d", "agreement"),
    ("c>=decided", "durability"),
    ("decided==0", "liveness"),
    ("==last", "owner"),
    ("tokens<", "settling"),
    ("effect[", "effect"),
    ("history[(decided-1)]", "effect"),
]


class Result(NamedTuple):
    check: Check
    found: str  # the property violated, "endless run", or "" where all holds
    states: int
    steps: int
    seconds: float
    output: str

    @property
    def as_it_must_be(self) -> bool:
        return self.found == self.check.broken


def run(check: Check, directory: Path) -> Result:
    """Compiles and runs one check in ``directory``; raises RuntimeError with the tools' own words where it cannot."""
    switches = _switches(check)
    memory = MEMORY_DEEP_MB if check.deep else MEMORY_MB
    search = ["-DNP"] if check.finite else ["-DSAFETY", "-DHC4"]
    if check.broken:
        search.append("-DBFS")  # finds a shortest counterexample
    began = time.monotonic()
    _tool(["spin", "-a", *switches, str(MODEL)], directory)
    _whole_hash(directory / "pan.c")
    _tool(
        ["gcc", "-O0" if check.broken else "-O1", "-w", f"-DMEMLIM={memory}", *search, "-o", "pan", "pan.c"], directory
    )
    arguments = ["-E", *(["-l"] if check.finite else []), *([] if check.broken else ["-m100000", "-w24"])]
    output = _tool([str(directory / "pan"), *arguments], directory)
    if "errors:" not in output or ("Search not completed" in output and "errors: 0" in output):
        raise RuntimeError(f"the search was not completed:\n{output}")
    states = re.search(r"(\d+) states, stored", output)
    depth = re.search(r"\(at depth (\d+)\)", output)
    return Result(
        check,
        _found(output),
        int(states[1]) if states else 0,
        int(depth[1]) + 1 if depth else 0,
        time.monotonic() - began,
        output,
    )


def _whole_hash(verifier: Path) -> None:
    """Makes hash-compact use the 64-bit hash.

    For tables of up to 2^32 slots spin 6.5 takes a 32-bit one, whatever width of hash-compact is asked for: a search
    of six million states was seen to lose twenty thousand of them.  With this one its count is that of an exact search.
    """
    text = verifier.read_text()
    chosen = "hasher = d_sfh;"
    if text.count(chosen) != 1:
        raise RuntimeError(f"this version of spin chooses its hash otherwise than 6.5: no {chosen!r} in pan.c")
    verifier.write_text(text.replace(chosen, "hasher = d_hash;"))


def _switches(check: Check) -> list[str]:
    flags = check.flags.split()
    if check.broken:
        flags.append("SHORTEST")
    if check in SHORTCUTS:
        flags.append(check.name)
    return [f"-D{flag}" for flag in flags]


def _tool(command: list[str], directory: Path) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def _found(output: str) -> str:
    if re.search(r"errors: 0\b", output):
        return ""
    if "non-progress cycle" in output:
        return "endless run"
    violated = re.search(r"assertion violated (.*)", output)
    text = violated[1] if violated else output
    if re.search(r"\((\d+)!=\1\)", text):
        return "seen"
    return next((name for piece, name in PROPERTIES if piece in text), f"bound too small: {text}")


def in_words(check: Check, directory: Path) -> str:
    """The counterexample of a shortcut, one event a line."""
    run(check, directory)
    trail = directory / f"{MODEL.name}.trail"
    told = _tool(["spin", "-k", str(trail), "-t", *_switches(check), str(MODEL)], directory)
    events = told.split("spin: trail ends")[0]
    lines = (line.strip() for line in events.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("spin:"))


# ---------------------------------------------------------------- what is shown


def table(results: list[Result], *, broken: bool) -> str:
    if broken:
        head = "| shortcut | bounds | violates | steps | states | s |"
        rows = [
            f"| `{r.check.name}` | `{r.check.flags}` | {r.found} | {r.steps} | {r.states:,} | {r.seconds:.0f} |"
            for r in results
        ]
    else:
        head = "| check | bounds | states | s |"
        rows = [f"| {r.check.name} | `{r.check.flags}` | {r.states:,} | {r.seconds:.0f} |" for r in results]
    return "\n".join([head, "|" + " --- |" * (head.count("|") - 1), *rows])


def write(name: str, text: str) -> None:
    """Puts a table between its marks in the README."""
    readme = SPEC / "README.md"
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, rest = readme.read_text().split(begin)
    readme.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}")


def line(result: Result) -> str:
    verdict = result.found or "holds"
    mark = "ok  " if result.as_it_must_be else "FAIL"
    steps = f"in {result.steps} steps" if result.steps else ""
    return f"{mark} {result.check.name:38} {result.states:>11,} states {result.seconds:6.1f} s  {verdict} {steps}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks the model of docs/spec/ with spin.")
    parser.add_argument("--deep", action="store_true", help="larger bounds as well")
    parser.add_argument("--at-once", metavar="N", type=int, default=1, help="checks that run side by side (1)")
    parser.add_argument("--only", metavar="WORD", default="", help="the checks whose names contain it")
    parser.add_argument("--trace", metavar="NAME", help="the counterexample of a shortcut")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/spec/README.md")
    options = parser.parse_args()
    if options.write and (options.only or not options.deep):
        parser.error("--write needs --deep and no --only: the tables are written as a whole")
    if missing := [package for package in PACKAGES if shutil.which(package) is None]:
        print(f"the model needs Debian's {' and '.join(missing)}: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 2
    checks = [
        check
        for check in [*HOLDS, *SIGHTS, *SHORTCUTS]
        if (options.deep or not check.deep) and options.only.lower() in check.name.lower()
    ]
    if not checks:
        parser.error(f"no check's name contains {options.only!r}")
    with tempfile.TemporaryDirectory() as scratch:

        def one(at: int, check: Check) -> Result:
            directory = Path(scratch) / str(at)
            directory.mkdir()
            result = run(check, directory)
            print(line(result), flush=True)
            return result

        if options.trace:
            check = next((each for each in SHORTCUTS if each.name == options.trace), None)
            if check is None:
                parser.error(f"no shortcut {options.trace}; there are {', '.join(each.name for each in SHORTCUTS)}")
            print(in_words(check, Path(scratch)))
            return 0
        with ThreadPoolExecutor(options.at_once) as pool:
            results = list(pool.map(one, range(len(checks)), checks))
    if options.write:
        write("holds", table([each for each in results if not each.check.broken], broken=False))
        write("broken", table([each for each in results if each.check in SHORTCUTS], broken=True))
    wrong = [each.check.name for each in results if not each.as_it_must_be]
    print(
        f"{len(results)} checks" + (f", not as they must be: {', '.join(wrong)}" if wrong else ", all as they must be")
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
