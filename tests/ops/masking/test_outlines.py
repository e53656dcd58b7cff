"""The mask of an edit: a rough difference of two predictions becomes the object's own outline."""

from __future__ import annotations

import pytest
import torch

from tokenflow_ops.masking.outlines import ROUNDS, edit_masks, grown, otsu, softened


def clip(frames: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A yellow disc that moves over noisy green, (N, H, W, 3), and its mask (N, H, W)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = [width * (0.3 + 0.4 * i / max(1, frames - 1)) for i in range(frames)]
    masks = torch.stack([(x - to).square() + (y - height / 2).square() < 12**2 for to in at])
    noise = 0.1 * torch.rand(frames, height, width, 3, generator=torch.Generator().manual_seed(0))
    ground, disc = torch.tensor([0.1, 0.5, 0.1]), torch.tensor([0.8, 0.7, 0.1])
    return torch.where(masks[..., None], disc, ground) + noise, masks


def rough(masks: torch.Tensor) -> torch.Tensor:
    """A blurred, smaller difference on a grid of cells of 4 pixels, with something everywhere."""
    cells = torch.nn.functional.avg_pool2d(masks[:, None].float(), 4, ceil_mode=True)
    return 0.1 + torch.nn.functional.avg_pool2d(cells, 3, 1, 1)[:, 0]


def overlap(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(((found > 0) & wanted).sum() / ((found > 0) | wanted).sum())


@pytest.mark.parametrize(("frames", "size"), [(1, (64, 64)), (3, (61, 83)), (5, (48, 97))])
def test_the_outline_is_the_pictures_own(frames: int, size: tuple[int, int]) -> None:
    pictures, masks = clip(frames, *size)
    found = edit_masks(pictures, rough(masks))
    assert found.shape == masks.shape
    assert set(found.unique().tolist()) <= {0.0, 1.0}
    assert overlap(found, masks) > 0.97


def test_large_frames_are_followed_on_smaller_ones() -> None:
    pictures, masks = clip(1, 120, 700)
    assert overlap(edit_masks(pictures, rough(masks)), masks) > 0.85


def test_a_frame_without_the_object_has_an_empty_mask() -> None:
    pictures, masks = clip(3, 64, 64)
    apart = rough(masks)
    pictures[1], apart[1] = pictures[1, :8, :8].repeat(8, 8, 1), 0.1
    found = edit_masks(pictures, apart)
    assert not found[1].any()
    assert overlap(found[::2], masks[::2]) > 0.95


def test_a_frame_that_differs_much_more_does_not_hide_the_others() -> None:
    pictures, masks = clip(5, 64, 64)
    apart = rough(masks)
    apart[2] *= 8
    assert overlap(edit_masks(pictures, apart), masks) > 0.95


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_an_object_on_a_ground_with_its_colour_is_not_lost(share: float) -> None:
    _, masks = clip(4, 64, 64)
    generator = torch.Generator().manual_seed(1)
    coloured = torch.rand(4, 16, 16, generator=generator) < share
    coloured = coloured.repeat_interleave(4, 1).repeat_interleave(4, 2) | masks
    red, grey = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.45, 0.4])
    pictures = torch.where(coloured[..., None], red, grey)
    pictures += 0.1 * torch.rand(pictures.shape, generator=generator)
    assert overlap(edit_masks(pictures, rough(masks)), masks) > 0.8


def test_an_edit_of_everything_is_one() -> None:
    pictures, _ = clip(2, 32, 32)
    assert edit_masks(pictures, torch.ones(2, 8, 8), sensitivity=2.0).all()


def test_it_is_more_or_less_sensitive() -> None:
    pictures, masks = clip(1, 64, 64)
    apart = rough(masks)
    assert not edit_masks(pictures, apart, sensitivity=0.1).any()
    assert edit_masks(pictures, apart, sensitivity=10.0).all()


def test_what_some_frames_tell_apart_is_found_in_all() -> None:
    pictures, masks = clip(5, 64, 64)
    apart = rough(masks)
    apart[2] = torch.where(apart[2] > 0.2, 0.4, 0.1)
    assert 0.6 * otsu(apart) < 0.4 < otsu(apart)  # too little, but not nothing
    assert overlap(edit_masks(pictures, apart)[2], masks[2]) > 0.9


@pytest.mark.parametrize("pixels", [0, 1, 3])
def test_masks_grow_by_pixels(pixels: int) -> None:
    masks = clip(2, 64, 61)[1].float()
    side = 2 * pixels + 1
    wanted = torch.nn.functional.max_pool2d(masks[:, None], side, 1, pixels)[:, 0]
    assert torch.equal(grown(masks, pixels), wanted)


def test_soft_edges_are_two_pixels_wide() -> None:
    masks = torch.zeros(1, 5, 8)
    masks[..., 4:] = 1
    wanted = torch.tensor([0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1]).expand(1, 5, 8)
    torch.testing.assert_close(softened(masks), wanted)


def test_the_same_clip_has_the_same_mask_each_time() -> None:
    pictures, masks = clip(2, 64, 64)
    assert torch.equal(edit_masks(pictures, rough(masks)), edit_masks(pictures, rough(masks)))


@pytest.mark.parametrize("last", [1, ROUNDS, ROUNDS + 2])
def test_each_round_and_frame_can_end_it(last: int) -> None:
    pictures, masks = clip(3, 32, 32)
    calls: list[int] = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == last:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        edit_masks(pictures, rough(masks), on_step=stop)
    assert len(calls) == last


def test_the_threshold_lies_between_two_groups() -> None:
    low, high = torch.linspace(0.1, 0.2, 50), torch.linspace(0.8, 0.9, 9)
    assert 0.2 < otsu(torch.cat([low, high])) < 0.8
    assert otsu(torch.zeros(4)) > 0
