"""A run that was stopped goes on where it was and ends with the same bits; another does not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from tokenflow_pack.host.checkpoints import folders
from tokenflow_pack.host.checkpoints.folders import FOLDER
from torch import Tensor

from ..helpers import (
    NEGATIVE,
    edit,
    injection,
    interrupted,
    invert,
    matched,
    tiny_model,
    watched,
)
from ..tiny_models import moving_clip, random_conditioning

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = 8, 8


class Stopped(Exception):
    """As if the process had ended."""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where checkpoints lie."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path / FOLDER


class Counting:
    """A model whose calls are counted; one of them may stop the run."""

    def __init__(self) -> None:
        self.calls = self.stop_at = 0
        self.model = watched(tiny_model(), self._see)

    def _see(self, _: Any) -> None:
        self.calls += 1
        if self.calls == self.stop_at:
            raise Stopped

    def stopped_at(self, call: int, run: Callable[[Any], Any]) -> None:
        """Runs until a call of the model."""
        self.calls, self.stop_at = 0, call
        with pytest.raises(Stopped):
            run(self.model)
        self.stop_at = 0

    def calls_of(self, run: Callable[[Any], Any]) -> tuple[int, Any]:
        """Runs to the end. Returns: how often the model was called, and what came out."""
        self.calls, self.stop_at = 0, 0
        found = run(self.model)
        return self.calls, found


def sampled(sampler: str = "euler", **inputs: Any) -> Callable[[Any], Tensor]:
    def run(model: Any) -> Tensor:
        correspondences = matched(3, SMALL, "recompute")
        given = {"correspondences": correspondences, "injection": injection(), "seed": 1, **inputs}
        return edit(model, sampler_name=sampler, frames_per_pass=2, **given)

    return run


def inverted(**inputs: Any) -> Callable[[Any], Tensor]:
    def run(model: Any) -> Tensor:
        found = invert(
            model,
            moving_clip(3, *SMALL),
            **{"frames_per_pass": 2, "check_reconstruction": False, **inputs},
        )
        return found[0].latents

    return run


# Some that keep what they have seen, draw noise, listen to guidance or choose their own steps.
SAMPLERS = (
    "dpm_adaptive",
    "dpmpp_2m",
    "dpmpp_3m_sde",
    "euler_cfg_pp",
    "lms",
    "res_multistep_ancestral_cfg_pp",
    "sa_solver",
    "seeds_2",
    "uni_pc",
)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_kind_of_sampler_goes_on_to_the_same_bits(name: str) -> None:
    start = 0.67 if name == "dpm_adaptive" else 1.0
    counting = Counting()
    whole, wanted = counting.calls_of(sampled(name, start=start))
    kept = sampled(name, start=start, checkpoints=True)
    counting.stopped_at(whole, kept)
    left, found = counting.calls_of(kept)
    assert left < whole
    assert torch.equal(found, wanted)


RUNS = {
    "an inversion": inverted(steps=4, checkpoints=True),
    "an inversion with guidance": inverted(
        steps=2,
        cfg=2.0,
        negative=NEGATIVE,
        refinement="fixed point",
        iterations=1,
        checkpoints=True,
    ),
    "an edit": sampled(checkpoints=True),
    "fresh noise": sampled(noise="fresh", start=0.7, checkpoints=True),
    "local": sampled(mask=torch.eye(8)[None], checkpoints=True),
    "lean": sampled(preset="lean", checkpoints=True),
    "lean, two evaluations a step": sampled("heun", preset="lean", checkpoints=True),
}


@pytest.mark.parametrize("name", RUNS)
def test_it_goes_on_wherever_it_was_stopped(name: str, root: Path) -> None:
    run, counting = RUNS[name], Counting()
    whole, wanted = counting.calls_of(run)
    known = []
    for at in range(1, whole + 1):
        (done,) = root.iterdir()
        folders.Journal(done).remove()
        counting.stopped_at(at, run)
        left, found = counting.calls_of(run)
        assert torch.equal(found, wanted), at
        known.append(whole - left)
    assert known == sorted(known)
    assert known[0] == 0
    assert known[-1] > 0


def test_a_run_that_is_stopped_again_and_again_comes_to_its_end() -> None:
    counting, run = Counting(), sampled(checkpoints=True)
    _, wanted = counting.calls_of(sampled())
    for _ in range(2):
        counting.stopped_at(5, run)
    assert torch.equal(counting.calls_of(run)[1], wanted)


def test_an_interrupted_run_goes_on_and_a_finished_one_asks_the_model_nothing() -> None:
    from comfy import model_management

    counting, run = Counting(), sampled(checkpoints=True)
    whole, wanted = counting.calls_of(sampled())
    seen: list[int] = []

    def see(_: Any) -> None:
        seen.append(1)
        if len(seen) == whole // 2:
            model_management.interrupt_current_processing()

    with interrupted():
        run(watched(tiny_model(), see))
    left, found = counting.calls_of(run)
    assert 0 < left < whole
    assert torch.equal(found, wanted)
    left, found = counting.calls_of(run)
    assert left == 0
    assert torch.equal(found, wanted)


EDIT, INVERSION = partial(sampled, checkpoints=True), partial(inverted, checkpoints=True)
LOCAL = partial(EDIT, mask=torch.eye(8)[None])
OTHERS = {
    "prompt": (EDIT(), EDIT(positive=random_conditioning(8))),
    "negative prompt": (EDIT(), EDIT(negative=random_conditioning(8))),
    "cfg": (EDIT(), EDIT(cfg=4.1)),
    "sampler": (EDIT(), EDIT("ddpm")),
    "seed": (EDIT("euler_ancestral"), EDIT("euler_ancestral", seed=2)),
    "start": (EDIT(), EDIT(start=0.7)),
    "injection": (EDIT(), EDIT(injection=None)),
    "mode": (EDIT(), EDIT(consistency="per frame")),
    "preset": (EDIT(), EDIT(preset="faithful")),
    "mask": (EDIT(), LOCAL()),
    "mask's begin": (
        LOCAL(),
        LOCAL(mask_from=0.9),
    ),
    "source prompt": (INVERSION(), INVERSION(positive=random_conditioning(8))),
    "steps": (INVERSION(), INVERSION(steps=4)),
    "refinement": (INVERSION(), INVERSION(refinement="none")),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_does_not_take_it(name: str, root: Path) -> None:
    one, other = OTHERS[name]
    one(tiny_model())
    (before,) = root.iterdir()
    whole, _ = Counting().calls_of(other)
    (journal,) = set(root.iterdir()) - {before}
    folders.Journal(journal).remove()
    assert Counting().calls_of(other)[0] == whole
