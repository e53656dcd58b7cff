"""An edit, made of what is connected to TokenFlow Sampler or Apply TokenFlow."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ...host.checkpoints.folders import Keeper
from ...host.editing.edit import Edit
from ...host.families import backbone_of
from ...host.keyframes.given import check_given, hidden_within, matched_to
from ...host.measuring.cropping import as_encoded, mask_as_encoded
from ...host.validation.checks import (
    check_frames,
    check_injection,
    check_mask,
    check_model,
    check_same_model,
    no_frames,
)
from ...host.validation.errors import NodeError, library_error
from ...modes import MODES
from ...tokenflow_ops import DEEP_FEATURES, Correspondences, Injection
from ...tokenflow_ops.carrying.given import GivenKeyframes
from ...tokenflow_ops.libraries import LibraryError, library
from ..inputs import UNCONNECTED, before_run
from ..presets import PRESETS, Preset
from ..schema import lines


def make_edit(
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
    """Makes an edit of a node's inputs, and checks that they fit together.

    Args:
        node: The node's name, for errors.
        model: The user's ModelPatcher.
        correspondences: The clip's matches.
        injection: Plug-and-Play, or None.
        consistency: One of MODES.
        frames_per_pass: Frames in one pass, 0 for the host's estimate.
        mask: Where to edit, (N, H, W) in [0, 1], or None for the inversion's own.
        mask_from: From which share of SD's schedule on the mask holds.
        frames: The source's pictures, (N, H, W, 3) in [0, 1], or None.
        keyframes: Edited pictures that the clip is made of, or None.
        chosen: The preset, with what the user chose instead.

    Returns:
        The edit, and what of its pictures is left out, in words.

    Raises:
        NodeError: If they do not fit together, or the mode's libraries are not there.
    """
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


def keeper_of(edit: Edit, consistency: str, chosen: Preset, checkpoints: bool) -> Keeper | None:
    """Makes what keeps the model's answers in an edit, if they are to be kept.

    Args:
        edit: The edit.
        consistency: One of MODES.
        chosen: The preset, with what the user chose instead.
        checkpoints: Whether they are kept.

    Returns:
        The keeper; None if they are not.
    """
    return Keeper(edit.node, (consistency, repr(chosen), *edit.told())) if checkpoints else None


def check_before_run(
    node: type[io.ComfyNode], name: str, consistency: str | None, frames: Any
) -> bool | str:
    """Answers the host's question whether a mode can run with what is connected.

    Args:
        node: The node's class.
        name: Its name, for errors.
        consistency: One of MODES; None if it is linked.
        frames: What `validate_inputs` sees of the source's pictures.

    Returns:
        True, or why the node would fail.
    """

    def check() -> None:
        if consistency is None:
            return
        _check_libraries(name, consistency)
        if MODES[consistency].needs_frames and frames == UNCONNECTED:
            raise no_frames(name, consistency)

    return before_run(node, {"consistency": consistency}, check)


def preset_for(name: str, model: Any) -> Preset:
    """Returns a preset as it is for a model.

    Args:
        name: One of PRESETS.
        model: The ModelPatcher.

    Returns:
        The preset.
    """
    found, preset = backbone_of(model), PRESETS[name]
    transformer = found is not None and found[1].matched_on_output
    return preset.on_transformers() if transformer else preset


def _check_libraries(node: str, consistency: str) -> None:
    """Raises: NodeError if the mode's libraries are not there.

    This is checked here because the model may be sampled by a node that is not ours.
    """
    try:
        for module in MODES[consistency].needs:
            library(module)
    except LibraryError as error:
        raise library_error(node, error, "consistency", "another mode") from error
