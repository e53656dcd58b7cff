"""TokenFlow Sampler and Apply TokenFlow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.sample
import comfy.samplers
import latent_preview
import torch
from comfy_api.latest import io

from ..host.checkpoints.folders import Keeper
from ..host.editing.edit import Edit, kept_path
from ..host.editing.sampling import apply_edit, sample_edit
from ..host.families import backbone_of
from ..host.families.latents import as_latent, to_latent
from ..host.keyframes.given import check_given, hidden_within, matched_to
from ..host.measuring.cropping import as_encoded, mask_as_encoded
from ..host.validation.checks import (
    check_frames,
    check_injection,
    check_mask,
    check_model,
    check_same_model,
    no_frames,
)
from ..host.validation.errors import NodeError, library_error
from ..host.validation.prompts import check_prompts
from ..modes import MODES
from ..tokenflow_ops import (
    ATTENTION,
    DEEP_FEATURES,
    PROPAGATIONS,
    Correspondences,
    Injection,
    Inversion,
)
from ..tokenflow_ops.carrying.given import GivenKeyframes
from ..tokenflow_ops.libraries import LibraryError, library
from .inputs import UNCONNECTED, before_run, checked
from .presets import BALANCED, BY_PRESET, MOST_KEYFRAMES, NUMBER_BY_PRESET, PRESETS, Preset
from .schema import (
    CorrespondencesSocket,
    InjectionSocket,
    KeyframesSocket,
    checkpoints_input,
    frames_per_pass_input,
    lines,
    said,
    schema,
)

SAMPLER, APPLY = "TokenFlow Sampler", "Apply TokenFlow"
# Edits go well without them: by the preset, or by the best there is.
FINER = ("attended_keyframes", "frames_per_pass", "carry_until", "propagation", "mask_from")
# From this share of the schedule on the mask holds, if nothing else is asked for.
MASK_FROM = 0.2
INVERTED, FRESH, FRESH_FOR_ALL = NOISES = "inverted", "fresh", "fresh, one for all frames"


def _edit_inputs() -> list[Any]:
    return [
        io.Combo.Input(
            "consistency",
            options=list(MODES),
            default="tokenflow",
            tooltip="tokenflow: keyframes are edited jointly and carried to all frames. joint "
            "attention: all frames look at the keyframes. per frame: no consistency. The others "
            "are for comparison, see the help.",
        ),
        io.Combo.Input(
            "preset",
            options=list(PRESETS),
            default=BALANCED,
            optional=True,
            tooltip="Sets the inputs that are as preset (-1), and the sampler's share of steps. "
            "balanced: steadiest. faithful: as the paper, slower. fast: half of the steps. draft: "
            "a quarter. lean: all, each in less time.",
        ),
        io.Int.Input(
            "attended_keyframes",
            default=NUMBER_BY_PRESET,
            min=NUMBER_BY_PRESET,
            max=MOST_KEYFRAMES,
            optional=True,
            tooltip="How many keyframes attend to each other at most. -1: as preset, 8 or "
            "with faithful all; in other modes all. A clip with more keyframes is edited in "
            "windows of time, see the help.",
        ),
        frames_per_pass_input(),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Where to edit: one mask per frame, or one for all. Outside of it (0) the "
            "frames stay as they are. Soft edges blend. Nothing connected: the noise mask that the "
            "inverted latents had, if any.",
        ),
    ]


def _late_inputs() -> list[Any]:
    """Those that came after others: workflows keep their widgets' values by position."""
    return [
        io.Image.Input(
            "frames",
            optional=True,
            tooltip="The source frames, the images that were encoded. Only rerender needs "
            "them, to find the motion.",
        ),
        io.Float.Input(
            "carry_until",
            default=float(NUMBER_BY_PRESET),
            min=float(NUMBER_BY_PRESET),
            max=1.0,
            step=0.05,
            optional=True,
            tooltip="For tokenflow: share of the schedule in which pictures are carried too, not "
            "only tokens: steadier. -1: as preset, 0.2 or with faithful 0. 0: tokens only (paper). "
            "Above 0.5 copies of patches show.",
        ),
        io.Combo.Input(
            "propagation",
            options=[BY_PRESET, *PROPAGATIONS],
            default=BY_PRESET,
            optional=True,
            tooltip="For tokenflow: what frames take from keyframes. deep features: all below full "
            "resolution; steadier, faster. attention: self-attention's output, as in the paper. as "
            "preset: the preset decides.",
        ),
        io.Float.Input(
            "mask_from",
            default=MASK_FROM,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            tooltip="Share of SD's schedule, by its noise, from which on the mask holds. Before it "
            "the whole frame is edited, so that what is new fits in. 0: always, and the edit may "
            "fade into the ground.",
        ),
        KeyframesSocket.Input(
            "keyframes",
            optional=True,
            tooltip="From Carry Keyframes: edited pictures that the clip is made of. They stay as "
            "they are; the model computes what none of them shows.",
        ),
    ]


