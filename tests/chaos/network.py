"""Cables that can be pulled.

Each daemon lives in a network namespace with three cables, each to a bridge of its own:

    broker cable   10.90.1.0/24   the brokers                                (cut: "from the brokers")
    peer cable     10.90.2.0/24   the other daemons, what it advertises      (cut: "from its peers")
    front cable    10.90.3.0/24   clients and services                       (never cut: who is cut off must say so)

To cut one is to take its end off the bridge: packets vanish in both directions, no connection is told, exactly as
when a switch dies.  `enter` puts the whole program into fresh namespaces first, as their root, be it as a user of no
rank outside: nothing of its network can be seen there, and since they have processes of their own, none of these
outlives the program, however that ends.  Where the kernel allows nobody that, `Loopback` runs everything on 127.0.0.1,
`can_cut` is False, and the faults that need a cut are left out, and said to be.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Final, Literal, Protocol

Side = Literal["brokers", "peers"]

_INSIDE: Final = "COORDINATOR_CHAOS_NAMESPACE"
_BROKERS, _PEERS, _FRONT = "10.90.1", "10.90.2", "10.90.3"
_CABLES: Final = {"brokers": ("b", _BROKERS), "peers": ("p", _PEERS), "front": ("f", _FRONT)}


class Network(Protocol):
    """Where everybody is.  ``number`` of a daemon counts from 1."""

    can_cut: bool
    kind: str
    broker_host: str
    service_host: str

    def host(self, number: int) -> str:
        """Where clients reach a daemon."""
        ...

    def listen(self, number: int) -> str:
        """The address that a daemon binds."""
        ...

    def peer_host(self, number: int) -> str:
        """Where the other daemons reach it: what it advertises."""
        ...

    def prefix(self, number: int) -> Sequence[str]:
        """What stands before a daemon's command line."""
        ...

    def cut(self, number: int, *sides: Side) -> None: ...

    def join(self, number: int, *sides: Side) -> None: ...

    def close(self) -> None: ...


class Loopback:
    """Everybody on 127.0.0.1: nothing can be cut."""

    can_cut = False
    kind = "loopback, no cuts"
    broker_host = service_host = "127.0.0.1"

    def host(self, number: int) -> str:
        return "127.0.0.1"

    listen = peer_host = host

    def prefix(self, number: int) -> Sequence[str]:
        return ()

    def cut(self, number: int, *sides: Side) -> None:
        raise NotImplementedError("this machine allows no network namespaces")

    def join(self, number: int, *sides: Side) -> None: ...

    def close(self) -> None: ...


class Namespaces:
    """See the module; to be used only by a program that `enter` has put into a namespace."""

    can_cut = True
    kind = "network namespaces"
    broker_host = f"{_BROKERS}.1"
    service_host = f"{_FRONT}.1"

    def __init__(self, daemons: int) -> None:
        _ip("link", "set", "lo", "up")
        for name, (letter, net) in _CABLES.items():
            _ip("link", "add", "name", f"bridge-{letter}", "type", "bridge")
            if name != "peers":  # nobody here talks to the daemons as a peer
                _ip("address", "add", f"{net}.1/24", "dev", f"bridge-{letter}")
            _ip("link", "set", f"bridge-{letter}", "up")
        for number in range(1, daemons + 1):
            self._wire(number)

    def _wire(self, number: int) -> None:
        space = f"daemon-{number}"
        _ip("netns", "add", space)
        _ip("-n", space, "link", "set", "lo", "up")
        for letter, net in _CABLES.values():
            outer, inner = f"{letter}{number}", f"to-{letter}"
            _ip("link", "add", "name", outer, "type", "veth", "peer", "name", inner, "netns", space)
            _ip("link", "set", outer, "master", f"bridge-{letter}", "up")
            _ip("-n", space, "address", "add", f"{net}.{10 + number}/24", "dev", inner)
            _ip("-n", space, "link", "set", inner, "up")

    def host(self, number: int) -> str:
        return f"{_FRONT}.{10 + number}"

    def listen(self, number: int) -> str:
        return "0.0.0.0"

    def peer_host(self, number: int) -> str:
        return f"{_PEERS}.{10 + number}"

    def prefix(self, number: int) -> Sequence[str]:
        return ("ip", "netns", "exec", f"daemon-{number}")

    def cut(self, number: int, *sides: Side) -> None:
        for side in sides:
            _ip("link", "set", f"{_CABLES[side][0]}{number}", "nomaster")

    def join(self, number: int, *sides: Side) -> None:
        for side in sides:
            letter = _CABLES[side][0]
            _ip("link", "set", f"{letter}{number}", "master", f"bridge-{letter}")

    def close(self) -> None:
        """The namespace goes with the program, and takes everything along."""


def enter() -> None:
    """Starts this program anew inside namespaces of its own, as root there, if the kernel allows it; else returns."""
    if os.environ.get(_INSIDE):
        return
    for who in ((), ("--user", "--map-root-user")):
        unshare = ["unshare", *who, "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        trial = "mount -t tmpfs tmpfs /run && ip link add name b type bridge && ip netns add n && ip netns exec n true"
        try:
            allowed = subprocess.run([*unshare, "sh", "-c", trial], capture_output=True, timeout=10).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            allowed = False
        if allowed:
            os.environ[_INSIDE] = "1"
            inside = 'mount -t tmpfs tmpfs /run && exec "$@"'
            sys.stdout.flush()
            os.execvp("unshare", [*unshare, "sh", "-c", inside, "sh", *sys.orig_argv])


def network(daemons: int) -> Network:
    """The best that this machine allows."""
    return Namespaces(daemons) if os.environ.get(_INSIDE) else Loopback()


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
