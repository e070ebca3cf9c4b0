"""The cables: what is joined talks, what is cut is silent, and nobody is told."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.chaos.instances import ROOT

# Daemon 1 listens on all its cables; the program itself and daemon 2 knock, within a second or in vain.
PROGRAM = """
import subprocess, sys
from tests.chaos.network import enter, network
enter()
net = network(2)
if not net.can_cut:
    print("none")
    sys.exit()
listen = "import socket; s = socket.create_server(('0.0.0.0', 7070)); print('up', flush=True)\\nwhile True: s.accept()"
server = subprocess.Popen([*net.prefix(1), sys.executable, "-c", listen], stdout=subprocess.PIPE, text=True)
server.stdout.readline()
knock = "import socket, sys; socket.create_connection((sys.argv[1], 7070), 1)"
def knocks(prefix, host):
    return subprocess.run([*prefix, sys.executable, "-c", knock, host], stderr=subprocess.DEVNULL).returncode == 0
def both():
    return [knocks((), net.host(1)), knocks(net.prefix(2), net.peer_host(1))]
print(both())
net.cut(1, "peers")
print(both())
net.join(1, "peers")
print(both())
server.kill()
"""


def test_a_cut_cable_is_silent_and_the_others_are_not() -> None:
    """A daemon whose peer cable is cut is reached by clients and not by its peers, until it is joined again."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if done.stdout == "none\n":
        pytest.skip("the kernel allows no namespaces here: cuts are left out of the chaos runs, too")
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["[True, True]", "[True, False]", "[True, True]"]
