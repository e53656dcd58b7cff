"""The output folder: what a run that was killed leaves,
what the next one makes of it, and who may write.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.jobs import Job
from cluster.manifest import OutputError, Results, opened, read_records
from launch.environment import ROOT

HOLDER = """import sys, time
from pathlib import Path
from cluster.manifest import opened
with opened(Path(sys.argv[1])):
    print(flush=True)
    time.sleep(60)
"""


def job(key: str = "key") -> Job:
    return Job("wolf", {}, {}, key, "group", (), {})


def finish(results: Results, made: Job, content: bytes = b"frames") -> None:
    files = [results.save(made, "edits/wolf.mp4", content)]
    results.finish(made, {"job": made.name, "state": "done", "key": made.key, "files": files})


def test_a_job_is_done_while_its_record_and_its_files_say_so(tmp_path: Path) -> None:
    with opened(tmp_path / "batch") as results:
        assert not results.is_done(job())
        finish(results, job())
        assert results.is_done(job())
    with opened(tmp_path / "batch") as results:
        assert results.is_done(job())
        assert not results.is_done(job("another prompt"))
        (tmp_path / "batch" / "wolf" / "edits" / "wolf.mp4").write_bytes(b"frame")
        assert not results.is_done(job())


def test_a_failed_job_is_not_done_and_the_last_record_counts(tmp_path: Path) -> None:
    with opened(tmp_path) as results:
        finish(results, job())
        results.finish(job(), {"job": "wolf", "state": "failed", "key": "key", "files": []})
        assert not results.is_done(job())
        assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 2


def test_what_was_killed_before_its_record_leaves_nothing_in_the_jobs_folder(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as results:
        finish(results, job(), b"first")
        results.save(job("second"), "edits/more.mp4", b"half")
    with opened(tmp_path) as results:
        assert [path.name for path in (tmp_path / "wolf").rglob("*.mp4")] == ["wolf.mp4"]
        (tmp_path / "wolf" / "mine.txt").touch()
        finish(results, job("second"), b"second")
        assert (tmp_path / "wolf" / "mine.txt").exists()
        assert (tmp_path / "wolf" / "edits" / "wolf.mp4").read_bytes() == b"second"
    assert not list((tmp_path / ".unfinished").glob("*"))


@given(st.integers(0, 200))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_line_that_was_torn_anywhere_costs_its_own_job_only(tmp_path: Path, kept: int) -> None:
    manifest = tmp_path / "manifest.jsonl"
    lines = [
        json.dumps(
            {"job": name, "state": "done", "files": [], "prompt": "ein Bär"}, ensure_ascii=False
        ).encode()
        + b"\n"
        for name in ("a", "b")
    ]
    cut = len(lines[0]) + min(kept, len(lines[1]))
    manifest.write_bytes(b"".join(lines)[:cut])
    whole = ["a", "b"] if cut == len(b"".join(lines)) else ["a"]
    assert list(read_records(manifest)) == whole
    with manifest.open("ab") as file:
        file.write(lines[1])
    assert list(read_records(manifest)) == ["a", "b"]


@pytest.mark.parametrize(
    "line",
    [
        "half",
        "[1]",
        '{"name": "wolf"}',
        '{"job": "wolf"}',
        '{"job": "wolf", "files": [{"name": "a"}]}',
        "\u00e4",
    ],
)
def test_a_file_that_is_no_manifest_is_left_alone(tmp_path: Path, line: str) -> None:
    (tmp_path / "manifest.jsonl").write_text(f"{line}\n", encoding="utf-8")
    with (
        pytest.raises(OutputError, match=r"manifest\.jsonl, line 1, is no record"),
        opened(tmp_path),
    ):
        pass
    assert (tmp_path / "manifest.jsonl").read_text(encoding="utf-8") == f"{line}\n"


@pytest.mark.parametrize("name", ["../wolf.mp4", "/etc/wolf.mp4", "a/../../wolf.mp4", ".", ""])
def test_a_workers_file_stays_in_its_jobs_folder(tmp_path: Path, name: str) -> None:
    with opened(tmp_path) as results, pytest.raises(OutputError, match="outside of"):
        results.save(job(), name, b"frames")


def test_two_runs_cannot_share_a_folder_and_a_killed_one_leaves_it_free(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, cwd=ROOT
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline()
        with pytest.raises(OutputError, match="another run"), opened(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
    with opened(tmp_path):
        pass


def test_what_a_job_saved_before_and_does_not_save_any_more_is_removed(tmp_path: Path) -> None:
    with opened(tmp_path) as results:
        finish(results, job())
        files = [results.save(job("second"), "other.mp4", b"second")]
        results.finish(
            job("second"), {"job": "wolf", "state": "done", "key": "second", "files": files}
        )
        assert [path.name for path in (tmp_path / "wolf").rglob("*.mp4")] == ["other.mp4"]
        results.finish(
            job("third"), {"job": "wolf", "state": "failed", "key": "third", "files": []}
        )
        assert (tmp_path / "wolf" / "other.mp4").exists()
