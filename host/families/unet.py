"""UNets of the host: SD 1.x, SD 2.x, SDXL and their kin. Their layers are found by structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, Upsample
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...tokenflow_ops.backbone import Backbone
from ...tokenflow_ops.passes import DeepCall
from ..calls import Handover, HostAttention, running, running_options
from ..conditioning.controls import shallow_control
from ..validation.conflicts import check_all_tokens

SELF_ATTENTION, CROSS_ATTENTION = "attn1", "attn2"


def find(diffusion_model: Any) -> Backbone | None:
    """Finds the layers of a UNet; None for other models."""
    attention = self_attention_layers(diffusion_model)
    if not attention:
        return None
    known = {path for path, _ in diffusion_model.named_modules()}
    cross = {
        layer: path
        for layer in attention
        if (path := layer.removesuffix(SELF_ATTENTION) + CROSS_ATTENTION) in known
    }
    decoder = sorted(
        (layer for layer in attention if layer.startswith("output_blocks.")), key=_block_number
    )
    blocks = tuple(tuple(layers) for _, layers in groupby(decoder, _block_number))
    hidden = {layer: f"output_blocks.{_block_number(layer)}.0.out_layers" for layer in decoder}
    return Backbone(
        attention, blocks, cross, hidden, _blocks(attention), deep_layers(diffusion_model)
    )


def wrapped(backbone: Backbone) -> tuple[str, ...]:
    """Lists the modules whose forward is wrapped during a run."""
    hidden = dict.fromkeys(backbone.hidden.values())  # layers of one block have one in common
    return *backbone.attention, *backbone.cross.values(), *hidden, *backbone.deep


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Adds nothing to what the host's `transformer_options` hold during a pass.

    Args:
        options: What they hold already.

    Returns:
        An empty dict.
    """
    return {}


def watch(clone: Any, key: str, backbone: Backbone) -> None:
    """Watches every call of the UNet: what comes to it, and that it can be asked for its options.

    Args:
        clone: The ModelPatcher, ours.
        key: Of our wrappers.
        backbone: The model's layers.
    """

    def diffusion_model(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        options = kwargs["transformer_options"] if "transformer_options" in kwargs else args[-1]
        now = Handover.of(options)
        if now is not None:
            now.entrance.check(args[0], options)
        if now is not None and now.work.skips_deep:
            args = tuple(
                shallow_control(arg, backbone.deep)
                if isinstance(arg, dict) and arg is not options
                else arg
                for arg in args
            )
        with running(options):
            return executor(*args, **kwargs)

    clone.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, key)
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, key, diffusion_model)


def wrapper(backbone: Backbone, path: str, module: Any) -> Callable[..., Any]:
    """Makes what takes the place of a layer's forward during a run.

    Args:
        backbone: The model's layers.
        path: The layer's path.
        module: The layer.

    Returns:
        A function that is called with (original forward, *args, **kwargs).
    """
    if path in backbone.hidden.values():
        return _wrap_hidden(path)
    if path in backbone.deep:
        return _wrap_deep(path, path == backbone.deep[-1])
    return _wrap_attention(path, module, cross=path in backbone.cross.values())


def self_attention_layers(diffusion_model: Any) -> tuple[str, ...]:
    """Lists the module paths of every self-attention (`attn1`), in the order the UNet runs them.

    Blocks whose first attention is a cross-attention (`disable_self_attn`) are left out.

    Args:
        diffusion_model: The host's UNet, or another model.

    Returns:
        For example "output_blocks.4.1.transformer_blocks.0.attn1"; empty for models
        without such blocks.
    """
    return tuple(
        f"{path}.attn1"
        for path, module in diffusion_model.named_modules()
        if isinstance(module, BasicTransformerBlock)
        and not module.disable_self_attn
        and path.startswith(("input_", "middle_", "output_"))
    )


