"""The demo command on a stock workflow, with a server of its own."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch import demo
from launch.comfyui.server import Server
from launch.wanted import Wanted

from ..conftest import COMFYUI, ROOT


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for the project's folder."""
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(demo, "HOST", tmp_path / ".host")
    monkeypatch.setattr(demo, "OUTPUT", tmp_path / "output")
    return tmp_path


def test_it_shows_texts_files_and_the_address_it_keeps(
    folder: Path,
    server: Server,
    stock_workflow: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wait = threading.Event.wait

    def interrupt(event: threading.Event, timeout: float | None = None) -> bool:
        if timeout is None and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        return wait(event, timeout)

    monkeypatch.setattr(threading.Event, "wait", interrupt)
    path = folder / "stock.json"
    path.write_text(json.dumps(stock_workflow()))
    assert demo.run(server.comfyui, Wanted(path), keep=True) == 0
    shown = capsys.readouterr().out
    assert "\nFigures\ntwo frames\n" in shown
    assert "\n  output/clips/two_00001_.mp4\n" in shown
    assert "stays at http://127.0.0.1:" in shown
    assert (folder / "output" / "server.log").read_text()
    assert (folder / "output" / "clips" / "two_00001_.mp4").exists()


def test_a_workflow_that_cannot_be_read_is_an_error_in_a_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.run(folder, Wanted(folder / "none.json")) == 1
    assert "none.json" in capsys.readouterr().err


# Runs commands up to an option that none of them knows, and says what each does not know.
UNTIL = """
import contextlib, io, json, runpy, sys
for words in json.loads(sys.argv.pop()):
    sys.argv, sys.path[0] = [*words, "--no-such"], "demo"
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.suppress(SystemExit):
        runpy.run_path(words[0], run_name="__main__")
    print(said.getvalue().splitlines()[-1])
"""


def test_the_commands_of_the_demos_manual_are_known_to_its_programs() -> None:
    commands = re.findall(
        r"`?\.host/venv/bin/python (demo/[^`\n]+)", (ROOT / "demo" / "README.md").read_text()
    )
    # It has no options.
    told = [shlex.split(command) for command in commands if "make_clip" not in command]
    assert len(told) == len(commands) - 1 == 9
    variables = {**os.environ, "COMFYUI_PATH": str(COMFYUI)}
    said = subprocess.run(
        [sys.executable, "-c", UNTIL, json.dumps(told)],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert [line.partition(": error: ")[2] for line in said.stdout.splitlines()] == [
        "unrecognized arguments: --no-such"
    ] * len(told)
