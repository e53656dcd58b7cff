"""The host's other patches on the model together with TokenFlow: each works, or is refused by an
error that says why.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from inspect import signature
from types import SimpleNamespace
from typing import Any

import comfy.samplers
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_attention_multiply import (
    UNetCrossAttentionMultiply,
    UNetSelfAttentionMultiply,
)
from comfy_extras.nodes_cfg import CFGNorm, CFGZeroStar
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import SamplerCustom
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_eps import EpsilonScaling
from comfy_extras.nodes_freelunch import FreeU, FreeU_V2
from comfy_extras.nodes_fresca import FreSca
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_mahiro import Mahiro
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from comfy_extras.nodes_tcfg import TCFG
from comfy_extras.nodes_tomesd import TomePatchModel
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.modes import MODES
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.features import ExtractFeatures
from torch import Tensor

import nodes

from ..helpers import (
    NEGATIVE,
    POSITIVE,
    STEPS,
    applied,
    call,
    edit,
    extracted,
    injection,
    invert,
    inverted,
    matched,
    relative_error,
    stock,
    tiny_model,
    watch,
)
from ..tiny_models import moving_clip

CLIP = 3, (8, 16)
ROUNDING = 1e-4
Patch = Callable[[Any], Any]


def short(model: Any = None, *both: Any, **inputs: Any) -> Tensor:
    """An edit of few frames in two steps."""
    return edit(model, *(both or (POSITIVE, NEGATIVE)), matched(*CLIP), **{"start": 0.6, **inputs})


def node(execute: Callable[..., Any], *settings: Any) -> Patch:
    """A node of the host that patches a model."""
    return lambda model: call(execute, model, *settings)[0]


def old_node(method: str, kind: type, *settings: Any) -> Patch:
    return lambda model: getattr(kind(), method)(model, *settings)[0]


@cache
def plain() -> Tensor:
    return short()


WORKING: dict[str, Patch] = {
    "FreeU": old_node("patch", FreeU, 1.1, 1.2, 0.9, 0.2),
    "FreeU_V2": old_node("patch", FreeU_V2, 1.3, 1.4, 0.9, 0.2),
    "RescaleCFG": old_node("patch", RescaleCFG, 0.7),
    "CFGZeroStar": node(CFGZeroStar.execute),
    "CFGNorm": node(CFGNorm.execute, 0.9),
    "Mahiro": node(Mahiro.execute),
    "TCFG": node(TCFG.execute),
    "APG": node(APG.execute, 1.0, 5.0, 0.5),
    "FreSca": node(FreSca.execute, 1.0, 1.5, 2),
    "EpsilonScaling": node(EpsilonScaling.execute, 1.005),
    "UNetSelfAttentionMultiply": node(UNetSelfAttentionMultiply.execute, 1.1, 1.0, 1.0, 1.2),
    "UNetCrossAttentionMultiply": node(UNetCrossAttentionMultiply.execute, 1.1, 1.0, 1.0, 1.2),
    "LazyCache": node(LazyCacheNode.execute, 3.0, 0.0, 1.0, False),
}


@pytest.mark.parametrize("name", WORKING)
def test_patches_that_work(name: str) -> None:
    """They do something, and the same however many passes the frames take."""
    start = 1.0 if name == "LazyCache" else 0.6  # it watches two steps before it skips one
    found = short(WORKING[name](tiny_model()), start=start, frames_per_pass=2)
    assert relative_error(found, short(WORKING[name](tiny_model()), start=start)) < ROUNDING
    assert relative_error(found, plain() if start < 1 else short(start=start)) > 10 * ROUNDING


def test_a_lazy_cache_skips_whole_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    watch(monkeypatch, lambda _, frames_pass: seen.append(type(frames_pass).__name__))
    short(WORKING["LazyCache"](tiny_model()), start=1.0)
    assert seen.count("KeyframePass") == STEPS - 1
    assert seen.count("PropagationPass") == STEPS - 2  # the first step's frames are carried


def test_skip_layer_guidance_changes_nothing_in_a_unet() -> None:
    """It skips layers of diffusion transformers; a UNet has none of them."""
    guided = call(SkipLayerGuidanceDiT.execute, tiny_model(), 3.0, 0.0, 1.0, "1", "1", 0.0)[0]
    assert relative_error(short(guided), plain()) < ROUNDING


# Patches that change the number of tokens

MERGING: dict[str, Patch] = {
    "ToMe": node(TomePatchModel.execute, 0.5),
    "HyperTile": node(HyperTile.execute, 32, 2, 0, False),
}


@pytest.mark.parametrize("name", MERGING)
@pytest.mark.parametrize("consistency", MODES)
def test_merged_and_tiled_tokens_are_refused(name: str, consistency: str) -> None:
    # Without it nothing of ours is done to the frames.
    source = injection() if consistency == "per frame" else None
    with pytest.raises(
        NodeError,
        match=r"TokenFlow Sampler, input 'model': layer input_blocks\.1.* tokens here and has "
        ".*ToMe, HyperTile",
    ):
        short(MERGING[name](tiny_model()), consistency=consistency, injection=source)


@pytest.mark.parametrize("name", MERGING)
def test_features_of_merged_and_tiled_tokens_are_refused(name: str) -> None:
    with pytest.raises(
        NodeError,
        match=r"Extract SA Features, input 'model': .* tokens here and has .*ToMe, HyperTile",
    ):
        call(ExtractFeatures.execute, MERGING[name](tiny_model()), inverted(*CLIP)[0])


def test_tiled_tokens_are_the_plain_hosts_where_nothing_is_patched() -> None:
    tiled = MERGING["HyperTile"](tiny_model())
    assert torch.equal(
        stock(applied(tiled, matched(*CLIP), consistency="per frame"), clip=CLIP),
        stock(tiled, clip=CLIP),
    )


def downscaled(factor: float = 2.0, end: float = 1.0) -> Any:
    return call(
        PatchModelAddDownscale.execute,
        tiny_model(),
        3,
        factor,
        0.0,
        end,
        True,
        "bicubic",
        "bicubic",
    )[0]


@pytest.mark.parametrize("injected", [False, True])
def test_a_downscale_that_the_source_features_do_not_know_is_refused(injected: bool) -> None:
    with pytest.raises(
        NodeError,
        match=r"TokenFlow Sampler, input 'model': .* here and .* in the source"
        ".*PatchModelAddDownscale",
    ):
        short(downscaled(), injection=injection() if injected else None)


@pytest.mark.parametrize(
    ("factor", "end", "found"),
    [(2.0, 0.35, r"tokens at step 1 and \d+ at the first"), (1.5, 1.0, r"tokens are no level of")],
)
def test_features_of_a_downscale_that_comes_and_goes_are_refused(
    factor: float, end: float, found: str
) -> None:
    with pytest.raises(
        NodeError, match=rf"Extract SA Features, input 'model': .*{found}.*PatchModelAddDownscale"
    ):
        call(
            ExtractFeatures.execute,
            downscaled(factor, end),
            inverted(*CLIP)[0],
            layers="all",
            steps="every",
        )


def test_a_downscale_at_all_steps_of_source_and_edit_works() -> None:
    features = call(
        ExtractFeatures.execute,
        downscaled(),
        inverted(*CLIP)[0],
        layers="all",
        steps="every",
        storage="memory",
    )[0]
    assert sum(tokens for tokens, _ in features.shapes.values()) < sum(
        tokens for tokens, _ in extracted(*CLIP).shapes.values()
    )
    correspondences = call(
        BuildCorrespondences.execute, features, keyframe_interval=2, backend="torch"
    )[0]
    again = partial(
        edit, downscaled(), correspondences=correspondences, injection=injection(), start=0.6
    )
    assert relative_error(again(frames_per_pass=2), again()) < ROUNDING


# What keeps the model from running on all frames at all steps


def windows(model: Any) -> Any:
    newer = (
        {"freenoise": False}
        if "freenoise" in signature(ContextWindowsManualNode.execute).parameters
        else {}
    )
    return call(
        ContextWindowsManualNode.execute,
        model,
        2,
        1,
        "standard_static",
        1,
        False,
        "pyramid",
        0,
        **newer,
    )[0]


NOT_FOR_THE_SOURCE: dict[str, Patch] = {
    "EasyCache": node(EasyCacheNode.execute, 3.0, 0.0, 1.0, False),
    "LazyCache": WORKING["LazyCache"],
    "Self-Attention Guidance": node(SelfAttentionGuidance.execute, 0.5, 2.0),
}
STAGES: dict[str, Callable[[Patch], Any]] = {
    "DDIM Invert Video": lambda patch: invert(patch(tiny_model()), moving_clip(3, 8, 16)),
    "Extract SA Features": lambda patch: call(
        ExtractFeatures.execute, patch(tiny_model()), inverted(*CLIP)[0]
    ),
    "TokenFlow Sampler": lambda patch: short(patch(tiny_model())),
    "Apply TokenFlow": lambda patch: stock(
        patch(applied(correspondences=matched(*CLIP))), clip=CLIP
    ),
}
SOURCE_STAGES, EDIT_STAGES = list(STAGES)[:2], list(STAGES)[2:]


def animatediff(model: Any, windows: bool, motion: bool) -> Any:
    """What AnimateDiff-Evolved puts into a run's options."""
    state = SimpleNamespace(
        is_using_sliding_context=lambda: windows,
        motion_models=SimpleNamespace(models=["v3"] if motion else []),
    )
    clone = model.clone()
    clone.model_options["transformer_options"]["ADGS"] = state
    return clone


