"""Image transformers of the host: SD 3, Flux, Chroma, Lumina 2 and their kin.

Their blocks attend over text and image tokens together. Layers are named by the paths of their
blocks; a model that is not in MODELS is refused rather than edited wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...tokenflow_ops.backbone import Backbone
from ..calls import Handover
from ..validation.errors import NodeError
from .blocks import Block, DeepBlock, Layout, attention_override
from .joint_attention import QUERIES_AND_KEYS
from .latents import of_frames

TEXT, IMAGE = "text", "image"
# How the blocks of each class are called, and what they return.
LAYOUTS = {
    "JointBlock": Layout(("x", 1), ("context", 0), (TEXT, IMAGE)),
    "DoubleStreamBlock": Layout(("img", 0), ("txt", 1), (IMAGE, TEXT)),
    "SingleStreamBlock": Layout(("x", 0), None, (IMAGE,)),
    "QwenImageTransformerBlock": Layout(
        ("hidden_states", 0), ("encoder_hidden_states", 1), (TEXT, IMAGE)
    ),
    "JointTransformerBlock": Layout(("x", 0), None, (IMAGE,)),
    "MMDiTBlock": Layout(("x", 1), ("c", 0), (TEXT, IMAGE)),
    "DiTBlock": Layout(("cx", 0), None, (IMAGE,)),
}
# The host's models by module and class, and where their blocks are, in the order they run.
MODELS = {
    ("modules.diffusionmodules.mmdit", "OpenAISignatureMMDITWrapper"): ("joint_blocks",),
    ("flux.model", "Flux"): ("double_blocks", "single_blocks"),
    ("chroma.model", "Chroma"): ("double_blocks", "single_blocks"),
    ("qwen_image.model", "QwenImageTransformer2DModel"): ("transformer_blocks",),
    ("lumina.model", "NextDiT"): ("layers",),
    ("aura.mmdit", "MMDiT"): ("double_layers", "single_layers"),
}
VIDEO = "is a video model, which attends over time by itself"
# Why others of the host's models are not taken, by the folder of their class.
REFUSED = {
    "pixart": "does not let its attention be reached (it is given no transformer_options)",
    "hydit": "does not let its attention be reached (it is given no transformer_options)",
    "chroma_radiance": "works on pixels, not on latents",
    "cascade": "works in two stages on other latents",
    "hidream": "puts its image tokens in front of the text's, and other text behind them in every "
    "block",
    "omnigen": "edits by reference images, which stand among its image tokens",
    **dict.fromkeys(("cosmos", "genmo", "hunyuan_video", "lightricks", "wan"), VIDEO),
}
# Where a transformer's own attention begins to tell a picture's parts apart, as a share of its
# depth; and the first and last blocks that every frame runs by itself.
MATCHED_FROM = 0.4
OUTER_FIRST, OUTER_LAST = 2, 1 / 6


@dataclass(frozen=True)
class TransformerBackbone(Backbone):
    """A transformer's layers.

    Attributes:
        patch: Side of the square of latent pixels that one token stands for.
        padded_to: Image tokens are padded to a multiple of so many.
    """

    patch: int = 2
    padded_to: int = 1

    def injected_attention(self, choice: str = "decoder") -> tuple[str, ...]:
        """Names the queries and keys that Plug-and-Play takes from the source.

        Those of the image tokens in all blocks (ConsistEdit, 2510.17803); "late decoder" keeps the
        second half of the blocks.

        Args:
            choice: As `Injection.layers`, "decoder" or "late decoder".

        Returns:
            Names of features in order.
        """
        layers = self.attention[len(self.attention) // 2 :] if choice == "late decoder" else None
        return tuple(f"{layer}{QUERIES_AND_KEYS}" for layer in layers or self.attention)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Counts rows and columns of a frame's image tokens.

        Args:
            height: Rows of the latent.
            width: Columns of the latent.

        Returns:
            Both numbers.
        """
        return -(-height // self.patch), -(-width // self.patch)


def find(diffusion_model: Any) -> TransformerBackbone | None:
    """Finds the layers of a transformer; None for other models.

    Args:
        diffusion_model: The host's.

    Returns:
        Its layers.
    """
    kind = type(diffusion_model)
    parts = MODELS.get((kind.__module__.removeprefix("comfy.ldm."), kind.__name__))
    if parts is None:
        return None
    blocks = [path for part in parts for path in _blocks(diffusion_model, part)]
    attention = tuple(
        name for path in blocks for name in _attention(diffusion_model.get_submodule(path), path)
    )
    first, last = OUTER_FIRST, len(blocks) - -(-len(blocks) // round(1 / OUTER_LAST))
    return TransformerBackbone(
        attention,
        decoder=tuple((layer,) for layer in attention[int(MATCHED_FROM * len(attention)) :]),
        blocks=tuple(blocks),
        deep=tuple(blocks[first:last]),
        matched_on_output=True,
        patch=diffusion_model.patch_size,
        padded_to=getattr(diffusion_model, "pad_tokens_multiple", None) or 1,
    )


def refusal(diffusion_model: Any) -> str | None:
    """Tells why a model of the host is not taken.

    Args:
        diffusion_model: The host's.

    Returns:
        What goes on a sentence that begins with its name; None for models nobody thought of.
    """
    folder = type(diffusion_model).__module__.removeprefix("comfy.ldm.").partition(".")[0]
    return REFUSED.get(folder)


def _blocks(diffusion_model: Any, part: str) -> list[str]:
    """Paths of the blocks that run, all of a class that LAYOUTS knows."""
    skipped: Any = {
        "double_blocks": getattr(diffusion_model, "skip_mmdit", ()),  # Chroma's
        "single_blocks": getattr(diffusion_model, "skip_dit", ()),
    }.get(part, ())
    return [
        f"{part}.{number}"
        for number, block in enumerate(diffusion_model.get_submodule(part))
        if number not in skipped and type(block).__name__ in LAYOUTS
    ]


def _attention(block: Any, path: str) -> tuple[str, ...]:
    """A block's attention in the order it runs: SD 3.5 medium has a second one, of the image."""
    twice = getattr(getattr(block, "x_block", None), "x_block_self_attn", False)
    return (path, f"{path}.x_block.attn2") if twice else (path,)


def wrapped(backbone: Backbone) -> tuple[str, ...]:
    """Lists the modules whose forward is wrapped during a run: the blocks."""
    return backbone.blocks


def wrapper(backbone: Backbone, path: str, module: Any) -> Callable[..., Any]:
    """Makes what takes the place of a block's forward during a run.

    Args:
        backbone: The model's layers.
        path: The block's path.
        module: The block.

    Returns:
        A function that is called with (original forward, *args, **kwargs).
    """
    assert isinstance(backbone, TransformerBackbone)
    layout, layers = LAYOUTS[type(module).__name__], _attention(module, path)
    first = backbone.attention.index(layers[0])

    def forward(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        options = kwargs.get("transformer_options") or {}
        now = Handover.of(options)
        if now is None or now.work.plain:
            return original(*args, **kwargs)
        rows, columns = backbone.grid(*now.entrance.latents.shape[-2:])
        padding = -rows * columns % backbone.padded_to
        block = Block(
            path,
            layers,
            first,
            layout,
            now,
            options,
            partial(original, *args, **kwargs),
            args,
            kwargs,
            (rows, columns),
            padding,
        )
        now.seen.setdefault(tuple(options["uuids"]), set()).add(path)
        if path not in backbone.deep:
            return block.run()
        if path == backbone.deep[0]:
            block.remember()
        return now.work.deep(
            DeepBlock(path, path == backbone.deep[-1], now.of_batch(options), block)
        )

    return forward


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Makes what the host's `transformer_options` hold during a pass besides the pass itself.

    Args:
        options: What they hold already.

    Returns:
        Our attention in front of the host's, or of another pack's.
    """
    name = "optimized_attention_override"
    return {name: attention_override(options.get(name))}


def watch(clone: Any, key: str, backbone: Backbone) -> None:
    """Watches every call of the model: what comes to it, and that all its blocks have run.

    SD 3 asks no wrapper of the diffusion model, so this stands around the host's `apply_model`.

    Args:
        clone: The ModelPatcher, ours.
        key: Of our wrappers.
        backbone: The model's layers.
    """

    def apply_model(
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        options = transformer_options or {}
        now = Handover.of(options)
        if now is None:
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        now.entrance.check(of_frames(x), options)
        if now.work.skips_deep and control is not None:
            control = outer_control(control, backbone)
        out = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        replaced = options.get("patches_replace", {}).get("dit")
        seen = now.seen.pop(tuple(options["uuids"]), set())
        if not now.work.plain and not replaced and (missing := set(backbone.blocks) - seen):
            raise NodeError(
                now.node,
                "model",
                f"{len(missing)} of {len(backbone.blocks)} blocks did not run, the first of them "
                f"{min(missing)}.",
                "Remove the patch that skips blocks, or update this pack for a newer ComfyUI.",
            )
        return out

    clone.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, key)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, key, apply_model)


def outer_control(control: Mapping[str, Any], backbone: Backbone) -> dict[str, Any]:
    """Leaves out a ControlNet's residuals that are added between inner blocks, which do not run.

    What is added behind the last of them is every frame's own.

    Args:
        control: Lists of residuals by the part of the model that they are added to.
        backbone: The model's layers.

    Returns:
        The same, with None for what is left out.
    """
    numbers: dict[str, set[int]] = {"input": set(), "output": set()}
    for path in backbone.deep[:-1]:
        part, _, number = path.partition(".")
        # Flux adds "input" to its double blocks and "output" to its single ones, Qwen-Image
        # "input", SD 3 "output" to all it has.
        name = "input" if part in ("double_blocks", "transformer_blocks") else "output"
        numbers[name].add(int(number))
    return {
        name: [None if i in numbers.get(name, ()) else part for i, part in enumerate(residuals)]
        if isinstance(residuals, list)
        else residuals
        for name, residuals in control.items()
    }
