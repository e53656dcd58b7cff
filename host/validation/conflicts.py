"""What users put on a model or a prompt that TokenFlow cannot work with.

An error says so, instead of a crash or a wrong video.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...tokenflow_ops.features.grid import token_grid
from .errors import NodeError

DOWNSCALE = (
    "Patches that change the resolution inside the model (PatchModelAddDownscale) must halve it, "
    "at all steps and in all nodes."
)


def check_areas(
    node: str, socket: str, conds: Iterable[Iterable[Mapping[str, Any]] | None]
) -> None:
    """Checks that no conditioning is limited to an area.

    Args:
        node: The node's name, for errors.
        socket: The input's name, for errors.
        conds: Processed conditionings, list by list.

    Raises:
        NodeError: If one is.
    """
    if any("area" in entry for entries in conds for entry in entries or ()):
        raise NodeError(
            node,
            socket,
            "a conditioning limited to an area, which crops the frame so that "
            "the source's correspondences no longer fit.",
            "Use ConditioningSetMask instead of ConditioningSetArea.",
        )


def check_every_pass_runs(node: str, options: Mapping[str, Any]) -> None:
    """Checks that nothing splits or skips passes by itself.

    Args:
        node: The node's name, for errors.
        options: The host's model_options.

    Raises:
        NodeError: For context windows, motion models and the host's EasyCache.
    """
    # AnimateDiff-Evolved's state of the run.
    animatediff = options["transformer_options"].get("ADGS")
    if options.get("context_handler") is not None or (
        animatediff is not None and animatediff.is_using_sliding_context()
    ):
        raise NodeError(
            node,
            "model",
            "a context handler (Context Windows, AnimateDiff's context options), "
            "which cuts the clip into windows of its own.",
            "Remove it: TokenFlow takes any number of frames in passes by itself.",
        )
    if getattr(getattr(animatediff, "motion_models", None), "models", None):
        raise NodeError(
            node,
            "model",
            "a motion model (AnimateDiff), "
            "whose layers attend over a fixed number of frames in order.",
            "Connect the model without it.",
        )
    if getattr(options["transformer_options"].get("easycache"), "name", None) == "EasyCache":
        raise NodeError(
            node,
            "model",
            "EasyCache, which skips passes that TokenFlow needs.",
            "Use LazyCache, which skips whole steps.",
        )


def check_patch_images(node: str, options: Mapping[str, Any]) -> None:
    """Checks that no patch on the model lays several images over the frames of a batch.

    Passes are of some frames, and it would lay other frames' images over them.

    Args:
        node: The node's name, for errors.
        options: The host's model_options.

    Raises:
        NodeError: For the host's ControlNets that are patches (DiffSynth's, Z-Image's) with more
            than one image.
    """
    for patches in options["transformer_options"].get("patches", {}).values():
        for patch in patches:
            image = getattr(patch, "image", None)
            if hasattr(patch, "encoded_image") and image is not None and len(image) > 1:
                raise NodeError(
                    node,
                    "model",
                    f"a ControlNet that is a patch on the model, with {len(image)} images, which "
                    "are not told the frames of a pass.",
                    "Give it one image, which holds for all frames, or use a ControlNet that goes "
                    "on the prompts (Apply ControlNet), with an image for each frame.",
                )


def check_controls(node: str, conds: Mapping[str, Iterable[Mapping[str, Any]] | None]) -> None:
    """Checks that no control keeps what it reads in self-attention by itself.

    Args:
        node: The node's name, for errors.
        conds: Processed conditionings by the name of their input.

    Raises:
        NodeError: For such a control (Advanced-ControlNet's Reference).
    """
    for socket, entries in conds.items():
        for entry in entries or ():
            control = entry.get("control")
            while control is not None:
                if hasattr(control, "ref_opts"):
                    raise NodeError(
                        node,
                        socket,
                        "a Reference ControlNet, which takes self-attention over.",
                        "Use an IPAdapter instead.",
                    )
                control = control.previous_controlnet


def check_every_layer_runs(node: str, options: Mapping[str, Any]) -> None:
    """Checks that all layers can see the source at all steps.

    Args:
        node: The node's name, for errors.
        options: The host's model_options.

    Raises:
        NodeError: For what keeps them from it: caches, and replaced self-attention (SAG).
    """
    patches = options["transformer_options"]
    if "easycache" in patches:
        found = f"{patches['easycache'].name}, which skips steps."
    elif patches.get("patches_replace", {}).get("attn1"):
        found = "a patch that replaces self-attention (Self-Attention Guidance)."
    else:
        return
    raise NodeError(
        node, "model", found, "Connect the model without it here, and with it to the sampler alone."
    )


def check_all_tokens(node: str, layer: str, x: Tensor, options: Mapping[str, Any]) -> None:
    """Checks that a self-attention layer gets the tokens that its block has.

    Args:
        node: The node's name, for errors.
        layer: The layer's path.
        x: Its tokens, (rows, P, C).
        options: The host's transformer_options, which hold the shape of the block's activations.

    Raises:
        NodeError: If it gets others: merged (ToMe) or tiled (HyperTile) ones.
    """
    rows, _, height, width = options["activations_shape"]
    if x.shape[:2] != (rows, height * width):
        raise NodeError(
            node,
            "model",
            f"layer {layer} gets {x.shape[0]} x {x.shape[1]} tokens here "
            f"and has {rows} x {height * width}.",
            "Patches that merge or tile tokens (ToMe, HyperTile) cannot be combined with "
            "TokenFlow: remove them from the model.",
        )


def check_captured(
    node: str,
    step: int,
    found: Mapping[str, Tensor],
    names: Iterable[str],
    shapes: Mapping[str, tuple[int, int]],
) -> None:
    """Checks the features that were recorded at a step.

    Args:
        node: The node's name, for errors.
        step: The step of the inversion.
        found: The features by name, (n, P, C) or (n, C, h, w).
        names: The layers that were to be recorded.
        shapes: Tokens and width (P, C) that layers are known to have.

    Raises:
        NodeError: If a layer was not recorded, has other tokens or another width, or is not finite.
    """
    for name in names:
        if name not in found:
            raise NodeError(
                node,
                "model",
                f"{name} did not run at step {step}.",
                "Give the source a prompt without timestep ranges, "
                "and the model without patches that skip layers.",
            )
        tokens = found[name]
        if name in shapes and tuple(tokens.shape[1:]) != shapes[name]:
            raise NodeError(
                node,
                "model",
                f"{name} has {tokens.shape[1]} tokens at step {step} "
                f"and {shapes[name][0]} at the first.",
                DOWNSCALE,
            )
        if not torch.isfinite(tokens).all():
            raise NodeError(
                node,
                "model",
                f"NaN or infinite features in {name} at step {step}.",
                "Run the model in a higher precision.",
            )


def check_levels(node: str, shapes: Mapping[str, tuple[int, int]], height: int, width: int) -> None:
    """Checks that layers' tokens are those of a level of a UNet.

    Args:
        node: The node's name, for errors.
        shapes: Tokens and width (P, C) by layer.
        height: The latents' height.
        width: The latents' width.

    Raises:
        NodeError: If a layer's are not.
    """
    for name, (tokens, _) in shapes.items():
        try:
            token_grid(tokens, height, width)
        except ValueError as error:
            raise NodeError(node, "model", f"{name}: {error}.", DOWNSCALE) from error
