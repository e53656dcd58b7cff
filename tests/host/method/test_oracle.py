"""The pack through its nodes against the plain oracle, on a narrow SD 1.5 with random weights; and
against itself and the plain host.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustom
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.features import COARSE_TO_FINE, ExtractFeatures
from tokenflow_pack.nodes.injection import PlugAndPlay
from tokenflow_pack.nodes.inversion import InvertVideo
from tokenflow_pack.nodes.presets import PRESETS
from tokenflow_pack.nodes.sampling.apply import Apply
from tokenflow_pack.nodes.sampling.sampler import Sampler
from tokenflow_pack.tokenflow_ops import ATTENTION, DEEP_FEATURES
from tokenflow_pack.tokenflow_ops.editing import step as method
from torch import Tensor

from ..helpers import relative_error, tiny_model
from ..once import once_a_module
from ..oracles import plain as oracle
from ..oracles import source as source_oracle
from ..tiny_models import moving_clip, random_conditioning, tiny_sd15

CFG = 7.5
# Neither square nor a multiple of 8: the UNet's grids are 6 x 10, 3 x 5, 2 x 3 and 1 x 2.
SIZE = 6, 10
SOURCE, POSITIVE, NEGATIVE = (random_conditioning(seed) for seed in (1, 2, 3))
CONSISTENCIES = ["tokenflow", "joint attention", "per frame"]
SHARES = [None, (0.5, 0.8)]
SHARE_NAMES = ["no injection", "plug-and-play"]


pytestmark = pytest.mark.usefixtures("one_thread", "inference_mode")


@pytest.fixture
def model() -> Any:
    return tiny_model()


def call(node: Any, *args: Any, **inputs: Any) -> tuple[Any, ...]:
    return tuple(node.execute(*args, **inputs).args)


def in_model_space(latent: dict[str, Tensor]) -> Tensor:
    return tiny_model().model.process_latent_in(latent["samples"])


@dataclass(frozen=True)
class Clip:
    """A source clip and its keyframe interval. depth: how far up the noise it is inverted."""

    frames: int = 7
    interval: int = 3
    depth: float = 1.0
    iterations: int = 0
    steps: int = 4
    intervals: str = "even"
    still: int = 1  # so many frames at first are the same

    @property
    def latents(self) -> dict[str, Tensor]:
        moving = moving_clip(self.frames, *SIZE)["samples"]
        return {"samples": torch.cat([moving[:1].expand(self.still, -1, -1, -1), moving[1:]])}


# Nine frames, of which eight share a keyframe.
UNEVEN = Clip(frames=6, interval=2, steps=3, intervals="by content", still=4)
CLOSE = Clip(frames=3, interval=2, steps=40, depth=0.5)
# Seven keyframes. Of those that may attend to four each: positions of the anchors, of every
# window's own, and of those that it attends to beside them.
MANY = Clip(frames=13, interval=2, steps=3)
WINDOWS = [3], [[0], [1, 2], [3, 4], [5, 6]], [[], [0], [2], [4]]


@once_a_module
def inverted(clip: Clip) -> tuple[Any, ...]:
    """DDIM Invert Video's outputs."""
    refinement = "fixed point" if clip.iterations else "none"
    return call(
        InvertVideo,
        tiny_model(),
        clip.latents,
        SOURCE,
        steps=clip.steps,
        depth=clip.depth,
        refinement=refinement,
        iterations=clip.iterations or 2,
    )


@once_a_module
def matched(clip: Clip, storage: str = "memory", layers: str = "all") -> Any:
    """Build NN Correspondences' output."""
    features, _ = call(
        ExtractFeatures,
        tiny_model(),
        inverted(clip)[0],
        layers=layers,
        steps="every",
        storage=storage,
    )
    return call(
        BuildCorrespondences,
        features,
        keyframe_interval=clip.interval,
        intervals=clip.intervals,
        seed=3,
        backend="torch",
    )[0]


