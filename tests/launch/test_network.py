"""What keeps the tests from the network works, in this process and in those it starts: else "no
network" would be said of nothing.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

AWAY = "192.0.2.1"  # an address for documentation, which nobody has


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NETWORK_LOG", str(tmp_path / "network.log"))
    return tmp_path / "network.log"


def test_other_machines_are_not_reached_from_this_process(log: Path) -> None:
    with pytest.raises(PermissionError, match=AWAY):
        socket.create_connection((AWAY, 80), timeout=1)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        pytest.raises(PermissionError, match=AWAY),
    ):
        udp.sendto(b"hello", (AWAY, 53))
    with pytest.raises(PermissionError, match="example"):
        socket.getaddrinfo("huggingface.example", 443)
    assert len(log.read_text().splitlines()) == 3


def test_other_machines_are_not_reached_from_what_is_started(log: Path) -> None:
    code = f"import urllib.request; urllib.request.urlopen('http://{AWAY}', timeout=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "tests talk to this machine alone" in done.stderr
    assert AWAY in log.read_text()


def test_this_machine_is_reached(log: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()[:2], timeout=5),
    ):
        pass
    assert not log.exists()
