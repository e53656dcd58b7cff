"""`run.py batch` as a user types it: what is refused before anything starts, and Ctrl-C in the middle of a night."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
import torch

from cluster import command
from launch.commands import parser
from launch.environment import ROOT, link_pack

from ..conftest import COMFYUI
from . import made


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A workflow, a table of two jobs, and where the results go: the words behind `batch`."""
    (tmp_path / "edit.json").write_text(json.dumps(made.prompt()))
    made.write_clip(tmp_path / "one.mp4", 80)
    cells = {"clip": "one.mp4", "prompt": "an ice ball on grass"}
    long = {"invert.steps": 900, "invert.refinement": "fixed point", "invert.iterations": 20}
    made.write_table(tmp_path / "jobs.csv", [{"name": "first", **cells}, {"name": "second", **cells, **long}])
    return [str(tmp_path / "edit.json"), str(tmp_path / "jobs.csv"), "--output", str(tmp_path / "out")]


def test_what_is_wrong_is_told_before_ray_starts(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "jobs.csv").write_text("name,seed\n../up,1\nwolf,1,2\n")
    options = parser().parse_args(["batch", *files])
    assert command.run(options, COMFYUI) == 1
    said = capsys.readouterr()
    assert "row 1, column 'name'" in said.err
    assert "row 2: 3 cells" in said.err
    assert not said.out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["--workers", "0"], ["--cores", "-1"], ["--cores", "many"], ["--retries", "-1"]])
def test_numbers_that_make_no_sense_are_refused(files: list[str], words: list[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["batch", *files, *words])


def begin(files: list[str]) -> subprocess.Popen[str]:
    """The command in a process of its own, with one worker."""
    link_pack(COMFYUI)
    environment = {**os.environ, "COMFYUI_PATH": str(COMFYUI)}
    words = [sys.executable, "-m", "cluster", "batch", *files, "--workers", "1", "--cores", str(torch.get_num_threads())]
    # What was started in the background ignores it, and so would its child.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


def test_sigterm_ends_workers_that_are_starting(files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", tempfile.gettempdir())  # the names of its sockets have to be short
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with begin(files) as night:
        assert night.stdout
        assert any(line.startswith("starting") for line in night.stdout)
        while not list(tmp_path.glob("tokenflow-worker-*/server.log")):
            time.sleep(0.1)
        started = psutil.Process(night.pid).children(recursive=True)
        night.send_signal(signal.SIGTERM)
        night.communicate(timeout=60)
    assert night.returncode == 130
    assert not psutil.wait_procs(started, timeout=15)[1]
    assert not list(tmp_path.glob("tokenflow-worker-*"))


def test_ctrl_c_ends_everything_but_what_is_finished(files: list[str], tmp_path: Path) -> None:
    with begin(files) as night:
        assert night.stdout
        said = []
        for line in night.stdout:
            said.append(line)
            if found := re.search("http://[0-9.:]+", line):
                with urllib.request.urlopen(found[0]) as page:
                    assert "Ray" in page.read().decode()
            if line.startswith("second: ") and "900 steps" in line:
                started = psutil.Process(night.pid).children(recursive=True)
                assert any("main.py" in process.cmdline() for process in started)
                night.send_signal(signal.SIGINT)
    assert night.returncode == 130, "".join(said)
    assert said[-1] == "stopped; the same command goes on from here\n"
    assert not psutil.wait_procs(started, timeout=15)[1]
    assert [json.loads(line)["job"] for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()] == ["first"]
    assert [path.name for path in (tmp_path / "out" / "first" / "edits").iterdir()] == ["edited_00001_.latent"]
    assert not (tmp_path / "out" / "second").exists()
