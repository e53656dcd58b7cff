"""What prompts carry through the host's nodes: steps they hold at, hooks, LoRA, embeddings, boxes
and images, all under TokenFlow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.samplers
import comfy.supported_models
import folder_paths
import pytest
import torch
from comfy.gligen import GatedSelfAttentionDense, Gligen, PositionNet
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_custom_sampler import SamplerCustom
from comfy_extras.nodes_hooks import (
    CombineHooks,
    ConditioningTimestepsRange,
    CreateHookKeyframe,
    CreateHookLoraModelOnly,
    PairConditioningSetDefaultAndCombine,
    PairConditioningSetProperties,
    PairConditioningSetPropertiesAndCombine,
    SetHookKeyframes,
)
from safetensors.torch import save_file
from tokenflow_pack.host.files.demo_model import load_demo_model
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.nodes.features import ExtractFeatures
from torch import Tensor

import nodes

from ..helpers import (
    NEGATIVE,
    OWN_GUIDANCE,
    POSITIVE,
    SOURCE,
    built,
    call,
    invert,
    lora,
    relative_error,
    with_lora,
)
from ..small import applied, edit, inverted, matched, tiny_model
from ..tiny_models import (
    CONTEXT,
    POOLED,
    SD2,
    SIZES,
    moving_clip,
    random_conditioning,
    random_module,
    tiny_unet,
)

CLIP = 3, (8, 16)
OTHER = random_conditioning(4, tokens=9)  # too long to share a batch with the others
FIRST_STEP = 0.25  # the share of the schedule that only the first of three steps lies in
ROUNDING = 1e-4


def short(
    model: Any = None, positive: Any = POSITIVE, negative: Any = NEGATIVE, **inputs: Any
) -> Tensor:
    """An edit of few frames in two steps."""
    return edit(model, positive, negative, matched(*CLIP), **{"start": 0.6, **inputs})


def sampled(
    model: Any, both: tuple[Any, Any], part: slice, latents: dict[str, Any], cfg: float
) -> dict[str, Any]:
    """Some of the three steps under the host's SamplerCustom."""
    sigmas, sampler = inverted(*CLIP)[2][part], comfy.samplers.sampler_object("euler")
    return call(
        SamplerCustom.execute,
        applied(model, matched(*CLIP)),
        False,
        0,
        cfg,
        *both,
        sampler,
        sigmas,
        latents,
    )[0]


def one_after_another(
    first: tuple[Any, Any, Any], second: tuple[Any, Any, Any], cfg: float = 4.0
) -> Tensor:
    """The first step with a model and prompts, the other two with others."""
    latents = sampled(first[0], first[1:], slice(0, 2), inverted(*CLIP)[1], cfg)
    return sampled(second[0], second[1:], slice(1, None), latents, cfg)["samples"]


# The steps that a prompt holds at


def with_range() -> tuple[Any, Any]:
    set_range = nodes.ConditioningSetTimestepRange().set_range
    parts = set_range(POSITIVE, 0.0, FIRST_STEP)[0], set_range(OTHER, FIRST_STEP, 1.0)[0]
    return nodes.ConditioningCombine().combine(*parts)[0], NEGATIVE


def with_pairs() -> tuple[Any, Any]:
    first, _, then = ConditioningTimestepsRange().create_range(0.0, FIRST_STEP)
    both = PairConditioningSetProperties().set_properties(
        POSITIVE, NEGATIVE, 1.0, "default", timesteps=first
    )
    combine = PairConditioningSetPropertiesAndCombine().set_properties
    return combine(*both, OTHER, NEGATIVE, 1.0, "default", timesteps=then)


@pytest.mark.parametrize("both", [with_range, with_pairs])
def test_prompts_hold_at_their_own_steps(both: Any) -> None:
    found = short(None, *both(), start=1.0, frames_per_pass=2)
    wanted = one_after_another((tiny_model(), POSITIVE, NEGATIVE), (tiny_model(), OTHER, NEGATIVE))
    assert relative_error(found, wanted) < ROUNDING
    assert relative_error(found, short(start=1.0)) > 10 * ROUNDING


