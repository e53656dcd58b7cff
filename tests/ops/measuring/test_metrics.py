"""Warp error, visibility, sharpness and PSNR on clips whose answer is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenflow_ops.measuring.metrics import (
    dis_flow,
    frame_similarities,
    prompt_scores,
    psnr,
    sharpness,
    source_motion,
    visible,
    warp,
    warp_errors,
)


def texture(height: int, width: int, seed: int = 0) -> Tensor:
    """A smooth random picture (3, height, width) in [0, 1] that optical flow can follow."""
    noise = torch.rand(
        1, 3, height // 4 + 1, width // 4 + 1, generator=torch.Generator().manual_seed(seed)
    )
    return F.interpolate(noise, (height, width), mode="bicubic", align_corners=True)[0].clamp(0, 1)


def shifting(frames: int, dx: int, dy: int, size: int = 64) -> Tensor:
    """A window moving over a plane: what it shows moves by (-dx, -dy) pixels a frame."""
    plane = texture(size + frames * dy, size + frames * dx)
    return torch.stack(
        [plane[:, i * dy : i * dy + size, i * dx : i * dx + size] for i in range(frames)]
    )


def translation(dx: float, dy: float, size: int = 64) -> tuple[Tensor, Tensor]:
    """Known motion, and where its target lies inside the frame."""
    flow = torch.tensor([dx, dy])[:, None, None].expand(2, size, size)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    inside = (x + dx >= 0) & (x + dx <= size - 1) & (y + dy >= 0) & (y + dy <= size - 1)
    return flow, inside


@settings(deadline=None, max_examples=20)
@given(dx=st.integers(0, 4), dy=st.integers(0, 4))
def test_translation_has_no_warp_error(dx: int, dy: int) -> None:
    errors = warp_errors(shifting(3, dx, dy), [translation(-dx, -dy)] * 2)
    assert errors.shape == (2,)
    assert errors.abs().max() < 1e-6


@pytest.mark.parametrize("deviation", [0.05, 0.2])
def test_flicker_has_its_own_mean_square_in_thousandths(deviation: float) -> None:
    clip = shifting(5, 1, 2) * 0
    offsets = deviation * torch.randn(5, generator=torch.Generator().manual_seed(0))
    errors = warp_errors(clip + offsets[:, None, None, None], [translation(-1, -2)] * 4)
    torch.testing.assert_close(errors, (offsets[1:] - offsets[:-1]).square() * 1e3)


def test_independent_noise_has_twice_its_variance() -> None:
    noise = 0.1 * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    (error,) = warp_errors(0.5 + noise, [translation(0, 0)])
    assert float(error) == pytest.approx(2 * 0.1**2 * 1e3, rel=0.03)


def test_only_visible_pixels_count() -> None:
    clip = torch.zeros(2, 3, 8, 8)
    clip[1, :, :, 4:] = 1
    flow, mask = translation(0, 0, 8)
    mask = mask.clone()
    mask[:, 4:] = False
    assert warp_errors(clip, [(flow, mask)]).tolist() == pytest.approx([0], abs=1e-6)
    assert warp_errors(clip, [(flow, ~mask)]).tolist() == pytest.approx([1000])
    assert warp_errors(clip, [(flow, mask & False)]).isnan().all()


def test_one_frame_has_no_pairs() -> None:
    assert source_motion(texture(16, 16)[None]) == []
    assert warp_errors(texture(16, 16)[None], []).shape == (0,)


def test_warping_moves_by_the_flow() -> None:
    image = texture(12, 20)
    flow = torch.zeros(2, 12, 20)
    flow[0], flow[1] = 3, -2
    warped = warp(image, flow)
    torch.testing.assert_close(warped[:, 2:, :-3], image[:, :-2, 3:])
    # The border repeated.
    torch.testing.assert_close(warped[:, :2, :-3], image[:, :1, 3:].expand(-1, 2, -1))


def test_half_a_pixel_is_interpolated() -> None:
    image = texture(6, 10)
    flow = torch.zeros(2, 6, 10)
    flow[0] = 0.5
    torch.testing.assert_close(
        warp(image, flow)[:, :, :-1], (image[:, :, :-1] + image[:, :, 1:]) / 2
    )


def test_flow_of_a_moving_texture_is_found() -> None:
    first, second = shifting(2, 2, 1, 96)
    flow = dis_flow(first, second)[:, 16:-16, 16:-16]
    assert (flow[0].median() + 2).abs() < 0.2
    assert (flow[1].median() + 1).abs() < 0.2


def test_estimated_motion_leaves_little_error_in_a_moving_texture() -> None:
    clip = shifting(3, 2, 1, 96)
    motion = source_motion(clip)
    assert all(mask.float().mean() > 0.7 for _, mask in motion)
    moving, still = warp_errors(clip, motion), warp_errors(clip, [translation(0, 0, 96)] * 2)
    assert (moving < 0.1 * still).all()


def test_flow_that_does_not_return_is_occluded() -> None:
    there = torch.zeros(2, 16, 16)
    there[0] = 2
    assert visible(there, -there).all()
    assert not visible(there, there).any()
    assert visible(there * 0, there * 0).all()


def test_a_jump_in_the_flow_is_a_motion_boundary() -> None:
    flow = torch.zeros(2, 16, 16)
    flow[0, :, 8:] = 0.5  # small enough not to count as occluded
    seen = visible(flow, -flow)
    assert not seen[:, 7:9].any()
    assert seen[:, :6].all()
    assert seen[:, 10:].all()


def test_what_a_moving_square_covers_does_not_count() -> None:
    clip, flows = texture(48, 48).repeat(2, 1, 1, 1), torch.zeros(2, 2, 48, 48)
    square = texture(16, 16, seed=1)
    for frame, x in enumerate((12, 18)):
        clip[frame, :, 16:32, x : x + 16] = square
        flows[frame, 0, 16:32, x : x + 16] = 6 if frame == 0 else -6
    forward, backward = flows
    ((flow, mask),) = source_motion(
        clip, lambda first, _: forward if torch.equal(first, clip[0]) else backward
    )
    assert flow is forward
    assert not mask[16:32, 28:34].any()  # ground that the square will cover
    assert mask[18:30, 14:26].all()  # the square itself, within its outline
    assert mask[:14].all()
    assert warp_errors(clip, [(flow, mask)]).tolist() == pytest.approx([0], abs=1e-6)
    assert float(warp_errors(clip, [(flow, mask | True)])) > 1


def test_similarities_are_cosines() -> None:
    embeddings = torch.tensor([[1.0, 0], [2, 0], [1, 1], [0, -3]])
    half = 0.5**0.5
    assert frame_similarities(embeddings).tolist() == pytest.approx([1, half, -half])
    assert prompt_scores(embeddings, torch.tensor([[0.0, 5]])).tolist() == pytest.approx(
        [0, 0, half, -1]
    )


def test_blur_lowers_sharpness() -> None:
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    blurred = F.avg_pool2d(image, 3, 1, 1)
    assert sharpness(image).shape == (2,)
    assert (sharpness(blurred) < 0.3 * sharpness(image)).all()
    assert sharpness(torch.full((1, 3, 8, 8), 0.3)).tolist() == pytest.approx([0], abs=1e-8)


def test_psnr_of_a_known_error() -> None:
    image = torch.full((2, 3, 8, 8), 0.5)
    torch.testing.assert_close(
        psnr(image, image + torch.tensor([0.1, 0.01])[:, None, None, None]),
        torch.tensor([20.0, 40.0]),
    )
    assert (psnr(image, image) >= 100).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 9), (12, 64), (64, 12), (15, 200)])
def test_low_and_narrow_frames_have_a_flow_of_their_size(height: int, width: int) -> None:
    """By itself OpenCV refuses them, or ends the process."""
    frame = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    for other in (frame, frame.flip(2)):
        flow = dis_flow(frame, other)
        assert flow.shape == (2, height, width)
        assert torch.isfinite(flow).all()