@once_a_module
def oracle_path(clip: Clip) -> tuple[Tensor, Tensor]:
    """The oracle's own sigmas and inverted latents."""
    sigmas = comfy.samplers.KSampler(
        tiny_model(), clip.steps, torch.device("cpu"), "euler", "normal"
    ).sigmas
    sigmas = sigmas[-1 - round(clip.steps * clip.depth) :]
    return sigmas, source_oracle.invert(
        tiny_model(), in_model_space(clip.latents), sigmas, SOURCE[0][0], clip.iterations
    )


@once_a_module
def looked(clip: Clip, step: int) -> source_oracle.Source:
    """What the oracle sees of the source at a step."""
    sigmas, path = oracle_path(clip)
    return source_oracle.look_at_source(tiny_model(), path[step], sigmas[step], SOURCE[0][0])


def proposals(clip: Clip, layers: str = "all") -> list[dict[str, tuple[Tensor, Tensor]]]:
    """The matches of every step by layer."""
    found = matched(clip, layers=layers)
    return [
        {layer: found.tokens(step, layer) for layer in found.features.shapes}
        for step in range(len(found.steps))
    ]


def oracle_edit(
    clip: Clip,
    shares: tuple[float, float] | None,
    consistency: str = "tokenflow",
    first: int = 0,
    layers: str = "all",
    **choices: Any,
) -> Tensor:
    """The oracle's edited latents, sampled from step `first` on.

    Frames have the keyframes' guidance where they have their deep features, as by default.
    """
    choices.setdefault("guides", choices.get("deep", False))
    sigmas, path = oracle_path(clip)
    drawn = matched(clip).steps[first:]
    attention_until, features_until = shares or (0.0, 0.0)
    return oracle.Edit(
        tiny_model(),
        path[first:],
        sigmas[first:],
        SOURCE[0][0],
        POSITIVE[0][0],
        NEGATIVE[0][0],
        [step.keyframes.tolist() for step in drawn],
        CFG,
        attention_until,
        features_until,
        consistency,
        proposals(clip, layers)[first:],
        coarse=layers == COARSE_TO_FINE,
        looked=lambda step: looked(clip, first + step),
        **choices,
    ).run()


def edited(
    clip: Clip,
    shares: tuple[float, float] | None,
    consistency: str = "tokenflow",
    storage: str = "memory",
    layers: str = "all",
    **inputs: Any,
) -> Tensor:
    """TokenFlow Sampler's latents in the model's space."""
    injection = call(PlugAndPlay, *shares)[0] if shares else None
    inputs = {"propagation": ATTENTION, **inputs}
    return in_model_space(
        call(
            Sampler,
            tiny_model(),
            POSITIVE,
            NEGATIVE,
            matched(clip, storage, layers),
            cfg=CFG,
            consistency=consistency,
            injection=injection,
            **inputs,
        )[0]
    )


# Of the method as it is; a test that changes it for a while asks for `edited`.
edited_once = once_a_module(edited)


@pytest.mark.parametrize(
    "clip",
    [Clip(), Clip(frames=1), Clip(iterations=2), Clip(depth=0.5)],
    ids=["7 frames", "1 frame", "fixed point", "half depth"],
)
def test_inverted_latents_are_the_oracles(clip: Clip) -> None:
    inversion, noisy, sigmas = inverted(clip)
    wanted_sigmas, wanted = oracle_path(clip)
    torch.testing.assert_close(sigmas, wanted_sigmas)
    for found, latents in zip(inversion.latents, wanted, strict=True):
        assert relative_error(found, latents) < 1e-4
    assert relative_error(in_model_space(noisy), wanted[0]) < 1e-4