def test_features_of_a_source_prompt_that_holds_at_some_steps_are_refused() -> None:
    source = nodes.ConditioningSetTimestepRange().set_range(SOURCE, 0.0, FIRST_STEP)[0]
    inversion = invert(tiny_model(), moving_clip(2, 8, 8), positive=source)[0]
    with pytest.raises(
        NodeError,
        match=r"Extract SA Features, input 'model': .* did not run at step 1"
        ".*without timestep ranges",
    ):
        call(ExtractFeatures.execute, tiny_model(), inversion, layers="all", steps="every")


def test_features_of_a_source_prompt_for_an_area_are_refused() -> None:
    source = nodes.ConditioningSetArea().append(SOURCE, 32, 32, 0, 0, 1.0)[0]
    inversion = invert(tiny_model(), moving_clip(2, 8, 8), positive=source)[0]
    with pytest.raises(
        NodeError, match=r"Extract SA Features, input 'inversion': .* area.* ConditioningSetMask"
    ):
        call(ExtractFeatures.execute, tiny_model(), inversion)


# LoRA and hooks


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that the host looks for LoRA and embeddings in:
    one.safetensors and two.safetensors are LoRA.
    """
    folder = tmp_path_factory.mktemp("files")
    save_file(lora(), folder / "one.safetensors")
    save_file(
        {name.replace("attn1", "attn2"): -weight for name, weight in lora().items()},
        folder / "two.safetensors",
    )
    kinds = ("loras", "embeddings")
    for kind in kinds:
        folder_paths.add_model_folder_path(kind, str(folder))
    yield folder
    for kind in kinds:
        folder_paths.folder_names_and_paths[kind][0].remove(str(folder))


def hook(name: str, strength: float) -> Any:
    return CreateHookLoraModelOnly().create_hook_model_only(name, strength)[0]


def hooked(hooks: Any) -> tuple[Any, Any]:
    """Both prompts with hooks."""
    return PairConditioningSetProperties().set_properties(
        POSITIVE, NEGATIVE, 1.0, "default", hooks=hooks
    )


def loaded(*names: tuple[str, float]) -> Any:
    """The model with LoRA files on it."""
    model = tiny_model()
    for name, strength in names:
        model = nodes.LoraLoaderModelOnly().load_lora_model_only(model, name, strength)[0]
    return model


def test_a_lora_file_is_loaded(files: Path) -> None:
    found = short(loaded(("one.safetensors", 0.5)), frames_per_pass=2)
    assert relative_error(found, short(with_lora(tiny_model(), 0.5))) < ROUNDING
    assert relative_error(found, short()) > 10 * ROUNDING


def test_several_hooks_on_a_pair_of_prompts_are_their_loras(files: Path) -> None:
    both = CombineHooks().combine_hooks(
        hook("one.safetensors", 0.5), hook("two.safetensors", 0.25)
    )[0]
    found = short(None, *hooked(both), frames_per_pass=2)
    assert (
        relative_error(found, short(loaded(("one.safetensors", 0.5), ("two.safetensors", 0.25))))
        < ROUNDING
    )
    assert relative_error(found, short(loaded(("one.safetensors", 0.5)))) > 10 * ROUNDING


def test_hooks_follow_their_schedules(files: Path) -> None:
    """One is off at the first step, the other on at it alone."""
    keyframe = CreateHookKeyframe().create_hook_keyframe
    rising, falling = (
        keyframe(1.0 - first, FIRST_STEP, keyframe(first, 0.0)[0])[0] for first in (0.0, 1.0)
    )
    scheduled = SetHookKeyframes().set_hook_keyframes
    hooks = CombineHooks().combine_hooks(
        scheduled(hook("one.safetensors", 0.5), rising)[0],
        scheduled(hook("two.safetensors", 0.5), falling)[0],
    )[0]
    found = short(None, *hooked(hooks), start=1.0, frames_per_pass=2)
    prompts = POSITIVE, NEGATIVE
    wanted = one_after_another(
        (loaded(("two.safetensors", 0.5)), *prompts), (loaded(("one.safetensors", 0.5)), *prompts)
    )
    assert relative_error(found, wanted) < ROUNDING


def test_a_default_prompt_holds_where_no_other_does() -> None:
    """Here on the frames that the other's mask leaves out;
    over a single step no frame sees the others'.
    """
    mask = torch.zeros(CLIP[0], 64, 128)
    mask[1] = 1
    masked = nodes.ConditioningSetMask().append(POSITIVE, mask, "default", 1.0)[0]
    both = PairConditioningSetDefaultAndCombine().set_default_and_combine(
        masked, NEGATIVE, OTHER, NEGATIVE
    )
    found = short(None, *both, start=0.3, frames_per_pass=2)
    assert relative_error(found[1], short(start=0.3, **OWN_GUIDANCE)[1]) < ROUNDING
    other = short(positive=OTHER, start=0.3, **OWN_GUIDANCE)
    assert relative_error(found[::2], other[::2]) < ROUNDING


# Embeddings, boxes and images


def test_an_embedding_of_a_file_is_read_and_edits(files: Path) -> None:
    """One with the vector of a word is that word."""
    model, clip, _ = load_demo_model()
    gold = clip.tokenizer.clip_l.tokenizer("gold")["input_ids"][1]
    words = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    save_file({"clip_l": words[gold : gold + 1].detach().clone()}, files / "shine.safetensors")
    save_file(
        {"clip_l": torch.randn(2, words.shape[1], generator=torch.Generator().manual_seed(0))},
        files / "odd.safetensors",
    )

    def encoded(text: str) -> Any:
        return call(nodes.CLIPTextEncode().encode, clip, text)[0]

    source, negative = encoded("a wood star on water"), encoded("")
    latents = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    inversion = invert(model, {"samples": latents}, positive=source, steps=2)[0]
    features = call(
        ExtractFeatures.execute, model, inversion, layers="all", steps="every", storage="memory"
    )[0]
    correspondences = built(features)

    def edited(text: str) -> Tensor:
        return edit(model, encoded(text), negative, correspondences, start=0.5)

    word = edited("a gold star on water")
    assert relative_error(edited("a embedding:shine star on water"), word) < ROUNDING
    assert relative_error(edited("a embedding:odd star on water"), word) > 10 * ROUNDING
    assert relative_error(edited("a star on water"), word) > 10 * ROUNDING


def test_boxes_of_gligen_hold_on_all_frames() -> None:
    widths = [width for _, width in matched(*CLIP).features.shapes.values()]
    modules = [GatedSelfAttentionDense(width, CONTEXT, 8, width // 8) for width in widths]
    boxes = random_module(Gligen(modules, PositionNet(CONTEXT, CONTEXT), CONTEXT), 0)
    cpu = torch.device("cpu")
    words = SimpleNamespace(
        tokenize=lambda text: text,
        encode_from_tokens=lambda *_, **__: (None, random_conditioning(5, 1)[0][0][0]),
    )
    arguments = words, ModelPatcher(boxes, cpu, cpu), "a ball", 64, 32, 0, 16
    positive = call(nodes.GLIGENTextBoxApply().append, POSITIVE, *arguments)[0]
    found = short(positive=positive, frames_per_pass=2)
    assert relative_error(found, short(positive=positive)) < ROUNDING
    assert relative_error(found, short()) > 10 * ROUNDING


class Unclip(comfy.supported_models.SD21UnclipL):
    """With embeddings as wide as the narrow model's vector: half of it is the noise level's."""

    noise_aug_config = comfy.supported_models.SD21UnclipL.noise_aug_config | {
        "timestep_dim": (POOLED + SIZES) // 2
    }


def test_an_image_of_unclip_holds_on_all_frames() -> None:
    model = tiny_unet(replace(SD2, family=Unclip))
    inversion = invert(model, moving_clip(3, 8, 8))[0]
    features = call(
        ExtractFeatures.execute, model, inversion, layers="all", steps="every", storage="memory"
    )[0]
    correspondences = built(features)
    image = SimpleNamespace(
        image_embeds=torch.randn(
            1, (POOLED + SIZES) // 2, generator=torch.Generator().manual_seed(0)
        )
    )
    positive = nodes.unCLIPConditioning().apply_adm(POSITIVE, image, 1.0, 0.1)[0]

    def edited(positive: Any, **inputs: Any) -> Tensor:
        return edit(model, positive, NEGATIVE, correspondences, start=0.6, **inputs)

    found = edited(positive, frames_per_pass=2)
    assert relative_error(found, edited(positive)) < ROUNDING
    assert relative_error(found, edited(POSITIVE)) > 10 * ROUNDING
