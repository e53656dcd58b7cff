"""What a long run will take is said before it begins, and how long after its first steps."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import folder_paths
import pytest
from comfy_execution.utils import CurrentNodeContext
from tokenflow_pack.host.measuring import forecast
from tokenflow_pack.host.measuring.forecast import Forecast

from ..helpers import SIZE, edit, invert, matched, tiny_model
from ..tiny_models import moving_clip

Said = list[tuple[str, str]]


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Said]:
    """What is said on the node 7 of a server that runs; every run is long."""
    said: Said = []
    server = SimpleNamespace(
        send_progress_text=lambda text, node_id: said.append((node_id, text)),
        prompt_queue=SimpleNamespace(get_current_queue_volatile=lambda: ([], [])),
    )
    module = SimpleNamespace(PromptServer=SimpleNamespace(instance=server))
    monkeypatch.setitem(sys.modules, "server", module)
    monkeypatch.setattr(forecast, "LONG", 1)
    with CurrentNodeContext("prompt", "7"):
        yield said


class Clock:
    """Goes on by as much as the next step takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(**more: Any) -> Any:
    return SimpleNamespace(**{"node": "A node", "checkpoints": None, "quickens": False, **more})


def after(steps: list[float], of: Any, total: int = 100) -> list[str]:
    """What is said in the log after steps that took so many seconds."""
    clock, said = Clock(), list[str]()
    told = Forecast(of, total, "facts", clock)
    told.say = lambda text, logged=True: said.append(text) if logged else None
    for done, seconds in enumerate(steps):
        clock.now += seconds
        told.after(done + 1)
    return said


def test_the_time_is_told_after_two_steps_and_again_where_it_was_wrong() -> None:
    assert after([10.0], run()) == []
    assert after([10.0, 10.0], run()) == ["about 16 min left"]
    assert after([10.0] * 20, run()) == ["about 16 min left"]
    assert after([10.0] * 4 + [40.0] * 4, run())[:2] == ["about 16 min left", "about 28 min left"]
    assert after([1.0] * 2, run(), 30) == ["about 28 s left"]
    assert after([300.0] * 2, run()) == ["about 8 h 10 min left"]


def test_of_steps_that_are_quicker_than_later_ones_a_least_time_is_told() -> None:
    assert after([10.0, 10.0], run(quickens=True)) == ["more than 16 min left"]


def test_steps_that_are_known_say_nothing_of_the_time() -> None:
    assert after([0.01] * 50, run(checkpoints=SimpleNamespace(replays=True))) == []


def test_an_inversion_says_what_it_takes_on_the_node_and_in_the_log(
    node: Said, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    caplog.set_level("INFO")
    settings = {"steps": 3, "check_reconstruction": False, "frames_per_pass": 2}
    invert(tiny_model(), moving_clip(5, *SIZE), checkpoints=True, **settings)
    assert {node_id for node_id, _ in node} == {"7"}
    first, second, last = (text.splitlines() for _, text in node)
    assert first[0] == "5 frames, 6 evaluations, about 18 passes of 2 frames"
    assert "GiB by ComfyUI's estimate" in first[1]
    assert first[2:] == [
        "path to noise: 0.0 GiB in main memory",
        "checkpoints: 0.0 GiB in the output folder",
    ]
    assert second[-1].startswith("about ")
    assert last[-1].startswith("3 steps took ")
    assert "DDIM Invert Video: 5 frames, 6 evaluations" in caplog.text


def test_while_two_steps_are_made_with_one_evaluation_a_least_time_is_told(node: Said) -> None:
    invert(tiny_model(), moving_clip(1, *SIZE), steps=40, check_reconstruction=False)
    words = [text.splitlines()[-1].split()[0] for _, text in node[1:-1]]
    # After the second step, in six tenths of the schedule; then none are made in pairs.
    assert words == ["more"] * 22 + ["about"] * 16


def test_an_edit_says_it_too(node: Said) -> None:
    matched()
    node.clear()
    edit(correspondences=matched(), frames_per_pass=2)
    assert node[0][1].startswith("5 frames, 3 evaluations, about 9 passes of 2 frames")
    assert [text.splitlines()[-1].split()[0] for _, text in node[1:]] == ["about", "3"]


def test_a_short_run_says_nothing(node: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "LONG", 1000)
    edit(correspondences=matched())
    assert node == []