def _edit(
    node: str,
    model: Any,
    correspondences: Correspondences,
    injection: Injection | None,
    consistency: str,
    frames_per_pass: int,
    mask: torch.Tensor | None,
    mask_from: float,
    frames: torch.Tensor | None,
    keyframes: GivenKeyframes | None,
    chosen: Preset,
) -> tuple[Edit, str]:
    """The edit, and what of its pictures is left out, in words."""
    backbone = check_model(node, model)
    check_injection(node, backbone, injection)
    inversion = correspondences.features.inversion
    check_same_model(node, model, inversion)
    check_mask(node, mask, inversion)
    frames_cut = mask_cut = ""
    mask = inversion.mask if mask is None else mask
    _check_libraries(node, consistency)
    if MODES[consistency].of_unets and backbone.matched_on_output:
        raise NodeError(
            node,
            "consistency",
            f"'{consistency}', which is made for the layers of a UNet, with a transformer.",
            "Choose tokenflow, joint attention or per frame.",
        )
    if MODES[consistency].needs_frames:
        frames, frames_cut = as_encoded(
            node, check_frames(node, frames, inversion, consistency), inversion
        )
    if mask is not None:
        mask, mask_cut = mask_as_encoded(mask, inversion)
    if tuple(correspondences.features.shapes) != backbone.attention:
        raise NodeError(
            node,
            "correspondences",
            "they were built for other self-attention layers.",
            "Extract the features with this model.",
        )
    given = None
    if keyframes is not None:
        given = check_given(node, model, keyframes, correspondences)
        correspondences = matched_to(node, correspondences, keyframes.numbers)
        mask, mask_from = hidden_within(keyframes, mask), 0.0
    edit = Edit(
        node,
        backbone,
        correspondences,
        injection,
        MODES[consistency],
        chosen.attended_keyframes,
        chosen.carry_until,
        chosen.propagation == DEEP_FEATURES,
        frames_per_pass,
        mask,
        mask_from,
        frames,
        chosen.guides_along,
        chosen.repeats,
        chosen.merges,
        given,
    )
    return edit, lines(frames_cut, mask_cut)


def _before_run(
    node: type[io.ComfyNode], name: str, consistency: str | None, frames: Any
) -> bool | str:
    def check() -> None:
        if consistency is None:
            return
        _check_libraries(name, consistency)
        if MODES[consistency].needs_frames and frames == UNCONNECTED:
            raise no_frames(name, consistency)

    return before_run(node, {"consistency": consistency}, check)


def _preset(name: str, model: Any) -> Preset:
    """Returns a preset as it is for a model.

    Presets' deep features are a UNet's: what a transformer's inner blocks add holds the keyframe's
    own noise, and leaves it on other frames. There presets carry attention's output.

    Args:
        name: One of PRESETS.
        model: The ModelPatcher.

    Returns:
        The preset.
    """
    found, preset = backbone_of(model), PRESETS[name]
    if found is not None and found[1].matched_on_output:
        return replace(preset, propagation=ATTENTION)
    return preset


def _check_libraries(node: str, consistency: str) -> None:
    """Raises: NodeError if the mode's libraries are not there.

    This is checked here because the model may be sampled by a node that is not ours.
    """
    try:
        for module in MODES[consistency].needs:
            library(module)
    except LibraryError as error:
        raise library_error(node, error, "consistency", "another mode") from error