@pytest.mark.parametrize(
    "patch",
    [windows, partial(animatediff, windows=True, motion=False)],
    ids=["the host's", "AnimateDiff's"],
)
@pytest.mark.parametrize("stage", STAGES)
def test_context_windows_are_refused(stage: str, patch: Patch) -> None:
    with pytest.raises(NodeError, match=rf"{stage}, input 'model': a context handler.* Remove it"):
        STAGES[stage](patch)


@pytest.mark.parametrize("stage", STAGES)
def test_motion_models_are_refused(stage: str) -> None:
    with pytest.raises(NodeError, match=rf"{stage}, input 'model': a motion model .* without it"):
        STAGES[stage](partial(animatediff, windows=False, motion=True))


def test_animatediff_s_sampling_without_either_changes_nothing() -> None:
    assert torch.equal(short(animatediff(tiny_model(), windows=False, motion=False)), plain())


@pytest.mark.parametrize("stage", EDIT_STAGES)
def test_a_cache_that_skips_passes_is_refused(stage: str) -> None:
    with pytest.raises(
        NodeError, match=rf"{stage}, input 'model': EasyCache, which skips passes .* LazyCache"
    ):
        STAGES[stage](NOT_FOR_THE_SOURCE["EasyCache"])


@pytest.mark.parametrize("stage", SOURCE_STAGES)
@pytest.mark.parametrize("name", NOT_FOR_THE_SOURCE)
def test_a_source_that_not_all_of_the_model_sees_is_refused(name: str, stage: str) -> None:
    with pytest.raises(
        NodeError, match=rf"{stage}, input 'model': .*{name}.* to the sampler alone"
    ):
        STAGES[stage](NOT_FOR_THE_SOURCE[name])


