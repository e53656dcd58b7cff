"""`run.py batch` as a user types it: what is refused before anything starts, and Ctrl-C in the
middle of a night.
"""

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from cluster import command
from cluster.jobs.table import TableError
from cluster.local import ClusterError, connected
from launch.comfyui.server import free_port
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
    made.write_table(
        tmp_path / "jobs.csv", [{"name": "first", **cells}, {"name": "second", **cells, **long}]
    )
    return [
        str(tmp_path / "edit.json"),
        str(tmp_path / "jobs.csv"),
        "--output",
        str(tmp_path / "out"),
    ]


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails where a run asks for it."""
    monkeypatch.setattr(command, "connected", None)
    kept = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, kept)


@pytest.mark.usefixtures("without_ray")
def test_all_that_is_wrong_is_told_in_one_list_before_ray_starts(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link_pack(COMFYUI)
    (tmp_path / "jobs.csv").write_text(
        "Name;Clip;Seed;edit.cfg;promt\n../up;one.mp4;1\nwolf;none.mp4;x;7,5\n;;;;\nfox;one.mp4;1;2;a;b\n"
    )
    options = parser().parse_args(["batch", *files])
    assert command.run(options, COMFYUI) == 1
    said = capsys.readouterr().err.removeprefix("error: ").splitlines()
    places = [
        "row 3: 6 cells",
        "row 1, column 'name'",
        "row 2, column 'clip'",
        "row 2, column 'seed'",
        "row 2, column 'edit.cfg'",
    ]
    assert [any(line.startswith(f"jobs.csv, {place}") for line in said) for place in places] == [
        True
    ] * 5
    assert any("column 'promt': no such column" in line for line in said)
    assert len(said) == 6
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize(
    "content", ["{half", "[1]", "\xff", "[" * 100_000], ids=["cut", "list", "no text", "deep"]
)
def test_a_file_that_is_no_workflow_is_named(
    files: list[str], tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "edit.json").write_text(content, encoding="latin-1")
    assert command.run(parser().parse_args(["batch", *files]), COMFYUI) == 1
    assert re.fullmatch(
        r"error: edit\.json is no .*\. Save the workflow again\.\n", capsys.readouterr().err
    )


def test_what_a_workflow_lacks_is_told_with_what_is_wrong_in_the_table(
    server: Any, files: list[str], tmp_path: Path
) -> None:
    (tmp_path / "jobs.csv").write_text("name,seed\n../up,1\n")
    prompt = made.prompt() | {"more": made.node("NoSuchNode"), "even more": made.node("NorThis")}
    (tmp_path / "edit.json").write_text(json.dumps(prompt))
    wanted = command.Wanted.read(Path(files[0]), Path(files[1]), tmp_path)
    with pytest.raises(TableError) as raised:
        wanted.jobs(server.get("/object_info"))
    name, more, even = raised.value.problems
    assert "'../up' cannot name a folder" in name
    assert (more.split(" is ")[0], even.split(" is ")[0]) == (
        "node more (NoSuchNode)",
        "node even more (NorThis)",
    )


BREAKS = {"not installed": None, "broken": "raise OSError('libz.so.1: cannot open')", "empty": ""}


@pytest.mark.parametrize("code", BREAKS.values(), ids=BREAKS)
def test_without_ray_there_is_one_plain_error(
    code: str | None, stand_in: Callable[[str, str | None], None]
) -> None:
    stand_in("ray", code)
    said = r"^(Ray cannot be imported|no Ray on this machine).*[^.]\. (In ComfyUI's|See docs).*$"
    with pytest.raises(ClusterError, match=said), connected(None):
        pass


@pytest.mark.parametrize("kind", ["", "ray://"])
def test_an_address_where_nobody_is_is_told_at_once(kind: str) -> None:
    address = f"{kind}127.0.0.1:{free_port()}"
    with (
        pytest.raises(ClusterError, match=f"^no Ray at {address}: ConnectionRefusedError.*$"),
        connected(address),
    ):
        pass


def test_a_ray_that_does_not_start_is_told_in_a_line(tmp_path: Path) -> None:
    folder = str(tmp_path / ("x" * 120))
    said = r"^no Ray on this machine: OSError: .* cannot exceed 107 bytes.*$"
    with pytest.raises(ClusterError, match=said), connected(None, _temp_dir=folder):
        pass


@pytest.mark.parametrize(
    "words", [["--workers", "0"], ["--cores", "-1"], ["--cores", "many"], ["--retries", "-1"]]
)
def test_numbers_that_make_no_sense_are_refused(files: list[str], words: list[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["batch", *files, *words])


def begin(files: list[str]) -> subprocess.Popen[str]:
    """The command in a process of its own, with one worker."""
    link_pack(COMFYUI)
    environment = {**os.environ, "COMFYUI_PATH": str(COMFYUI)}
    words = [
        sys.executable,
        "-m",
        "cluster",
        "batch",
        *files,
        "--workers",
        "1",
        "--cores",
        str(torch.get_num_threads()),
    ]
    # What was started in the background ignores it, and so would its child.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


def test_sigterm_ends_workers_that_are_starting(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The names of its sockets have to be short.
    monkeypatch.setenv("RAY_TMPDIR", tempfile.gettempdir())
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
            if line.startswith("second: The TokenFlowInvertVideo, "):  # its first step
                started = psutil.Process(night.pid).children(recursive=True)
                assert any("main.py" in process.cmdline() for process in started)
                night.send_signal(signal.SIGINT)
    assert night.returncode == 130, "".join(said)
    assert said[-1] == "stopped; the same command goes on from here\n"
    assert not psutil.wait_procs(started, timeout=15)[1]
    assert [
        json.loads(line)["job"]
        for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()
    ] == ["first"]
    assert [path.name for path in (tmp_path / "out" / "first" / "edits").iterdir()] == [
        "edited_00001_.latent"
    ]
    assert not (tmp_path / "out" / "second").exists()
