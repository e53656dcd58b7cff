"""Keyframes that were edited elsewhere in windows, within masks, from files and on transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from tokenflow_pack.host.files.folders import SUFFIX
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.inversion import InvertVideo
from tokenflow_pack.nodes.sampling.sampler import Sampler
from tokenflow_pack.nodes.stored import LoadInversion, SaveInversion
from tokenflow_pack.tokenflow_ops.carrying.given import GivenKeyframes
from torch import Tensor

from .. import tiny_transformers
from ..helpers import (
    FRAMES,
    SIZE,
    SOURCE,
    built,
    call,
    edit,
    inverted,
    matched,
    relative_error,
    tiny_model,
)
from ..tiny_models import moving_clip

NUMBERS = 0, 2, 4
HIDDEN = slice(2, 6)  # rows and columns of latent cells


def given(latents: Tensor, numbers: tuple[int, ...] = NUMBERS) -> GivenKeyframes:
    hidden = torch.zeros(len(latents), *(8 * side for side in latents.shape[-2:]))
    hidden[:, 16:48, 16:48] = 1
    hidden[list(numbers)] = 0
    return GivenKeyframes(numbers, latents, hidden)


def clip() -> Tensor:
    noise = torch.randn(1, 4, *SIZE, generator=torch.Generator().manual_seed(3))
    return moving_clip(FRAMES, *SIZE)["samples"] + 0.5 * noise


def changed(found: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """How far frames are from what was given: inside what is hidden, (N, h, w), and the highest
    elsewhere.
    """
    apart = (found - wanted).flatten(1, -3).abs().amax(1)
    inside = apart[:, HIDDEN, HIDDEN].clone()
    apart[:, HIDDEN, HIDDEN] = 0
    return inside, apart.max()


@pytest.mark.parametrize("attended", [1, 2])
def test_in_windows_keyframes_stay_and_what_is_hidden_is_computed(attended: int) -> None:
    together = edit(keyframes=given(clip()))
    found = edit(keyframes=given(clip()), attended_keyframes=attended)
    inside, elsewhere = changed(found, clip())
    assert elsewhere < 1e-4
    assert inside[list(NUMBERS)].max() < 1e-4
    assert inside[[1, 3]].mean((1, 2)).min() > 0.05
    # The given keyframes' tokens do not depend on what else is in a window, but for attention.
    assert 0 < relative_error(found, together) < 0.5


def test_only_what_is_hidden_within_the_mask_is_computed() -> None:
    mask = torch.zeros(1, *(8 * side for side in SIZE))
    mask[:, :, :32] = 1
    inside, elsewhere = changed(edit(keyframes=given(clip()), mask=mask), clip())
    assert elsewhere < 1e-4
    assert inside[[1, 3], :, 2:].max() < 1e-4
    assert inside[[1, 3], :, :2].mean((1, 2)).min() > 0.05


def test_from_a_stored_inversion_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("input", "output", "temp"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    call(SaveInversion.execute, inverted()[0], "kept")
    loaded = call(LoadInversion.execute, f"kept_00001_{SUFFIX} [output]", tiny_model(), SOURCE)[0]
    features = call(
        ExtractFeatures.execute, tiny_model(), loaded, layers="all", steps="every", storage="memory"
    )[0]
    correspondences = built(features)
    wanted = edit(keyframes=given(clip()), correspondences=matched())
    assert torch.equal(edit(keyframes=given(clip()), correspondences=correspondences), wanted)


@pytest.mark.parametrize("name", ["SD 3", "Flux"])
def test_on_a_transformer(name: str) -> None:
    model, source = tiny_transformers.tiny_transformer(name), tiny_transformers.clip(name, FRAMES)
    prompts = [tiny_transformers.prompt(name, seed) for seed in (1, 2, 3)]
    inversion = call(
        InvertVideo.execute,
        model,
        source,
        prompts[0],
        steps=2,
        scheduler="simple",
        check_reconstruction=False,
    )[0]
    features = call(ExtractFeatures.execute, model, inversion)[0]
    correspondences = built(features)

    def made(latents: Tensor) -> Tensor:
        inputs: dict[str, Any] = {"cfg": 3.0, "keyframes": given(latents)}
        return call(Sampler.execute, model, *prompts[1:], correspondences, **inputs)[0]["samples"]

    wanted = source["samples"] + 0.5 * torch.randn(
        source["samples"].shape[1:], generator=torch.Generator().manual_seed(5)
    )
    found = made(wanted)
    inside, elsewhere = changed(found, wanted)
    assert elsewhere < 1e-3
    assert inside[list(NUMBERS)].max() < 1e-3
    assert inside[[1, 3]].mean((1, 2)).min() > 0.05
    # Tokens come from the given keyframes.
    other = wanted.clone()
    other[2] = -other[2]
    assert (made(other) - found)[1, ..., 3:5, 3:5].abs().max() > 1e-3
