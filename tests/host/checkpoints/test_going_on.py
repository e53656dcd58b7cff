"""A run that was stopped goes on where it was and ends with the same bits; another does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy import model_management
from comfy_extras.nodes_sag import SelfAttentionGuidance
from tokenflow_pack.host import shards
from tokenflow_pack.host.checkpoints import folders
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.nodes.presets import LEAN, PRESETS
from tokenflow_pack.tokenflow_ops.propagation import CHANGES
from tokenflow_pack.tokenflow_ops.shards import ALONE, Alone

from ..helpers import NEGATIVE, call, interrupted, watched
from ..small import tiny_model
from ..tiny_models import random_conditioning
from .counting import Counting, inverted, sampled, sampled_by_host

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
    "the host's sampler": sampled_by_host(checkpoints=True),
    "the host's sampler, drawing noise": sampled_by_host("euler_ancestral", checkpoints=True),
    "lean, two evaluations a step": sampled("heun", preset="lean", checkpoints=True),
}


@pytest.mark.parametrize("name", RUNS)
def test_it_goes_on_wherever_it_was_stopped(name: str, root: Path) -> None:
    """At every third call of the model."""
    run, counting = RUNS[name], Counting()
    whole, wanted = counting.calls_of(run)
    known = []
    for at in range(1, whole + 1, 3):
        (done,) = root.iterdir()
        folders.Journal(done).remove()
        counting.stopped_at(at, run)
        left, found = counting.calls_of(run)
        assert torch.equal(found, wanted), at
        known.append(whole - left)
    assert known == sorted(known)
    assert known[0] == 0
    assert known[-1] > 0


@pytest.mark.parametrize("name", ["lean", "lean, two evaluations a step"])
def test_so_it_does_where_frames_take_the_keyframes_change(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers' do, in late steps."""
    along = replace(LEAN, takes=CHANGES)
    monkeypatch.setitem(PRESETS, "lean", replace(PRESETS["lean"], repeats=along))
    test_it_goes_on_wherever_it_was_stopped(name, root)


def test_a_run_that_is_stopped_again_and_again_comes_to_its_end() -> None:
    counting, run = Counting(), sampled(checkpoints=True)
    _, wanted = counting.calls_of(sampled())
    for _ in range(2):
        counting.stopped_at(5, run)
    assert torch.equal(counting.calls_of(run)[1], wanted)


def test_an_interrupted_run_goes_on_and_a_finished_one_asks_the_model_nothing() -> None:
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
APPLIED = partial(sampled_by_host, checkpoints=True)
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
    "the host's prompt": (APPLIED(), APPLIED(positive=random_conditioning(8))),
    "the host's cfg": (APPLIED(), APPLIED(cfg=4.1)),
    "the host's sampler": (APPLIED(), APPLIED("ddpm")),
    "the host's seed": (APPLIED("euler_ancestral"), APPLIED("euler_ancestral", seed=2)),
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


def test_a_patched_model_may_sample_more_than_one_thing() -> None:
    """Its runs know nothing of each other, whichever of them was stopped."""
    wanted = sampled_by_host()(tiny_model()), sampled_by_host(cfg=2.0)(tiny_model())
    counting = Counting()
    counting.stopped_at(3, APPLIED(cfg=2.0))
    assert torch.equal(APPLIED()(tiny_model()), wanted[0])
    assert torch.equal(counting.calls_of(APPLIED(cfg=2.0))[1], wanted[1])


def test_passes_stay_as_small_as_memory_once_made_them() -> None:
    """Sums of other batches are other bits."""
    short: list[int] = []

    def run_out(args: dict[str, Any]) -> None:
        if not short:
            short.append(len(args["input"]))
            raise model_management.OOM_EXCEPTION("out of memory")

    run = inverted(frames_per_pass=3, steps=2, checkpoints=True)
    wanted = inverted(frames_per_pass=1, steps=2)(tiny_model())
    calls: list[int] = []

    def stop(args: dict[str, Any]) -> None:
        run_out(args)
        calls.append(1)
        if len(calls) == 7:
            model_management.interrupt_current_processing()

    with interrupted():
        run(watched(tiny_model(), stop))
    assert short == [3]
    assert torch.equal(run(tiny_model()), wanted)


class Behind(Alone):
    """Another machine shares the clip, and has kept fewer answers."""

    def gather(self, part: Any) -> list[Any]:
        counts = isinstance(part, torch.Tensor) and part.dtype == torch.int64
        return [part, torch.tensor(1)] if counts else [part]


@contextmanager
def connected(others: Any) -> Iterator[None]:
    shards.connect(others)
    try:
        yield
    finally:
        shards.connect(ALONE)


def test_machines_that_share_a_clip_go_on_at_the_same_evaluation() -> None:
    counting, run = Counting(), inverted(steps=2, checkpoints=True)
    whole, wanted = counting.calls_of(run)
    with connected(Behind()):
        left, found = counting.calls_of(run)
    assert 0 < left < whole
    assert torch.equal(found, wanted)


def test_what_went_wrong_is_not_kept(root: Path) -> None:
    def broken(apply_model: Any, args: dict[str, Any]) -> Any:
        return apply_model(args["input"], args["timestep"], **args["c"]) * float("nan")

    model = tiny_model().clone()
    model.set_model_unet_function_wrapper(broken)
    with pytest.raises(NodeError, match="NaN"):
        inverted(checkpoints=True)(model)
    assert not root.exists()


def test_guidance_that_reads_attention_is_refused() -> None:
    model = call(SelfAttentionGuidance.execute, tiny_model(), 0.5, 2.0)[0]
    with pytest.raises(NodeError, match=r"'checkpoints': something .* \(SAG\)"):
        sampled(checkpoints=True)(model)
