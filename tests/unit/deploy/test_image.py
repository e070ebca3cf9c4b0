"""The image's recipe, as far as it can be read: what it installs is locked, and what it starts is the daemon itself."""

from __future__ import annotations

import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from coordinator.server.config_sources import load

ROOT = Path(__file__).resolve().parents[3]
PINNED = re.compile(r"^([\w-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)", re.MULTILINE)


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each on one line, without comments."""
    lines = (line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (name, " ".join(rest.split()))
        for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


def of(name: str) -> list[str]:
    return [rest for each, rest in instructions() if each == name]


def pinned(lock: str) -> dict[str, tuple[str, str]]:
    """Version and hashes by name."""
    return {name: (version, hashes) for name, version, hashes in PINNED.findall((ROOT / lock).read_text())}


def test_everything_that_is_installed_is_locked() -> None:
    """Each install checks hashes or takes what was built here; nothing is fetched that no lock names."""
    installs = [part for run in of("RUN") for part in run.split("&&") if " install " in part and "pip" in part]
    assert len(installs) == 3
    assert all("--require-hashes" in each or "--no-index" in each for each in installs)
    (wheel,) = (part for run in of("RUN") for part in run.split("&&") if "pip wheel" in part)
    assert "--no-build-isolation" in wheel
    assert "--no-deps" in wheel


def test_the_build_backend_is_the_one_that_is_tested() -> None:
    """The lock of the build is a part of the one that `make setup` installs."""
    build, dev = pinned("deploy/requirements-build.lock"), pinned("requirements-dev.lock")
    assert "hatchling" in build
    assert build == {name: dev.get(name) for name in build}


def test_the_final_stage_builds_nothing() -> None:
    """It takes the finished environment from the first stage and removes the installer that its base has."""
    final = instructions()[[name for name, _ in instructions()].index("FROM", 2) :]
    assert not any("pip install" in rest or "apt-get" in rest for _, rest in final)
    assert any("pip uninstall" in rest for name, rest in final if name == "RUN")
    assert [rest for name, rest in final if name == "COPY"] == ["--from=build /opt/coordinator /opt/coordinator"]


def test_the_build_sees_all_that_it_copies_and_nothing_else() -> None:
    """Each source of a COPY is let through by .dockerignore; the tests, the history and the logs of trials are not."""
    copied = [source for copy in of("COPY") if not copy.startswith("--from") for source in copy.split()[:-1]]
    assert copied
    assert all(sent(source) for source in copied)
    assert all((ROOT / source).exists() for source in copied)
    assert not any(
        map(sent, ("tests", ".git", ".venv", "coordinator-data", "clients/python/tests", "deploy/compose.yaml"))
    )


def sent(path: str) -> bool:
    """Whether a path goes to the builder: the last line that fits it, or a folder above it, decides."""
    answer = True
    above = [path, *(str(folder) for folder in Path(path).parents if str(folder) != ".")]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        fits = (
            not line.startswith("#") and line and any(fnmatch(each, pattern) and deep(each, pattern) for each in above)
        )
        answer = line.startswith("!") if fits else answer
    return answer


def deep(path: str, pattern: str) -> bool:
    """A star stays within one folder."""
    return path.count("/") == pattern.count("/") or "**" in pattern


def test_it_runs_without_rights() -> None:
    """The user is a number that is not root's, so that Kubernetes can tell."""
    user, group = of("USER")[-1].split(":")
    assert int(user) > 0
    assert int(group) > 0


def test_signals_reach_the_daemon() -> None:
    """The entry point is no shell, and what `docker stop` sends is what drains."""
    assert json.loads(of("ENTRYPOINT")[0]) == ["coordinator", "serve"]
    assert of("STOPSIGNAL") == ["SIGTERM"]


def test_the_listeners_are_exposed() -> None:
    """The variables of the image are a valid configuration, reachable from outside on the ports that it exposes."""
    config = load(None, environ=dict(re.findall(r"(COORDINATOR_\w+)=(\S+)", of("ENV")[-1]))).config
    addresses = config.listen.addresses().values()
    assert {host for host, _ in addresses} == {"0.0.0.0"}
    assert sorted(port for _, port in addresses) == sorted(map(int, of("EXPOSE")[0].split()))
    assert of("VOLUME") == [config.log.data_dir]


def test_the_health_check_asks_whether_it_lives() -> None:
    """It is Python that compiles, without a shell and without curl, on the port of HTTP; a standby is healthy."""
    command = json.loads(of("HEALTHCHECK")[0].partition("CMD ")[2])
    compile(command[-1], "health check", "exec")
    assert command[:-1] == ["python", "-I", "-S", "-c"]
    assert "8080" in command[-1]
    assert "/healthz" in command[-1]


@pytest.mark.parametrize("file", ["Dockerfile", "deploy/compose.yaml"])
def test_it_is_this_version(file: str) -> None:
    """A release names itself everywhere."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.search(
        rf"(ARG VERSION=|image: coordinator:){re.escape(version)}$", (ROOT / file).read_text(), re.MULTILINE
    )