class Sampler(io.ComfyNode):
    """Stage 2: the edit, from the inverted noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Sampler",
            SAMPLER,
            "Edits all frames together: at every step the keyframes jointly, then every frame with "
            "their features, moved as the source moves.",
            [
                "tokenflow sampler",
                "vid2vid",
                "video to video",
                "video edit",
                "style transfer",
                "restyle",
                "flicker",
                "consistent edit",
                "ksampler",
            ],
            advanced=("sampler_name", "seed", "noise", *FINER, "checkpoints"),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model the frames were inverted with; LoRA and other "
                    "patches on top are fine.",
                ),
                io.Conditioning.Input(
                    "positive", tooltip="The edit prompt: what the clip shall show."
                ),
                io.Conditioning.Input(
                    "negative",
                    tooltip="What it shall not show; with a mask half of the source prompt.",
                ),
                CorrespondencesSocket.Input(
                    "correspondences", tooltip="From Build NN Correspondences."
                ),
                InjectionSocket.Input(
                    "injection",
                    optional=True,
                    tooltip="From Plug-and-Play Injection, to keep the source's structure.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How strongly the prompt is followed. 7.5 as in the paper.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.SAMPLER_NAMES,
                    default="euler",
                    tooltip="euler is deterministic DDIM, the inversion's inverse. Ancestral and "
                    "SDE samplers lose the source.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Only for fresh noise, and for samplers that add noise of their own: "
                    "with inverted noise and euler it changes nothing.",
                ),
                io.Float.Input(
                    "start",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the inverted steps to sample. 1: from the noisy end; less: "
                    "SDEdit, closer to the source.",
                ),
                *_edit_inputs(),
                io.Combo.Input(
                    "noise",
                    options=list(NOISES),
                    default=INVERTED,
                    optional=True,
                    tooltip="What to start from. inverted: the source's own noise, which keeps "
                    "most of it. fresh: random noise on the source (SDEdit: start below 1; Turbo, "
                    "schnell: always). One for all frames flickers less.",
                ),
                *_late_inputs(),
                checkpoints_input(),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="The edited frames, for VAE Decode."
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls, consistency: str | None = None, frames: Any = UNCONNECTED
    ) -> bool | str:
        return _before_run(cls, SAMPLER, consistency, frames)

    @classmethod
    @checked()
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        correspondences: Correspondences,
        cfg: float = 7.5,
        sampler_name: str = "euler",
        seed: int = 0,
        start: float = 1.0,
        consistency: str = "tokenflow",
        attended_keyframes: int = NUMBER_BY_PRESET,
        frames_per_pass: int = 0,
        injection: Injection | None = None,
        mask: torch.Tensor | None = None,
        noise: str = INVERTED,
        frames: torch.Tensor | None = None,
        carry_until: float = NUMBER_BY_PRESET,
        propagation: str = BY_PRESET,
        preset: str = BALANCED,
        mask_from: float = MASK_FROM,
        keyframes: GivenKeyframes | None = None,
        checkpoints: bool = False,
    ) -> io.NodeOutput:
        chosen = _preset(preset, model).but(propagation, carry_until, attended_keyframes)
        asked = (consistency, frames_per_pass, mask, mask_from, frames, keyframes, chosen)
        edit, cut = _edit(SAMPLER, model, correspondences, injection, *asked)
        check_prompts(SAMPLER, model, positive)
        if negative or cfg != 1:  # with 1 it is not looked at
            check_prompts(SAMPLER, model, negative, "negative")
        inversion = correspondences.features.inversion
        sigmas = chosen.sigmas(_sigmas(model, inversion, sampler_name, start))
        if edit.given is not None and edit.mask is not None and not bool(edit.mask.any()):
            return io.NodeOutput({"samples": to_latent(model, edit.given)}, ui=said(cut))
        latents = _start(model, edit, sigmas[0], noise)
        added = _noise(noise, latents, seed)
        patched = apply_edit(model, edit, _keeper(edit, consistency, chosen, checkpoints))
        callback = latent_preview.prepare_callback(patched, len(sigmas) - 1)
        samples = sample_edit(
            patched, positive, negative, cfg, sampler_name, sigmas, latents, added, seed, callback
        )
        if not torch.isfinite(samples).all():
            remedy = (
                "Run it in a higher precision (--force-fp32 or --bf16-unet); "
                "look for NaN in what masks, hints and LoRA hold."
            )
            raise NodeError(SAMPLER, "model", "the edit has NaN or infinite values.", remedy)
        return io.NodeOutput({"samples": samples}, ui=said(cut))


def _keeper(edit: Edit, consistency: str, chosen: Preset, checkpoints: bool) -> Keeper | None:
    return Keeper(edit.node, (consistency, repr(chosen), *edit.told())) if checkpoints else None


def _start(model: Any, edit: Edit, sigma: torch.Tensor, noise: str) -> torch.Tensor:
    """What is sampled from: what is kept at the first noise level, or clean."""
    if noise == INVERTED:
        return as_latent(model, kept_path(edit, float(sigma)), sigma)
    return to_latent(model, kept_path(edit, 0.0))


def _noise(kind: str, latents: torch.Tensor, seed: int) -> torch.Tensor:
    """What the host adds to the latents at the first noise level.

    An inverted start has its noise in it already.
    """
    if kind == INVERTED:
        return latents.new_zeros(1).expand_as(latents)
    if kind == FRESH_FOR_ALL:
        return comfy.sample.prepare_noise(latents[:1], seed).expand_as(latents).contiguous()
    return comfy.sample.prepare_noise(latents, seed)


def _sigmas(model: Any, inversion: Inversion, sampler_name: str, start: float) -> torch.Tensor:
    """The sampler's own noise levels for the inverted schedule, from `start` on downwards."""
    sigmas = inversion.sigmas
    if sampler_name in comfy.samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS:
        whole = comfy.samplers.KSampler(
            model,
            steps=inversion.steps,
            device="cpu",
            sampler=sampler_name,
            scheduler=inversion.scheduler,
        ).sigmas
        sigmas = whole[whole <= inversion.sigmas[0] * (1 + 1e-4)]
    steps = len(sigmas) - 1
    return sigmas[steps - max(1, round(steps * start)) :]


