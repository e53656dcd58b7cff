"""Conditionings of every kind reach the frames they belong to: prompts, areas, masks, ControlNets
and guiders of the host.
"""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

import comfy.conds
import comfy.controlnet
import comfy.samplers
import pytest
import torch
from comfy import model_management
from comfy.hooks import create_hook_lora
from comfy_extras.nodes_custom_sampler import DisableNoise, DualCFGGuider, SamplerCustomAdvanced
from comfy_extras.nodes_hooks import ConditioningSetProperties
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import PerpNeg, PerpNegGuider
from comfy_extras.nodes_sag import SelfAttentionGuidance
from tokenflow_pack.host import calls
from tokenflow_pack.host.runs.run import Run
from tokenflow_pack.host.validation.errors import NodeError
from torch import Tensor

import nodes

from ..helpers import (
    FRAMES,
    NEGATIVE,
    OWN_GUIDANCE,
    POSITIVE,
    SIZE,
    call,
    frames_of,
    injection,
    lora,
    relative_error,
    untouched,
    watch,
    watched,
    with_lora,
)
from ..small import applied, edit, inverted, matched, stock, tiny_model
from ..tiny_models import random_conditioning

PASS = "tokenflow_pass"
OTHER = random_conditioning(4, tokens=9)  # too long to share a batch with the others
ROUNDING = 1e-4


# Batches of conditionings


def test_conditionings_are_batched_or_split_by_memory_with_one_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches: list[int] = []
    model = watched(tiny_model(), lambda args: batches.append(len(args["cond_or_uncond"])))
    together = edit(model, frames_per_pass=FRAMES)
    assert set(batches) == {1, 2}, "frames between keyframes are asked for one prompt"
    batches.clear()
    monkeypatch.setattr(model_management, "get_free_memory", lambda *args, **kwargs: 0)
    assert relative_error(edit(model, frames_per_pass=FRAMES), together) < ROUNDING
    assert set(batches) == {1}


@pytest.mark.parametrize("consistency", ["tokenflow", "joint attention"])
def test_combined_prompts_are_told_apart(consistency: str) -> None:
    combine = nodes.ConditioningCombine().combine
    one, other = combine(POSITIVE, OTHER)[0], combine(OTHER, POSITIVE)[0]
    found = edit(positive=one, consistency=consistency)
    assert relative_error(found, edit(positive=other, consistency=consistency)) < ROUNDING
    assert relative_error(found, edit(consistency=consistency)) > 10 * ROUNDING
    twice = combine(POSITIVE, POSITIVE)[0]
    assert (
        relative_error(edit(positive=twice, consistency=consistency), edit(consistency=consistency))
        < ROUNDING
    )


@pytest.mark.parametrize("side", ["positive", "negative"])
def test_areas_are_refused(side: str) -> None:
    area = nodes.ConditioningSetArea().append(POSITIVE, 64, 64, 0, 0, 1.0)[0]
    with pytest.raises(
        NodeError, match=r"TokenFlow Sampler, input 'positive': .* area.* ConditioningSetMask"
    ):
        edit(**{side: area})


def test_areas_are_the_plain_hosts_where_nothing_is_patched() -> None:
    area = nodes.ConditioningSetArea().append(POSITIVE, 64, 64, 0, 0, 1.0)[0]
    assert torch.equal(edit(positive=area, consistency="per frame"), stock(tiny_model(), area))


def test_conditionings_made_anew_at_every_evaluation_are_not_mistaken_for_old_ones() -> None:
    """Some guiders build them on the fly: freed ones leave their address to the next."""

    def entries(value: int) -> list[dict[str, Any]]:
        prompt = comfy.conds.CONDCrossAttn(torch.full((1, 1, 1), value))
        return [{"model_conds": {"c_crossattn": prompt}, "uuid": uuid.uuid4()} for _ in range(100)]

    run = Run("test")
    for value in range(3):
        for entry in entries(value):
            cut = run.cut([[entry]], torch.arange(2), 2, "test", 0).lists[0]
            assert cut is not None
            assert float(cut[0]["model_conds"]["c_crossattn"].cond) == value


# Rows and masks per frame