def test_features_that_are_not_finite_are_refused() -> None:
    broken = tiny_model().clone()
    broken.set_model_unet_function_wrapper(
        lambda apply_model, args: apply_model(
            args["input"] * torch.nan, args["timestep"], **args["c"]
        )
    )
    with pytest.raises(NodeError, match=r"Extract SA Features, input 'model': NaN .*precision"):
        call(ExtractFeatures.execute, broken, inverted(*CLIP)[0])


def test_features_are_recorded_before_guidance_looks_again() -> None:
    guided = call(PerturbedAttentionGuidance.execute, tiny_model(), 2.0)[0]
    found, wanted = (
        call(
            ExtractFeatures.execute,
            guided,
            inverted(*CLIP)[0],
            layers="all",
            steps="every",
            storage="memory",
        )[0],
        extracted(*CLIP),
    )
    for layer in wanted.shapes:
        assert torch.equal(found.store.get(1, layer), wanted.store.get(1, layer))


# Images beside the prompt, as IPAdapter has them

IMAGE_TOKENS = 2
BLOCKS = [
    *(("input", i) for i in (1, 2, 4, 5, 7, 8)),
    ("middle", 0),
    *(("output", i) for i in range(3, 12)),
]


def images(count: int) -> Tensor:
    """An image's tokens for each frame, or for all."""
    return torch.randn(
        count, IMAGE_TOKENS, POSITIVE[0][0].shape[-1], generator=torch.Generator().manual_seed(7)
    )


def rows(tokens: Tensor, options: dict[str, Any]) -> Tensor:
    """The images that belong to a batch: those of its frames for the prompt,
    empty ones for the negative prompt.
    """
    window = options["ad_params"]
    own = (
        tokens[window["sub_idxs"]]
        if len(tokens) >= window["full_length"]
        else tokens.expand(window["context_length"], -1, -1)
    )
    return torch.cat(
        [own if index == 0 else torch.zeros_like(own) for index in options["cond_or_uncond"]]
    )


