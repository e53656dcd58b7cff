"""The layers of a UNet2DConditionModel that the method works on, and how forwards are replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any

from torch import Tensor, nn

from ..backbone import Backbone

# Called with (module, its own forward, *args, **kwargs) in place of the forward.
Forward = Callable[..., Any]


@contextmanager
def replaced(unet: nn.Module, forwards: Mapping[str, Forward]) -> Iterator[None]:
    """Lets the modules at these paths answer by other forwards within a `with` block.

    Afterwards, also after an error or an interrupt, they are as they were.

    Args:
        unet: Holds the modules.
        forwards: By module path what is called with (module, its own forward, *args, **kwargs).

    Yields:
        Nothing.
    """
    changed: list[tuple[nn.Module, Any]] = []
    try:
        for path, ours in forwards.items():
            module = unet.get_submodule(path)
            changed.append((module, vars(module).get("forward")))
            vars(module)["forward"] = partial(ours, module, module.forward)
        yield
    finally:
        for module, before in reversed(changed):
            if before is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = before


def find(unet: Any) -> Backbone:
    """Finds the layers of a UNet2DConditionModel."""
    attention = self_attention_layers(unet)
    decoder = [layer for layer in attention if layer.startswith("up_blocks.")]
    blocks = tuple(tuple(layers) for _, layers in groupby(decoder, _block))
    # The end of the residual branch beside it: SD 1.5's "up_blocks.1.resnets.1.conv2".
    hidden = {layer: _block(layer).replace("attentions", "resnets") + ".conv2" for layer in decoder}
    return Backbone(attention, blocks, hidden=hidden, deep=deep_blocks(unet))


def self_attention_layers(unet: nn.Module) -> tuple[str, ...]:
    """Returns module paths of the self-attention, in the order the UNet runs it.

    For example "up_blocks.1.attentions.1.transformer_blocks.0.attn1".
    """
    parts = ("down_blocks", "mid_block", "up_blocks")
    paths = [
        path
        for path, module in unet.named_modules()
        if path.endswith(".attn1") and ".attentions." in path and not module.is_cross_attention
    ]
    return tuple(sorted(paths, key=lambda path: parts.index(path.partition(".")[0])))


def deep_blocks(unet: Any) -> tuple[str, ...]:
    """Returns paths of all that runs below the UNet's full resolution, in order.

    From the first downsampler to the block that ends with the last upsampler.
    """
    down = [f"down_blocks.{i}" for i in range(len(unet.down_blocks))]
    up = [f"up_blocks.{i}" for i in range(len(unet.up_blocks))]
    return f"{down[0]}.downsamplers.0", *down[1:], "mid_block", *up[:-1]


def _block(layer: str) -> str:
    return layer.partition(".transformer_blocks.")[0]


def nothing(module: Any, hidden: Tensor) -> Any:
    """Makes the output of a deep block that does not run: no channels.

    Args:
        module: The block.
        hidden: Its input, (b, C, h, w).

    Returns:
        Empty tensors in the form that the UNet hands on.
    """
    empty = hidden[:, :0, :1, :1]
    if not hasattr(module, "downsamplers"):
        return empty
    return empty, (empty,) * (len(module.resnets) + (module.downsamplers is not None))