def test_matches_are_the_oracles() -> None:
    """Apart from ties that float32 cannot decide, which are few."""
    clip = Clip()
    differing, total = 0, 0
    for j, (step, tokens) in enumerate(zip(matched(clip).steps, proposals(clip), strict=True)):
        known = looked(clip, j)
        assert set(tokens) == set(known.phi)
        keyframes = step.keyframes.tolist()
        for layer, sides in tokens.items():
            for i in range(clip.frames):
                for side, keyframe in zip(
                    sides, source_oracle.closest(i, keyframes)[:2], strict=True
                ):
                    found = side[i].long()
                    assert torch.equal(
                        source_oracle.match(known.phi[layer], i, keyframe, proposal=found), found
                    )
                    differing += int(
                        (source_oracle.match(known.phi[layer], i, keyframe) != found).sum()
                    )
                    total += len(found)
    assert differing < 1e-3 * total


@pytest.mark.parametrize("shares", SHARES, ids=SHARE_NAMES)
@pytest.mark.parametrize("consistency", CONSISTENCIES)
def test_edited_latents_are_the_oracles(
    consistency: str, shares: tuple[float, float] | None
) -> None:
    found = edited_once(Clip(), shares, consistency=consistency)
    assert relative_error(found, oracle_edit(Clip(), shares, consistency)) < 1e-4


@pytest.mark.parametrize("propagation", [ATTENTION, DEEP_FEATURES])
def test_intervals_by_content_are_edited_as_by_the_oracle(propagation: str) -> None:
    assert matched(UNEVEN).starts == (0, 8)
    found = edited(UNEVEN, SHARES[1], propagation=propagation)
    wanted = oracle_edit(UNEVEN, SHARES[1], deep=propagation == DEEP_FEATURES)
    assert relative_error(found, wanted) < 1e-4


@pytest.mark.parametrize("shares", SHARES, ids=SHARE_NAMES)
@pytest.mark.parametrize(
    "clip",
    [Clip(frames=1), Clip(frames=5, interval=8)],
    ids=["one frame", "fewer than an interval"],
)
def test_short_clips_are_edited_as_by_the_oracle(
    clip: Clip, shares: tuple[float, float] | None
) -> None:
    assert relative_error(edited_once(clip, shares), oracle_edit(clip, shares)) < 1e-4


@pytest.mark.parametrize("shares", SHARES, ids=SHARE_NAMES)
def test_many_keyframes_are_edited_in_windows_as_by_the_oracle(
    shares: tuple[float, float] | None,
) -> None:
    """Seven keyframes of which each attends to four: two of its window, one before it, and one
    anchor in the middle.
    """
    found = edited_once(MANY, shares, attended_keyframes=4)
    assert relative_error(found, oracle_edit(MANY, shares, windows=WINDOWS)) < 1e-4
    assert relative_error(found, edited_once(MANY, shares)) > 1e-3


@pytest.mark.parametrize("shares", SHARES, ids=SHARE_NAMES)
def test_features_from_below_full_resolution_are_carried_as_by_the_oracle(
    shares: tuple[float, float] | None,
) -> None:
    found = edited_once(Clip(), shares, propagation=DEEP_FEATURES)
    assert relative_error(found, oracle_edit(Clip(), shares, deep=True)) < 1e-4
    assert relative_error(found, edited_once(Clip(), shares)) > 1e-3


def test_all_that_is_ours_together_is_the_oracles() -> None:
    """Matches coarse to fine, deep features carried, in windows."""
    found = edited_once(
        MANY,
        (0.5, 0.8),
        layers=COARSE_TO_FINE,
        propagation=DEEP_FEATURES,
        attended_keyframes=4,
    )
    assert (
        relative_error(
            found, oracle_edit(MANY, (0.5, 0.8), layers=COARSE_TO_FINE, deep=True, windows=WINDOWS)
        )
        < 1e-4
    )