def deep_layers(diffusion_model: Any) -> tuple[str, ...]:
    """Lists the module paths of all that runs below the UNet's full resolution, in order.

    They go from the first Downsample to the last Upsample.

    Args:
        diffusion_model: The host's UNet, or another model.

    Returns:
        For example "input_blocks.3.0" ... "middle_block.2" ... "output_blocks.8.2"; empty for
        models without such a part.
    """
    known = [
        (f"{part}.{i}.{j}", layer)
        for part in ("input_blocks", "output_blocks")
        for i, block in enumerate(getattr(diffusion_model, part, ()))
        for j, layer in enumerate(block)
    ]
    middle = [
        (f"middle_block.{j}", layer)
        for j, layer in enumerate(getattr(diffusion_model, "middle_block", None) or ())
    ]
    split = sum(path.startswith("input_") for path, _ in known)
    known[split:split] = middle
    down = [position for position, (_, layer) in enumerate(known) if isinstance(layer, Downsample)]
    up = [position for position, (_, layer) in enumerate(known) if isinstance(layer, Upsample)]
    return tuple(path for path, _ in known[down[0] : up[-1] + 1]) if down and up else ()


def _wrap_attention(path: str, module: Any, cross: bool) -> Callable[..., Tensor]:
    def forward(
        original: Callable[..., Tensor],
        x: Tensor,
        context: Any = None,
        value: Any = None,
        mask: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        options = kwargs.get("transformer_options") or {}
        now = Handover.of(options)
        if now is None:
            return original(x, context=context, value=value, mask=mask, **kwargs)
        call = HostAttention(
            path, module, x, context, value, now.of_batch(options), original, mask, options
        )
        if cross:
            return now.work.cross_attention(call)
        if not now.work.plain:
            check_all_tokens(now.node, path, x, options)
        return now.work.attention(call)

    return forward


def _wrap_hidden(path: str) -> Callable[..., Tensor]:
    def forward(original: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        hidden = original(*args, **kwargs)
        options = running_options()
        now = Handover.of(options)
        return hidden if now is None else now.work.hidden(path, hidden, now.of_batch(options))

    return forward


def _wrap_deep(path: str, last: bool) -> Callable[..., Tensor]:
    def forward(original: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        options = running_options()
        now = Handover.of(options)
        if now is None:
            return original(x, *args, **kwargs)
        return now.work.deep(UNetDeep(path, last, now.of_batch(options), original, x, args, kwargs))

    return forward


@dataclass
class UNetDeep(DeepCall):
    """One call of a layer below the UNet's full resolution.

    Attributes:
        original: The layer's forward as it was.
        x: Its input, (rows * n, C, h, w).
        args: What else it is given by position.
        kwargs: What it is given by name.
    """

    original: Callable[..., Tensor]
    x: Tensor
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def device(self) -> torch.device:
        return self.x.device

    def run(self) -> Tensor:
        return self.original(self.x, *self.args, **self.kwargs)

    def nothing(self) -> Tensor:
        """Makes an output without channels, at no cost.

        The host joins it to others, and takes its height and width for the way up.
        """
        height, width = self.x.shape[2:]
        if self.kwargs.get("output_shape") is not None:
            height, width = self.kwargs["output_shape"][2:]
        # A Downsample; ResBlocks and transformers are given an embedding or a context.
        elif not self.args:
            height, width = -(-height // 2), -(-width // 2)
        return self.x.new_empty(len(self.x), 0, height, width)


def _blocks(layers: tuple[str, ...]) -> tuple[str, ...]:
    """The UNet's blocks that layers belong to, in their order.

    For example "input_blocks.1", "middle_block", "output_blocks.3".
    """
    parts = (layer.split(".") for layer in layers)
    return tuple(
        dict.fromkeys(
            part[0] if part[0] == "middle_block" else ".".join(part[:2]) for part in parts
        )
    )


def _block_number(layer: str) -> int:
    return int(layer.split(".")[1])
