"""Denoised frames tied to the first one, on motion and statistics that are known."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenflow_ops.baselines.fusion import (
    FirstFrameMotion,
    fuse_with_first,
    match_statistics,
    motion_from_first,
    occluded,
)

SIZE = 96
LATENT = 12


def panning(frames: int, step: int) -> Tensor:
    """A window moving right over a smooth random plane: what it shows moves left by `step` pixels a
    frame, (frames, 3, 96, 96).
    """
    noise = torch.rand(1, 3, 7, 13, generator=torch.Generator().manual_seed(0))
    plane = F.interpolate(noise, (SIZE, 2 * SIZE), mode="bicubic", align_corners=True)[0].clamp(
        0, 1
    )
    return torch.stack([plane[:, :, i * step : i * step + SIZE] for i in range(frames)])


def test_translation_is_found_at_the_latents_scale() -> None:
    motion = motion_from_first(panning(3, 8), (LATENT, LATENT))
    own = torch.arange(LATENT * LATENT).view(LATENT, LATENT)
    for frame, shift in ((0, 1), (1, 2)):
        # What is in column x was `shift` columns further right in the first frame.
        wanted = own[:, shift:]
        found, seen = (
            part[frame].view(LATENT, LATENT) for part in (motion.positions, motion.visible)
        )
        inner = seen[:, : LATENT - shift - 1]
        assert inner.float().mean() > 0.7
        assert torch.equal(
            found[:, : LATENT - shift - 1][inner], wanted[:, : LATENT - shift - 1][inner]
        )
        assert not seen[:, LATENT - shift :].any()  # it came in from outside


def test_one_frame_has_no_motion() -> None:
    motion = motion_from_first(panning(1, 1), (2, 3))
    assert motion.positions.shape == motion.visible.shape == (0, 6)
    frames = torch.rand(1, 4, 2, 3)
    assert torch.equal(fuse_with_first(frames, motion), frames)


def test_a_way_that_does_not_lead_back_is_occluded() -> None:
    forward = torch.full((2, 6, 6), 2.0)
    assert not occluded(forward, -forward).any()
    assert not occluded(forward, -forward + 0.2).any()
    assert occluded(forward, -forward + 1).all()


def test_visible_pixels_are_the_first_frames() -> None:
    frames = torch.rand(2, 3, 1, 4)
    motion = FirstFrameMotion(
        torch.tensor([[1, 2, 3, 3]]), torch.tensor([[True, True, True, False]])
    )
    fused = fuse_with_first(frames, motion)
    assert torch.equal(fused[0], frames[0])
    assert torch.equal(fused[1, :, 0, :3], frames[0, :, 0, 1:])
    assert torch.equal(fused[1, :, 0, 3], frames[1, :, 0, 3])


def test_statistics_become_the_first_frames() -> None:
    frames = torch.randn(3, 2, 5, 5) * torch.tensor([1.0, 2, 3])[:, None, None, None] + 1
    matched = match_statistics(frames, frames[0])
    torch.testing.assert_close(matched[0], frames[0])
    for part in matched[1:]:
        torch.testing.assert_close(part.mean((1, 2)), frames[0].mean((1, 2)))
        torch.testing.assert_close(part.std((1, 2)), frames[0].std((1, 2)), rtol=1e-4, atol=0)
    assert torch.isfinite(match_statistics(torch.ones(2, 1, 2, 2), torch.zeros(1, 2, 2))).all()
