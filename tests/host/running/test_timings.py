"""What was measured stays in the host's user folder; no file there can stop a run, and the node
says what it went by.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import folder_paths
import pytest
from tokenflow_pack.host.files.timings import FILE, MOST_BYTES, StoredTimings, search_timings
from tokenflow_pack.nodes import correspondences
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.tokenflow_ops.matching import fastest

from ..helpers import call, extracted

SMALL = 2, (8, 8)
TIMING, SLOWER = {"torch": 0.5, "faiss": 0.25}, {"torch": 1.0, "faiss": 2.0}


def build(window: int = 0) -> str:
    """The node's text."""
    (text,) = call(lambda: [BuildCorrespondences.execute(extracted(*SMALL), search_window=window)])[
        0
    ].ui.as_dict()["text"]
    return str(text)


def test_timings_are_read_again_and_those_of_other_processes_kept(tmp_path: Path) -> None:
    mine, other = StoredTimings.read(tmp_path / FILE), StoredTimings.read(tmp_path / FILE)
    assert not mine
    mine["a"], other["b"] = TIMING, SLOWER
    assert StoredTimings.read(tmp_path / FILE) == {"a": TIMING, "b": SLOWER}
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


NO_SECONDS = ('"0.5"', "true", "NaN", "Infinity", "-1.0", "0.0", "1e9", '{"torch": 0.5}')
HOSTILE = {
    "empty": b"",
    "cut": b'{"a": {"torch": 0.5',
    "no text": b"\xff\xfe\x00",
    "list": b"[1]",
    "deep": b"[" * 200_000,
    "long": b'{"a": {"torch": 0.5}}' + b" " * MOST_BYTES,
    "digits": b'{"a": {"torch": ' + b"9" * 5000 + b"}}",
    **{
        value: b'{"a": %s}' % value.encode()
        for value in (
            "1",
            "{}",
            '{"torch": 0.5}',
            '{"faiss": 0.5}',
            *(
                f'{{"faiss": 0.5, "torch": {value}}}'
                for value in (
                    '"0.5"',
                    "true",
                    "NaN",
                    "Infinity",
                    "-1.0",
                    "0.0",
                    "1e9",
                    '{"torch": 0.5}',
                )
            ),
            '{"torch": 0.5, "faiss": 0.5, "os.system": 0.1}',
        )
    },
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_file_that_holds_no_timings_counts_as_empty_and_is_written_anew(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / FILE
    path.write_bytes(content)
    found = StoredTimings.read(path)
    assert not found
    found["b"] = TIMING
    assert json.loads(path.read_text()) == {"b": TIMING}


def test_what_is_no_file_or_cannot_be_written_stays_in_memory(tmp_path: Path) -> None:
    places = [tmp_path / "missing" / FILE, tmp_path / "folder", tmp_path / "pipe"]
    places[1].mkdir()
    (places[1] / "kept").touch()
    os.mkfifo(places[2])
    for place in places:
        found = StoredTimings.read(place)
        found["a"] = TIMING
        found["b"] = TIMING
        assert found == {"a": TIMING, "b": TIMING}
    assert (places[1] / "kept").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


def test_the_file_lies_in_the_users_folder() -> None:
    search_timings.cache_clear()  # another test may have had a folder of its own
    assert search_timings()._path == Path(folder_paths.get_user_directory(), FILE)
    assert search_timings() is search_timings()


def test_the_node_measures_once_and_says_what_it_went_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    kept = tmp_path / FILE
    monkeypatch.setattr(correspondences, "search_timings", lambda: StoredTimings.read(kept))
    first = build()
    assert "matched by " in first
    assert "(this CPU, a frame: torch " in first
    measured = json.loads((tmp_path / FILE).read_text())
    assert measured
    monkeypatch.setattr(fastest, "seconds_a_frame", None)
    assert build() == first
    (tmp_path / FILE).write_text(
        json.dumps({key: {"torch": 0.031, "faiss": 0.012} for key in measured})
    )
    assert "matched by FAISS (this CPU, a frame: torch 31 ms, FAISS 12 ms for " in build()
    assert build(window=2).endswith("matched by torch")