@pytest.mark.parametrize(
    ("shares", "preset"), list(zip(SHARES, ("balanced", "lean"), strict=True)), ids=SHARE_NAMES
)
def test_keyframes_that_see_each_other_merged_are_the_oracles(
    shares: tuple[float, float] | None, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In windows, in all layers but those of 2 x 3 and 1 x 2 tokens."""
    merged_from = 15
    asked: dict[str, Any] = {
        "propagation": DEEP_FEATURES,
        "attended_keyframes": 4,
        "preset": preset,
    }
    whole = edited_once(MANY, shares, **asked)
    monkeypatch.setattr(method, "MERGED_FROM", merged_from)
    found = edited(MANY, shares, **asked)
    wanted = oracle_edit(
        MANY,
        shares,
        deep=True,
        lean=preset == "lean",
        windows=WINDOWS,
        merged_from=merged_from,
    )
    assert relative_error(found, wanted) < 1e-4
    assert relative_error(found, whole) > 1e-3


def test_attentions_output_is_carried_from_keyframes_that_see_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who chooses the paper's propagation has the paper's keyframes, too."""
    whole = edited_once(Clip(), None)
    monkeypatch.setattr(method, "MERGED_FROM", 1)
    assert torch.equal(edited(Clip(), None), whole)
    assert torch.equal(edited(Clip(), None, preset="faithful", carry_until=0.2), whole)


@pytest.mark.parametrize("shares", SHARES, ids=SHARE_NAMES)
def test_a_lean_edit_is_the_oracles(shares: tuple[float, float] | None) -> None:
    """Of four steps the first is carried, and the third takes what the second has kept."""
    inputs: dict[str, Any] = {"propagation": DEEP_FEATURES, "preset": "lean"}
    found = edited_once(Clip(), shares, **inputs)
    assert relative_error(found, oracle_edit(Clip(), shares, deep=True, lean=True)) < 1e-4
    assert relative_error(found, edited_once(Clip(), shares, propagation=DEEP_FEATURES)) > 1e-3


def test_a_lean_edit_in_windows_is_the_oracles() -> None:
    found = edited_once(MANY, None, propagation=DEEP_FEATURES, preset="lean", attended_keyframes=4)
    wanted = oracle_edit(MANY, None, deep=True, lean=True, windows=WINDOWS)
    assert relative_error(found, wanted) < 1e-4


def test_where_steps_lie_close_some_take_what_keyframes_have_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of forty steps every second one to the twenty-fourth, six tenths of the schedule."""
    shares = 0.5, 0.8
    found = edited_once(CLOSE, shares, propagation=DEEP_FEATURES)
    wanted = oracle_edit(CLOSE, shares, deep=True, repeats=(0.6, 26.0))
    assert relative_error(found, wanted) < 1e-4
    balanced = replace(PRESETS["balanced"], repeats=None)
    monkeypatch.setitem(PRESETS, "balanced", balanced)
    assert relative_error(found, edited(CLOSE, shares, propagation=DEEP_FEATURES)) > 1e-3


def test_starting_further_down_is_the_oracle_from_there() -> None:
    assert (
        relative_error(
            edited_once(Clip(), (0.5, 0.8), start=0.5), oracle_edit(Clip(), (0.5, 0.8), first=2)
        )
        < 1e-4
    )


def test_the_modes_differ() -> None:
    """Else the tests above would show nothing."""
    results = [
        edited_once(Clip(), shares, consistency=consistency)
        for consistency in CONSISTENCIES
        for shares in SHARES
    ]
    for i, one in enumerate(results):
        for other in results[i + 1 :]:
            assert relative_error(one, other) > 0.01


@pytest.mark.parametrize("consistency", ["tokenflow", "joint attention"])
def test_with_every_frame_a_keyframe_both_are_joint_attention_over_all(consistency: str) -> None:
    clip = Clip(frames=3, interval=1)
    other = {"tokenflow": "joint attention", "joint attention": "tokenflow"}[consistency]
    found = edited_once(clip, (0.5, 0.8), consistency=consistency)
    assert relative_error(found, oracle_edit(clip, (0.5, 0.8), other)) < 1e-4


@pytest.mark.parametrize(
    ("storage", "tolerance"),
    # Those with a tolerance are computed again in batches of other sizes, whose rounding differs.
    [("disk", 0.0), ("auto", 1e-5), ("recompute", 1e-5)],
)
def test_storage_changes_nothing(storage: str, tolerance: float) -> None:
    kept = matched(Clip())
    other = matched(Clip(), storage)
    for one, two in zip(kept.steps, other.steps, strict=True):
        assert torch.equal(one.pairs.pairs, two.pairs.pairs)
        assert all(
            torch.equal(table, two.pairs.tokens[name]) for name, table in one.pairs.tokens.items()
        )
    assert (
        relative_error(
            edited_once(Clip(), (0.5, 0.8), storage=storage), edited_once(Clip(), (0.5, 0.8))
        )
        <= tolerance
    )


@pytest.mark.parametrize("consistency", CONSISTENCIES)
def test_frames_per_pass_changes_nothing(consistency: str) -> None:
    found = edited_once(Clip(), (0.5, 0.8), consistency=consistency, frames_per_pass=2)
    assert relative_error(found, edited_once(Clip(), (0.5, 0.8), consistency=consistency)) < 1e-5


@pytest.mark.parametrize("shares", SHARES, ids=SHARE_NAMES)
def test_apply_under_a_stock_sampler_is_the_sampler_bit_for_bit(
    model: Any, shares: tuple[float, float] | None
) -> None:
    injection = call(PlugAndPlay, *shares)[0] if shares else None
    _, noisy, sigmas = inverted(Clip())
    patched = call(Apply, model, matched(Clip()), injection=injection)[0]
    found = stock_sampler(patched, sigmas, noisy)
    wanted = call(
        Sampler, model, POSITIVE, NEGATIVE, matched(Clip()), cfg=CFG, injection=injection
    )[0]["samples"]
    assert torch.equal(found, wanted)


def test_per_frame_without_injection_is_the_plain_host_bit_for_bit(model: Any) -> None:
    _, noisy, sigmas = inverted(Clip())
    wanted = stock_sampler(model, sigmas, noisy)
    found = call(
        Sampler, model, POSITIVE, NEGATIVE, matched(Clip()), cfg=CFG, consistency="per frame"
    )[0]["samples"]
    assert torch.equal(found, wanted)


def stock_sampler(model: Any, sigmas: Tensor, noisy: dict[str, Tensor]) -> Tensor:
    sampler = comfy.samplers.sampler_object("euler")
    return call(SamplerCustom, model, False, 0, CFG, POSITIVE, NEGATIVE, sampler, sigmas, noisy)[0][
        "samples"
    ]


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_sd15(4)
    unet = model.model.diffusion_model
    clip = moving_clip(3, *SIZE)
    # The host itself leaves marks when it loads a model.
    plain = stock_sampler(model, torch.tensor([1.0, 0.0]), clip)
    weights = {name: weight.clone() for name, weight in unet.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in unet.named_modules()}
    options = repr(model.model_options)

    inversion, _, _ = call(InvertVideo, model, clip, SOURCE, steps=2)
    features, _ = call(
        ExtractFeatures, model, inversion, layers="all", steps="every", storage="recompute"
    )
    correspondences, _ = call(BuildCorrespondences, features, keyframe_interval=2, intervals="even")
    call(Sampler, model, POSITIVE, NEGATIVE, correspondences, injection=call(PlugAndPlay)[0])

    assert repr(model.model_options) == options
    assert {name: set(vars(module)) for name, module in unet.named_modules()} == attributes
    assert all(torch.equal(weight, weights[name]) for name, weight in unet.state_dict().items())
    assert torch.equal(stock_sampler(model, torch.tensor([1.0, 0.0]), clip), plain)