class Apply(io.ComfyNode):
    """Stage 2 as a patch on the model, for any of the host's samplers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Apply",
            APPLY,
            "Makes a model edit frames consistently under KSampler (Advanced), SamplerCustom "
            "or any other sampler. Sample all frames in one batch, from the inversion's noisy "
            "latents, with added noise disabled.",
            [
                "apply tokenflow",
                "patch model",
                "vid2vid",
                "video edit",
                "style transfer",
                "flicker",
            ],
            advanced=(*FINER, "checkpoints"),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model the frames were inverted with; LoRA and other "
                    "patches on top are fine.",
                ),
                CorrespondencesSocket.Input(
                    "correspondences", tooltip="From Build NN Correspondences."
                ),
                InjectionSocket.Input(
                    "injection",
                    optional=True,
                    tooltip="From Plug-and-Play Injection, to keep the source's structure.",
                ),
                *_edit_inputs(),
                *_late_inputs(),
                checkpoints_input(),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="A patched clone; the given model stays as it was.",
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls, consistency: str | None = None, frames: Any = UNCONNECTED
    ) -> bool | str:
        return _before_run(cls, APPLY, consistency, frames)

    @classmethod
    @checked()
    def execute(
        cls,
        model: Any,
        correspondences: Correspondences,
        consistency: str = "tokenflow",
        attended_keyframes: int = NUMBER_BY_PRESET,
        frames_per_pass: int = 0,
        injection: Injection | None = None,
        mask: torch.Tensor | None = None,
        frames: torch.Tensor | None = None,
        carry_until: float = NUMBER_BY_PRESET,
        propagation: str = BY_PRESET,
        preset: str = BALANCED,
        mask_from: float = MASK_FROM,
        keyframes: GivenKeyframes | None = None,
        checkpoints: bool = False,
    ) -> io.NodeOutput:
        chosen = _preset(preset, model).but(propagation, carry_until, attended_keyframes)
        asked = (consistency, frames_per_pass, mask, mask_from, frames, keyframes, chosen)
        edit, cut = _edit(APPLY, model, correspondences, injection, *asked)
        keeper = _keeper(edit, consistency, chosen, checkpoints)
        return io.NodeOutput(apply_edit(model, edit, keeper), ui=said(cut))