@pytest.mark.parametrize("rows", [FRAMES, 2])
def test_every_frame_has_its_own_prompt(rows: int) -> None:
    """Fewer prompts than frames repeat in order."""
    prompts = torch.cat([random_conditioning(10 + i)[0][0] for i in range(rows)])
    calls = []

    def see(args: dict[str, Any]) -> None:
        calls.append(type(args["c"]["transformer_options"][PASS]).__name__)
        found = args["c"]["c_crossattn"].chunk(len(args["cond_or_uncond"]))[
            args["cond_or_uncond"].index(0)
        ]
        assert torch.equal(found, prompts[[i % rows for i in frames_of(args)]])

    found = edit(watched(tiny_model(), see), [[prompts, {}]], frames_per_pass=2)
    assert {"KeyframePass", "PropagationPass"} == set(calls)
    assert relative_error(found, edit(positive=[[prompts, {}]])) < ROUNDING


@pytest.mark.parametrize("frames_per_pass", [0, 3])
def test_every_frame_has_its_own_mask(frames_per_pass: int) -> None:
    """One prompt holds on even frames, the other on odd ones; over a single step no frame sees the
    other's, and has guidance of its own.
    """
    even = torch.zeros(FRAMES, SIZE[0] * 8, SIZE[1] * 8)
    even[::2] = 1
    set_mask = nodes.ConditioningSetMask().append
    both = nodes.ConditioningCombine().combine(
        set_mask(POSITIVE, even, "default", 1.0)[0],
        set_mask(OTHER, 1 - even, "default", 1.0)[0],
    )[0]
    found = edit(positive=both, start=0.3, frames_per_pass=frames_per_pass)
    assert relative_error(found[::2], edit(start=0.3, **OWN_GUIDANCE)[::2]) < ROUNDING
    other = edit(positive=OTHER, start=0.3, **OWN_GUIDANCE)
    assert relative_error(found[1::2], other[1::2]) < ROUNDING


def test_frames_with_prompts_of_their_own_have_their_own_guidance() -> None:
    """Guidance is the keyframes' only where all frames and places have the same prompts."""

    def asked(positive: Any) -> set[int]:
        found: set[int] = set()

        def see(args: dict[str, Any]) -> None:
            if type(args["c"]["transformer_options"][PASS]).__name__ == "PropagationPass":
                found.add(len(set(args["cond_or_uncond"])))

        edit(watched(tiny_model(), see), positive)
        return found

    one = POSITIVE[0][0]
    each = torch.cat([one * (1 + i / 10) for i in range(FRAMES)])
    mask = nodes.ConditioningSetMask().append
    half = torch.zeros(SIZE[0] * 8, SIZE[1] * 8)
    half[:, : SIZE[1] * 4] = 1
    combined = nodes.ConditioningCombine().combine(POSITIVE, POSITIVE)[0]
    assert asked(POSITIVE) == asked(combined) == {1}
    assert asked([[each, {}]]) == {2}
    assert asked([*mask(POSITIVE, half, "default", 1.0)[0], *POSITIVE]) == {2}


def test_a_lora_hooked_to_a_prompt_is_that_prompts() -> None:
    hooks = create_hook_lora(lora(), 0.5, 0.0)
    hooked = call(
        ConditioningSetProperties().set_properties, POSITIVE, 1.0, "default", hooks=hooks
    )[0]
    with untouched(tiny_model()):
        found = edit(positive=hooked, cfg=1.0, frames_per_pass=2)
    assert relative_error(found, edit(with_lora(tiny_model(), 0.5), cfg=1.0)) < ROUNDING
    assert relative_error(found, edit(cfg=1.0)) > 10 * ROUNDING


# Guidance that looks at the model again

SQUARE = 3, (16, 16)  # the smallest of which SAG can blur a map of the middle layer's attention


def guidable(model: Any = None, **inputs: Any) -> Any:
    return applied(model, matched(*SQUARE), **inputs)


def plain(model: Any) -> Tensor:
    return stock(model, clip=SQUARE)


def custom(guider: Any) -> Tensor:
    _, noisy, sigmas = inverted(*SQUARE)
    sampler = comfy.samplers.sampler_object("euler")
    return call(
        SamplerCustomAdvanced.execute, call(DisableNoise.execute)[0], guider, sampler, sigmas, noisy
    )[0]["samples"]


def with_pag(model: Any) -> Tensor:
    return plain(call(PerturbedAttentionGuidance.execute, model, 2.0)[0])


def with_sag(model: Any) -> Tensor:
    return plain(call(SelfAttentionGuidance.execute, model, 0.5, 2.0)[0])


