"""What users put on a model or a prompt that TokenFlow cannot work with: an error that says so
instead of a crash or a wrong video.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...tokenflow_ops.features import token_grid
from .errors import NodeError

DOWNSCALE = "Patches that change the resolution inside the model (PatchModelAddDownscale) must halve it, at all steps and in all nodes."


def check_areas(
    node: str, socket: str, conds: Iterable[Iterable[Mapping[str, Any]] | None]
) -> None:
    """Raises: NodeError for processed conditionings that are limited to an area."""
    if any("area" in entry for entries in conds for entry in entries or ()):
        raise NodeError(
            node,
            socket,
            "a conditioning limited to an area, which crops the frame so that the source's correspondences no longer fit.",
            "Use ConditioningSetMask instead of ConditioningSetArea.",
        )


def check_every_pass_runs(node: str, options: Mapping[str, Any]) -> None:
    """Raises: NodeError for what splits or skips passes by itself: context windows, motion models,
    and the host's EasyCache.

    options: the host's model_options.
    """
    animatediff = options["transformer_options"].get(
        "ADGS"
    )  # AnimateDiff-Evolved's state of the run
    if options.get("context_handler") is not None or (
        animatediff is not None and animatediff.is_using_sliding_context()
    ):
        raise NodeError(
            node,
            "model",
            "a context handler (Context Windows, AnimateDiff's context options), which cuts the clip into windows of its own.",
            "Remove it: TokenFlow takes any number of frames in passes by itself.",
        )
    if getattr(getattr(animatediff, "motion_models", None), "models", None):
        raise NodeError(
            node,
            "model",
            "a motion model (AnimateDiff), whose layers attend over a fixed number of frames in order.",
            "Connect the model without it.",
        )
    if getattr(options["transformer_options"].get("easycache"), "name", None) == "EasyCache":
        raise NodeError(
            node,
            "model",
            "EasyCache, which skips passes that TokenFlow needs.",
            "Use LazyCache, which skips whole steps.",
        )


def check_controls(node: str, conds: Mapping[str, Iterable[Mapping[str, Any]] | None]) -> None:
    """Raises: NodeError for a control that keeps what it reads in self-attention by itself
    (Advanced-ControlNet's Reference).

    conds: the host's processed conditionings by the name of their socket.
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
    """Raises: NodeError for what keeps the source from being seen by all layers at all steps:
    caches, and replaced self-attention (SAG).

    options: the host's model_options.
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
    """Raises: NodeError if a self-attention gets other tokens (rows, P, C) than its block has:
    merged (ToMe) or tiled (HyperTile) ones.

    options: the host's transformer_options, which hold the block's activations' shape.
    """
    rows, _, height, width = options["activations_shape"]
    if x.shape[:2] != (rows, height * width):
        raise NodeError(
            node,
            "model",
            f"layer {layer} gets {x.shape[0]} x {x.shape[1]} tokens here and has {rows} x {height * width}.",
            "Patches that merge or tile tokens (ToMe, HyperTile) cannot be combined with TokenFlow: remove them from the model.",
        )


def check_captured(
    node: str,
    step: int,
    found: Mapping[str, Tensor],
    names: Iterable[str],
    shapes: Mapping[str, tuple[int, int]],
) -> None:
    """Raises: NodeError if a layer among `names` was not recorded at a step, not with the tokens
    and width of `shapes`, or not finite.
    """
    for name in names:
        if name not in found:
            raise NodeError(
                node,
                "model",
                f"{name} did not run at step {step}.",
                "Give the source a prompt without timestep ranges, and the model without patches that skip layers.",
            )
        tokens = found[name]
        if name in shapes and tuple(tokens.shape[1:]) != shapes[name]:
            raise NodeError(
                node,
                "model",
                f"{name} has {tokens.shape[1]} tokens at step {step} and {shapes[name][0]} at the first.",
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
    """Raises: NodeError if a layer's tokens (P, C) are none of the levels of a UNet on latents of
    height x width.
    """
    for name, (tokens, _) in shapes.items():
        try:
            token_grid(tokens, height, width)
        except ValueError as error:
            raise NodeError(node, "model", f"{name}: {error}.", DOWNSCALE) from error
