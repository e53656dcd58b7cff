"""Extended attention: the joined sequence through torch's kernel, the library's formula and a loop
over frames and tokens agree.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenflow_ops import extended_attention, join_frames, split_frames
from tokenflow_ops.attention import merge_tokens

sizes = {
    "frames": st.integers(1, 5),
    "tokens": st.integers(1, 7),
    "heads": st.integers(1, 3),
    "width": st.integers(1, 5),
    "seed": st.integers(0, 2**16),
}


def tokens_of(seed: int, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(shape, generator=generator) for _ in range(3)]


def plain_loop(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Frame by frame, token by token, head by head."""
    out = torch.zeros_like(q)
    width = q.shape[-1] // heads
    keys = [key for frame in k for key in frame]
    values = [value for frame in v for value in frame]
    for i in range(q.shape[0]):
        for p in range(q.shape[1]):
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                logits = torch.stack(
                    [(q[i, p, part] * key[part]).sum() / width**0.5 for key in keys]
                )
                weights = logits.exp() / logits.exp().sum()
                out[i, p, part] = sum(
                    w * value[part] for w, value in zip(weights, values, strict=True)
                )
    return out


@settings(deadline=None, max_examples=25)
@given(**sizes)
def test_the_formula_is_the_loop(
    frames: int, tokens: int, heads: int, width: int, seed: int
) -> None:
    q, k, v = tokens_of(seed, frames, tokens, heads * width)
    torch.testing.assert_close(
        extended_attention(q, k, v, heads), plain_loop(q, k, v, heads), rtol=1e-4, atol=1e-5
    )


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 3), **sizes)
def test_joined_frames_through_a_kernel_are_extended_attention(
    rows: int, frames: int, tokens: int, heads: int, width: int, seed: int
) -> None:
    q, k, v = tokens_of(seed, rows * frames, tokens, heads * width)
    per_head = [
        join_frames(t, rows).unflatten(-1, (heads, width)).transpose(1, 2) for t in (q, k, v)
    ]
    out = split_frames(F.scaled_dot_product_attention(*per_head).transpose(1, 2).flatten(2), frames)
    for row in range(rows):
        own = slice(row * frames, (row + 1) * frames)
        torch.testing.assert_close(
            out[own], extended_attention(q[own], k[own], v[own], heads), rtol=1e-4, atol=1e-5
        )


@given(rows=st.integers(1, 3), frames=st.integers(1, 5), tokens=st.integers(1, 7))
def test_splitting_undoes_joining(rows: int, frames: int, tokens: int) -> None:
    batch = torch.arange(rows * frames * tokens * 2.0).reshape(rows * frames, tokens, 2)
    assert torch.equal(split_frames(join_frames(batch, rows), frames), batch)


def test_one_keyframe_is_plain_self_attention() -> None:
    q, k, v = tokens_of(0, 1, 9, 8)
    heads = [t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k, v)]
    plain = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    torch.testing.assert_close(extended_attention(q, k, v, 2), plain)


@settings(deadline=None, max_examples=25)
@given(
    frames=st.integers(1, 3),
    grid=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    seed=st.integers(0, 2**16),
)
def test_merged_tokens_are_the_means_of_patches(
    frames: int, grid: tuple[int, int], seed: int
) -> None:
    rows, columns = grid
    tokens = tokens_of(seed, frames, rows * columns, 3)[0]
    laid = tokens.unflatten(1, grid)
    wanted = [
        laid[:, y : y + 2, x : x + 2].flatten(1, 2).mean(1)
        for y in range(0, rows, 2)
        for x in range(0, columns, 2)
    ]
    torch.testing.assert_close(merge_tokens(tokens, grid), torch.stack(wanted, 1))
