"""The choices that save time or memory: which layers and steps are matched, by what, and the
pictures that show it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenflow_pack.host.families.unet import find
from tokenflow_pack.nodes.correspondences import FIXED, BuildCorrespondences
from tokenflow_pack.nodes.features import ALL, DECODER, LAYERS, ExtractFeatures
from tokenflow_pack.nodes.injection import PlugAndPlay
from tokenflow_pack.nodes.sampling.sampler import Sampler
from tokenflow_pack.tokenflow_ops import nearest_tokens

from ..helpers import FRAMES, NEGATIVE, POSITIVE, SIZE, STEPS, call, extracted, inverted, tiny_model


def edit(features: Any, **build: Any) -> tuple[Any, torch.Tensor]:
    """Correspondences, and the latents of an edit with them."""
    found = call(BuildCorrespondences.execute, features, 2, **build)[0]
    (injection,) = call(PlugAndPlay.execute)
    (latent,) = call(
        Sampler.execute, tiny_model(), POSITIVE, NEGATIVE, found, cfg=3.0, injection=injection
    )
    return found, latent["samples"]


@pytest.mark.parametrize("layers", LAYERS)
def test_layers_share_the_matches_of_their_resolution(layers: str) -> None:
    features = call(ExtractFeatures.execute, tiny_model(), inverted()[0], layers=layers)[0]
    found, samples = edit(features)
    assert torch.isfinite(samples).all()
    decoder = {
        features.shapes[layer][0] for layer in features.shapes if layer.startswith("output_blocks")
    }
    for layer, descriptor in features.matched_by.items():
        tokens = features.shapes[layer][0]
        assert features.shapes[descriptor[-1]][0] == tokens
        if layers == ALL:
            assert descriptor == (layer,)
        elif layers != DECODER or not layer.startswith("output_blocks"):
            assert descriptor[-1].startswith("output_blocks") or tokens not in decoder
            assert (
                found.tokens(0, layer)[0].equal(found.tokens(0, descriptor[-1])[0])
                or layers == DECODER
            )
    assert len(features.descriptors) == {ALL: len(features.shapes), DECODER: 10}.get(layers, 4)


@pytest.mark.parametrize(("steps", "expected"), [("every k-th", (0, 2)), ("one noise level", (1,))])
@pytest.mark.parametrize("storage", ["memory", "recompute"])
def test_steps_without_features_use_the_nearest_that_has_some(
    steps: str, expected: tuple[int, ...], storage: str
) -> None:
    features = call(
        ExtractFeatures.execute,
        tiny_model(),
        inverted()[0],
        steps=steps,
        every=2,
        noise_level=0.5,
        storage=storage,
    )[0]
    assert features.steps == expected
    found, samples = edit(features)
    assert len(found.steps) == STEPS
    assert torch.isfinite(samples).all()


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_one_noise_level_matches_all_steps(storage: str) -> None:
    features = call(ExtractFeatures.execute, tiny_model(), inverted()[0], storage=storage)[0]
    (level,) = features.steps
    assert level == STEPS - 1  # the cleaner end
    found = edit(features, backend="torch")[0]
    for step, matches in enumerate(found.steps):
        assert matches.pairs is found.steps[0].pairs
        for layer, descriptor in features.matched_by.items():
            described = features.describe(
                {name: features.store.get(level, name) for name in descriptor}, descriptor
            )
            for side, positions in zip(
                found.tokens(step, layer), (matches.near.past, matches.near.future), strict=True
            ):
                for frame, keyframe in enumerate(matches.keyframes[positions].tolist()):
                    if frame != keyframe:
                        assert torch.equal(
                            side[frame].long(),
                            nearest_tokens(described[frame][None], described[keyframe])[0],
                        )


@pytest.mark.parametrize("steps", ["every", "one noise level"])
def test_the_resblocks_features_are_kept_if_every_step_has_its_own(steps: str) -> None:
    features = call(
        ExtractFeatures.execute, tiny_model(), inverted()[0], steps=steps, storage="memory"
    )[0]
    hidden = find(tiny_model().model.diffusion_model).injected_hidden
    assert {step for step in range(STEPS) if features.store.has(step, hidden)} == (
        {0, 1, 2} if steps == "every" else set()
    )


def test_both_backends_give_the_same_edit() -> None:
    samples = [edit(extracted(), backend=backend)[1] for backend in ("faiss", "torch")]
    # Near-ties may fall either way; what they change is small.
    assert (samples[0] - samples[1]).abs().mean() < 1e-3 * samples[0].abs().mean()


def test_fixed_keyframes_stay_and_random_ones_change_with_step_and_seed() -> None:
    def drawn(**build: Any) -> list[list[int]]:
        return [
            step.keyframes.tolist()
            for step in call(BuildCorrespondences.execute, extracted(), 2, **build)[0].steps
        ]

    fixed = drawn(keyframes=FIXED)
    assert fixed[0] == fixed[1] == fixed[2]
    assert len({tuple(step) for seed in range(8) for step in drawn(seed=seed)}) > 1
    assert drawn(seed=3) == drawn(seed=3)


def test_pictures_show_every_frame_at_the_size_of_the_clip() -> None:
    height, width = (side * 8 for side in SIZE)
    features, components = call(ExtractFeatures.execute, tiny_model(), inverted()[0])
    _, rebuilt = call(BuildCorrespondences.execute, features, 2)
    _, from_frames = call(
        BuildCorrespondences.execute, features, 1, frames=torch.rand(FRAMES, height, width, 3)
    )
    for picture in (components, rebuilt, from_frames):
        assert picture.shape == (FRAMES, height, width, 3)
        assert float(picture.min()) >= 0
        assert float(picture.max()) <= 1


def test_with_every_frame_a_keyframe_the_rebuilt_clip_is_the_clip() -> None:
    height, width = (side * 8 for side in SIZE)
    frames = torch.rand(FRAMES, height, width, 3)
    rebuilt = call(BuildCorrespondences.execute, extracted(), 1, frames=frames)[1]
    assert torch.allclose(rebuilt, frames, atol=1e-6)


@pytest.mark.parametrize("consistency", ["tokenflow", "joint attention"])
def test_a_limit_of_all_keyframes_is_no_limit_and_less_is_less(consistency: str) -> None:
    found = call(BuildCorrespondences.execute, extracted(), 1)[0]  # every frame a keyframe
    (injection,) = call(PlugAndPlay.execute)

    def sample(limit: int) -> torch.Tensor:
        inputs = {
            "cfg": 3.0,
            "injection": injection,
            "consistency": consistency,
            "attended_keyframes": limit,
        }
        return call(Sampler.execute, tiny_model(), POSITIVE, NEGATIVE, found, **inputs)[0][
            "samples"
        ]

    unlimited, alone = sample(0), sample(1)
    assert torch.equal(sample(FRAMES), unlimited)
    assert not torch.allclose(alone, unlimited, rtol=1e-3)
    # A keyframe that attends to itself alone is edited frame by frame.
    (by_frame,) = call(
        Sampler.execute,
        tiny_model(),
        POSITIVE,
        NEGATIVE,
        found,
        cfg=3.0,
        injection=injection,
        consistency="per frame",
    )
    assert torch.allclose(
        alone, by_frame["samples"], rtol=1e-3, atol=1e-4 * float(alone.abs().max())
    )