def with_perp_neg(model: Any) -> Tensor:
    return plain(call(PerpNeg.execute, model, OTHER, 1.0)[0])


def with_perp_neg_guider(model: Any) -> Tensor:
    return custom(call(PerpNegGuider.execute, model, POSITIVE, NEGATIVE, OTHER, 4.0, 1.0)[0])


def with_dual_cfg(model: Any) -> Tensor:
    return custom(
        call(DualCFGGuider.execute, model, POSITIVE, OTHER, NEGATIVE, 3.0, 2.0, "regular")[0]
    )


def with_nested_dual_cfg(model: Any) -> Tensor:
    return custom(
        call(DualCFGGuider.execute, model, POSITIVE, OTHER, NEGATIVE, 3.0, 2.0, "nested")[0]
    )


GUIDANCE = [
    with_pag,
    with_sag,
    with_perp_neg,
    with_perp_neg_guider,
    with_dual_cfg,
    with_nested_dual_cfg,
]


@pytest.mark.parametrize("guided", GUIDANCE)
def test_guidance_is_the_plain_hosts_where_nothing_is_patched(guided: Any) -> None:
    assert torch.equal(guided(guidable(consistency="per frame")), guided(tiny_model()))


@pytest.mark.parametrize("guided", GUIDANCE)
def test_guidance_works_on_an_edit_and_leaves_the_model_clean(guided: Any) -> None:
    """With the result of one pass over all frames, however many take them: some keep what they see
    of a call for the next.
    """
    with untouched(tiny_model()):
        split = guided(guidable(frames_per_pass=2))
    assert relative_error(split, guided(guidable())) < ROUNDING


def test_perturbed_attention_bypasses_ours() -> None:
    """In PAG's look at the model the middle layer is the user's own, all others are ours."""
    middle = "middle_block.1.transformer_blocks.0.attn1"
    layers: list[frozenset[str]] = []

    def see(args: dict[str, Any]) -> None:
        frames_pass = args["c"]["transformer_options"][PASS]
        if type(frames_pass).__name__ == "KeyframePass":
            if seen:
                layers.append(frozenset(seen))
            seen.clear()
            attention = type(frames_pass).attention
            frames_pass.attention = lambda asked: (
                seen.add(asked.layer),
                attention(frames_pass, asked),
            )[1]

    seen: set[str] = set()
    with_pag(guidable(watched(tiny_model(), see)))
    layers.append(frozenset(seen))
    every = frozenset(matched(*SQUARE).features.shapes)
    assert layers == [every, every - {middle}] * 3


def test_the_users_attention_backend_sees_our_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """`optimized_attention_override` is how users and packs choose one."""
    lengths: dict[str, set[tuple[int, int]]] = {}
    kind = ""

    def see(_: Any, frames_pass: Any) -> None:
        nonlocal kind
        kind = type(frames_pass).__name__

    def override(func: Any, q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        lengths.setdefault(kind, set()).add((q.shape[1], k.shape[1]))
        return func(q, k, *args, **kwargs)

    watch(monkeypatch, see)

    model = tiny_model().clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    assert torch.equal(edit(model, injection=injection()), edit(injection=injection()))
    finest, prompt = SIZE[0] * SIZE[1], POSITIVE[0][0].shape[1]
    keyframes = len(matched().steps[0].keyframes)
    assert (keyframes * finest, keyframes * finest) in lengths["KeyframePass"]
    assert {keys for _, keys in lengths["PropagationPass"]} == {prompt}  # cross-attention alone


def test_a_layers_own_choice_of_attention_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer hosts read it from the checkpoint and leave it on the layer."""
    theirs, given = calls.optimized_attention, []

    def attend(*args: Any, preferred_attention: Any = None, **kwargs: Any) -> Tensor:
        given.append(preferred_attention)
        return theirs(*args, **kwargs)

    monkeypatch.setattr(calls, "optimized_attention", attend)
    choice = SimpleNamespace(function=None)
    unet = tiny_model().model.diffusion_model
    layer = unet.get_submodule("output_blocks.1.1.transformer_blocks.0.attn1")
    monkeypatch.setattr(layer, "comfy_attention", choice, raising=False)
    edit(injection=injection())
    assert choice in given
    assert len(set(map(id, given))) > 1  # of that layer alone
