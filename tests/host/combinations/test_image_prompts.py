"""Images beside the prompt, as IPAdapter has them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..helpers import (
    NEGATIVE,
    OWN_GUIDANCE,
    POSITIVE,
    relative_error,
    tiny_model,
)
from .short import CLIP, ROUNDING, plain, short

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
    """As if the images had been in the prompts of the frames, and so with their own guidance."""
    found = short(patched(images(count)), frames_per_pass=2)
    prompts = prompts_with(images(count))
    assert relative_error(found, short(None, *prompts, **OWN_GUIDANCE)) < ROUNDING
    assert relative_error(found, plain()) > 10 * ROUNDING
