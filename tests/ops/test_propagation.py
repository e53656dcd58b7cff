"""Blending of keyframe tokens against loops, and the picture of rebuilt frames."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenflow_ops import Neighbours, carry, propagate
from tokenflow_ops.guidance import carry_guidance
from tokenflow_ops.measuring.views import rebuild

from .made import ONLY, step_matches


@settings(deadline=None, max_examples=50)
@given(
    keyframes=st.integers(1, 4),
    frames=st.integers(1, 7),
    tokens=st.integers(1, 11),
    width=st.integers(1, 6),
    dtype=st.sampled_from([torch.int16, torch.int32, torch.int64]),
    seed=st.integers(0, 2**16),
)
def test_every_token_is_the_blend_of_its_two_matches(
    keyframes: int, frames: int, tokens: int, width: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(keyframes, tokens, width, generator=generator)
    past, future = (torch.randint(keyframes, (frames,), generator=generator) for _ in range(2))
    past_tokens, future_tokens = (
        torch.randint(tokens, (frames, tokens), generator=generator).to(dtype) for _ in range(2)
    )
    same = past == future
    future_tokens[same] = past_tokens[same]  # one keyframe has one match
    weight = torch.rand(frames, generator=generator)
    out = propagate(base, past, future, weight, past_tokens, future_tokens)
    for i in range(frames):
        for p in range(tokens):
            ahead, behind = (
                base[future[i], int(future_tokens[i, p])],
                base[past[i], int(past_tokens[i, p])],
            )
            torch.testing.assert_close(out[i, p], weight[i] * ahead + (1 - weight[i]) * behind)


def test_keyframes_keep_their_own_tokens_whole() -> None:
    features = torch.randn(9, 12, 8, generator=torch.Generator().manual_seed(0))
    found = step_matches(features, 3)
    near, (past, future) = found.near, found.tokens(ONLY)
    base = torch.randn(3, 12, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        propagate(base, near.past, near.future, near.weight, past, future)[found.keyframes], base
    )


def test_half_precision_stays_half_precision() -> None:
    base = torch.randn(2, 3, 4).half()
    tokens = torch.zeros(1, 3, dtype=torch.int16)
    out = propagate(
        base, torch.tensor([0]), torch.tensor([1]), torch.tensor([0.25]), tokens, tokens
    )
    assert out.dtype == torch.float16


@settings(deadline=None, max_examples=40)
@given(
    frames=st.integers(1, 5),
    interval=st.integers(1, 3),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    halved=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_every_carried_pixel_is_the_blend_of_its_place_in_two_tokens(
    frames: int, interval: int, size: tuple[int, int], halved: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    patch = 2 if halved and max(size) > 1 else 1
    rows, columns = -(-height // patch), -(-width // patch)
    pictures = torch.randn(frames, 3, height, width, generator=generator)
    matches = step_matches(
        torch.randn(frames, rows * columns, 4, generator=generator), interval, seed
    )
    keyframes, near, (past, future) = matches.keyframes, matches.near, matches.tokens(ONLY)
    out = carry(pictures[keyframes], near, (past, future), (rows, columns))
    assert torch.equal(out[keyframes], pictures[keyframes])

    def taken(keyframe: torch.Tensor, token: int, y: int, x: int) -> torch.Tensor:
        row, column = divmod(token, columns)
        at = min(row * patch + y % patch, height - 1), min(column * patch + x % patch, width - 1)
        return pictures[keyframes[keyframe], :, at[0], at[1]]

    for i in range(frames):
        for y in range(height):
            for x in range(width):
                p = y // patch * columns + x // patch
                before, after = (
                    taken(near.past[i], int(past[i, p]), y, x),
                    taken(near.future[i], int(future[i, p]), y, x),
                )
                torch.testing.assert_close(
                    out[i, :, y, x], near.weight[i] * after + (1 - near.weight[i]) * before
                )


def test_a_still_clip_is_rebuilt_exactly() -> None:
    image = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(0))
    images = image.expand(5, -1, -1, -1)
    features = torch.randn(6, 16, generator=torch.Generator().manual_seed(1)).expand(5, -1, -1)
    torch.testing.assert_close(
        rebuild(images.__getitem__, step_matches(features, 3), ONLY, (2, 3), torch.arange(5)),
        images,
    )


def test_a_shifted_frame_is_rebuilt_from_shifted_patches() -> None:
    strip = torch.rand(3, 4, 20, generator=torch.Generator().manual_seed(0))
    patches = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    images = torch.stack([strip[:, :, :16], strip[:, :, 4:]])
    features = torch.stack([patches[:4], patches[1:]])
    matches = step_matches(
        features,
        2,
        seed=next(seed for seed in range(99) if step_matches(features, 2, seed).keyframes == 0),
    )
    rebuilt = rebuild(images.__getitem__, matches, ONLY, (1, 4), torch.arange(2))
    torch.testing.assert_close(rebuilt[1, :, :, :12], images[1, :, :, :12])


@settings(deadline=None, max_examples=40)
@given(
    frames=st.integers(1, 5),
    interval=st.integers(1, 3),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 2**16),
)
def test_guidance_is_the_mean_of_what_the_matches_around_say(
    frames: int, interval: int, grid: tuple[int, int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = grid
    given_by = torch.randn(frames, 2, rows, columns, generator=generator)
    matches = step_matches(
        torch.randn(frames, rows * columns, 4, generator=generator), interval, seed
    )
    keyframes, near, sides = given_by[matches.keyframes], matches.near, matches.tokens(ONLY)
    out = carry_guidance(keyframes, near, sides, grid)

    def said(keyframe: int, tokens: list[int], y: int, x: int) -> torch.Tensor:
        found = []
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                at = divmod(tokens[y * columns + x], columns)
                if 0 <= y + down < rows and 0 <= x + right < columns:
                    row, column = divmod(tokens[(y + down) * columns + x + right], columns)
                    if 0 <= row - down < rows and 0 <= column - right < columns:
                        at = row - down, column - right
                found.append(keyframes[keyframe, :, at[0], at[1]])
        return torch.stack(found).mean(0)

    for i in range(frames):
        past, future = (int(side[i]) for side in (near.past, near.future))
        for y in range(rows):
            for x in range(columns):
                before = said(past, sides[0][i].tolist(), y, x)
                after = said(future, sides[1][i].tolist(), y, x)
                wanted = near.weight[i] * after + (1 - near.weight[i]) * before
                torch.testing.assert_close(out[i, :, y, x], wanted)


def test_guidance_of_what_moves_as_one_is_not_blurred() -> None:
    """Two columns to the right: inside, all nine matches around say the same."""
    grid = 5, 8
    keyframe = torch.randn(1, 3, *grid, generator=torch.Generator().manual_seed(0))
    places = torch.arange(40).reshape(grid)
    moved = (places // 8 * 8 + (places % 8 - 2).clamp(min=0)).reshape(1, -1)
    near = Neighbours(torch.tensor([0]), torch.tensor([0]), torch.tensor([0.0]))
    out = carry_guidance(keyframe, near, (moved, moved), grid)
    torch.testing.assert_close(out[..., 4:7], keyframe[..., 2:5])
    still = places.reshape(1, -1)
    torch.testing.assert_close(carry_guidance(keyframe, near, (still, still), grid), keyframe)