def with_patch(tokens: Tensor) -> Any:
    """The image's tokens behind the prompt's, in every cross-attention."""

    def patch(
        n: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        image = rows(tokens, options)
        return n, torch.cat([context, image], 1), torch.cat([value, image], 1)

    model = tiny_model().clone()
    model.set_model_attn2_patch(patch)
    return model


def with_replace(tokens: Tensor) -> Any:
    """The same in place of each cross-attention, after its projections."""
    model = tiny_model().clone()
    attention = {"input": "input_blocks", "middle": "middle_block", "output": "output_blocks"}

    def replace(path: str, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        module, image = model.model.diffusion_model.get_submodule(path), rows(tokens, options)
        k, v = torch.cat([k, module.to_k(image)], 1), torch.cat([v, module.to_v(image)], 1)
        return optimized_attention(q, k, v, options["n_heads"])

    for side, number in BLOCKS:
        block = f"{attention[side]}.1" if side == "middle" else f"{attention[side]}.{number}.1"
        model.set_model_attn2_replace(
            partial(replace, f"{block}.transformer_blocks.0.attn2"), side, number
        )
    return model


def prompts_with(tokens: Tensor) -> tuple[Any, Any]:
    """Conditionings of a prompt for each frame, the images in them."""

    def joined(prompt: Any, image: Tensor) -> Any:
        return [[torch.cat([prompt[0][0].expand(len(image), -1, -1), image], 1), {}]]

    return joined(POSITIVE, tokens), joined(NEGATIVE, torch.zeros_like(tokens))


@pytest.mark.parametrize("count", [CLIP[0], 1], ids=["own", "one for all"])
@pytest.mark.parametrize("patched", [with_patch, with_replace])
def test_every_frame_sees_its_own_image(patched: Callable[[Tensor], Any], count: int) -> None:
    """As if the images had been in the prompts of the frames."""
    found = short(patched(images(count)), frames_per_pass=2)
    assert relative_error(found, short(None, *prompts_with(images(count)))) < ROUNDING
    assert relative_error(found, plain()) > 10 * ROUNDING


# Noise masks


def own_masks() -> Tensor:
    """A column of latents for each frame, another each time."""
    masks = torch.zeros(CLIP[0], 64, 128)
    for frame in range(len(masks)):
        masks[frame, :, 32 * frame : 32 * (frame + 1)] = 1
    return masks


def with_ksampler(model: Any, latents: dict[str, Any]) -> Tensor:
    """New noise on the source."""
    return call(
        nodes.KSampler().sample,
        model,
        0,
        STEPS,
        4.0,
        "euler",
        "normal",
        POSITIVE,
        NEGATIVE,
        latents,
        1.0,
    )[0]["samples"]


def with_sampler_custom(model: Any, latents: dict[str, Any]) -> Tensor:
    sampler = comfy.samplers.sampler_object("euler")
    return call(
        SamplerCustom.execute,
        model,
        True,
        0,
        4.0,
        POSITIVE,
        NEGATIVE,
        sampler,
        inverted(*CLIP)[2],
        latents,
    )[0]["samples"]


@pytest.mark.parametrize("sample", [with_ksampler, with_sampler_custom])
def test_frames_are_edited_inside_their_own_noise_mask(
    sample: Callable[[Any, Any], Tensor],
) -> None:
    clean, masks = moving_clip(3, 8, 16), own_masks()
    latents = nodes.SetLatentNoiseMask().set_mask(clean, masks)[0]
    found = sample(applied(correspondences=matched(*CLIP), frames_per_pass=2), latents)
    inside = (masks[:, None, ::8, ::8] > 0).expand_as(found)
    torch.testing.assert_close(found[~inside], clean["samples"][~inside])
    for frame, part in enumerate(inside):
        assert relative_error(found[frame][part], clean["samples"][frame][part]) > 0.1
    assert (
        relative_error(found, sample(applied(correspondences=matched(*CLIP)), latents)) < ROUNDING
    )


def test_differential_diffusion_of_a_soft_mask() -> None:
    clean = moving_clip(3, 8, 16)
    soft = own_masks() * torch.linspace(0.2, 1, 64)[:, None]
    latents = nodes.SetLatentNoiseMask().set_mask(clean, soft)[0]

    def sampled(frames_per_pass: int, patch: Patch) -> Tensor:
        return with_ksampler(
            patch(applied(correspondences=matched(*CLIP), frames_per_pass=frames_per_pass)), latents
        )

    differential = node(DifferentialDiffusion.execute, 1.0)
    found = sampled(2, differential)
    assert relative_error(found, sampled(0, differential)) < ROUNDING
    assert relative_error(found, sampled(0, lambda model: model)) > 10 * ROUNDING
