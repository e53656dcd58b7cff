"""Keyframes beside each other's merged tokens in attention over text and image, written out: every
key has the weight that the text, its frame's tokens and the others' have.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenflow_pack.host.families.joint_attention import JointAttention, text_times
from tokenflow_pack.tokenflow_ops.passes import KeyframePass
from torch import Tensor

HEADS, WIDTH = 2, 6


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """As the host's backends: a mask is of two dimensions or of three with the batch in front."""
    split = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))
    if mask is not None and mask.ndim == 3:
        mask = mask.unsqueeze(1)
    return F.scaled_dot_product_attention(*split, attn_mask=mask).transpose(1, 2).flatten(2)


def call_of(
    sides: tuple[Tensor, Tensor, Tensor],
    words: int,
    grid: tuple[int, int],
    mask: Tensor | None,
    number: int,
    rows: int,
) -> JointAttention:
    place = slice(words, words + grid[0] * grid[1])
    image = [side[:, place] for side in sides]
    places = [(row, 0) for row in range(rows)]
    return JointAttention("layer", None, *image, places, attend, sides, place, mask, grid, number)


def written_out(
    sides: tuple[Tensor, Tensor, Tensor],
    words: int,
    grid: tuple[int, int],
    mask: Tensor | None,
    times: int,
    frame: int,
) -> Tensor:
    """One keyframe (T, C) from the sequences of all, (k, T, C). mask: additive, (T, T)."""
    size, length = grid[0] * grid[1], sides[0].shape[1]
    keys, values, extra = [], [], []
    for token in range(length):
        text = not words <= token < words + size
        for _ in range(times if text else 1):
            keys.append(sides[1][frame, token])
            values.append(sides[2][frame, token])
            extra.append(torch.zeros(length) if mask is None else mask[:, token])
    for other in range(len(sides[0])):
        if other == frame:
            continue
        for y in range(0, grid[0], 2):
            for x in range(0, grid[1], 2):
                four = [
                    words + row * grid[1] + column
                    for row in range(y, min(y + 2, grid[0]))
                    for column in range(x, min(x + 2, grid[1]))
                ]
                keys.append(sides[1][other, four].mean(0))
                values.append(sides[2][other, four].mean(0))
                extra.append(torch.zeros(length) if mask is None else mask[:, four].amax(1))
    k, v, more = torch.stack(keys), torch.stack(values), torch.stack(extra, 1)
    heads = []
    for h in range(HEADS):
        part = slice(h * WIDTH // HEADS, (h + 1) * WIDTH // HEADS)
        weights = sides[0][frame][:, part] @ k[:, part].T / (WIDTH / HEADS) ** 0.5 + more
        heads.append(weights.softmax(-1) @ v[:, part])
    return torch.cat(heads, -1)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 2),
    count=st.integers(1, 6),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    words=st.integers(0, 3),
    padding=st.integers(0, 2),
    masked=st.sampled_from([None, "bool", "additive", "batch"]),
    number=st.integers(0, 9),
    seed=st.integers(0, 2**16),
)
def test_merged_keyframes_are_the_formula(
    rows: int,
    count: int,
    grid: tuple[int, int],
    words: int,
    padding: int,
    masked: Any,
    number: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = grid[0] * grid[1]
    length = words + size + padding
    sides = torch.randn(3, rows * count, length, WIDTH, generator=generator).unbind()
    mask = None if masked is None else torch.randn(length, length, generator=generator)
    if masked == "bool":
        mask = mask > -1
        mask[:, words] = True  # no query without any key
    given = mask.expand(rows * count, -1, -1) if masked == "batch" else mask
    call = call_of(sides, words, grid, given, number, rows)
    work = KeyframePass(torch.arange(count), merged_from=1)
    found = call.whole(work.attention(call).clone())
    additive = mask
    if masked == "bool":
        additive = torch.where(mask, 0.0, float("-inf"))
    merged = -(-grid[0] // 2) * -(-grid[1] // 2)
    times = text_times(size + (count - 1) * merged, size, number)
    for row in range(rows):
        own = [side[row * count : (row + 1) * count] for side in sides]
        for frame in range(count):
            wanted = written_out(own, words, grid, additive, times, frame)
            torch.testing.assert_close(found[row * count + frame], wanted, rtol=1e-4, atol=1e-5)


@given(size=st.integers(1, 50), more=st.integers(0, 200), layers=st.integers(1, 60))
def test_over_all_layers_text_counts_as_image_tokens_make_frames(
    size: int, more: int, layers: int
) -> None:
    tokens = size + more
    times = [text_times(tokens, size, number) for number in range(layers)]
    assert abs(sum(times) - layers * tokens / size) < 1
    assert min(times) >= 1
    assert max(times) - min(times) <= 1


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_beside_whole_frames_text_counts_once_for_each(frames: int) -> None:
    assert {text_times(frames * 30, 30, number) for number in range(9)} == {frames}
