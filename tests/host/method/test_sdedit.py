"""SDEdit: the edit starts part of the way up the noise, from the source's own noise or from fresh
one; nothing is injected.
"""

from __future__ import annotations

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from torch import Tensor

import nodes

from ..helpers import (
    FRAMES,
    NEGATIVE,
    POSITIVE,
    SIZE,
    STEPS,
    applied,
    call,
    edit,
    inverted,
    relative_error,
    tiny_model,
)
from ..tiny_models import moving_clip


def source() -> dict[str, Tensor]:
    return moving_clip(FRAMES, *SIZE)


def test_fresh_noise_is_the_hosts_own_on_the_source() -> None:
    """As KSampler (Advanced) would add it to the clean latents."""
    _, _, sigmas = inverted()
    sampler = comfy.samplers.sampler_object("euler")
    arguments = applied(), True, 7, 4.0, POSITIVE, NEGATIVE, sampler, sigmas[1:], source()
    wanted = call(SamplerCustom.execute, *arguments)[0]["samples"]
    assert relative_error(edit(noise="fresh", start=0.67, seed=7), wanted) < 1e-5
    advanced = (
        "enable",
        7,
        STEPS,
        4.0,
        "euler",
        "normal",
        POSITIVE,
        NEGATIVE,
        source(),
        1,
        STEPS,
        "disable",
    )
    wanted = call(nodes.KSamplerAdvanced().sample, applied(), *advanced)[0]["samples"]
    assert relative_error(edit(noise="fresh", start=0.67, seed=7), wanted) < 1e-5


def test_one_noise_for_all_frames_is_that_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[Tensor] = []
    sample = comfy.sample.sample_custom

    def seen(model: object, noise: Tensor, *args: object, **kwargs: object) -> Tensor:
        added.append(noise)
        return sample(model, noise, *args, **kwargs)

    monkeypatch.setattr(comfy.sample, "sample_custom", seen)
    for noise in ("inverted", "fresh", "fresh, one for all frames"):
        edit(noise=noise, start=0.67, seed=7)
    inverted_noise, fresh, shared = added
    assert not inverted_noise.any()
    assert all(torch.equal(frame, fresh[0]) for frame in shared)
    assert not torch.equal(fresh[1], fresh[0])


def test_the_seed_draws_fresh_noise_alone() -> None:
    assert torch.equal(edit(start=0.67, seed=1), edit(start=0.67, seed=2))
    assert (
        relative_error(
            edit(start=0.67, seed=1, noise="fresh"), edit(start=0.67, seed=2, noise="fresh")
        )
        > 0.01
    )


@pytest.mark.parametrize("noise", ["inverted", "fresh"])
def test_the_later_the_start_the_closer_to_the_source(noise: str) -> None:
    kept = tiny_model().model.process_latent_out(inverted()[0].latents[-1])
    distances = [
        relative_error(edit(noise=noise, start=start, cfg=1.0, seed=3), kept)
        for start in (0.34, 0.67, 1.0)
    ]
    assert distances == sorted(distances)
    assert distances[0] < 0.5 * distances[-1]
