"""The mask of an edit: a rough difference of two predictions becomes the object's own outline."""

from __future__ import annotations

import pytest
import torch

from tokenflow_ops import Inversion
from tokenflow_ops.edit_mask import compared_steps, disagreement, edit_masks, otsu
from tokenflow_ops.parameterization import Parameterization


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


def test_an_edit_of_everything_is_one() -> None:
    pictures, _ = clip(2, 32, 32)
    assert edit_masks(pictures, torch.ones(2, 8, 8), sensitivity=2.0).all()


def test_it_grows_by_pixels_and_is_more_or_less_sensitive() -> None:
    pictures, masks = clip(1, 64, 64)
    apart = rough(masks)
    wider = edit_masks(pictures, apart, grow=3)
    assert torch.equal(
        wider, torch.nn.functional.max_pool2d(edit_masks(pictures, apart)[:, None], 7, 1, 3)[:, 0]
    )
    assert not edit_masks(pictures, apart, sensitivity=0.1).any()


def test_the_same_clip_has_the_same_mask_each_time() -> None:
    pictures, masks = clip(2, 64, 64)
    assert torch.equal(edit_masks(pictures, rough(masks)), edit_masks(pictures, rough(masks)))


def test_each_frame_can_end_it() -> None:
    pictures, masks = clip(3, 32, 32)
    calls: list[int] = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        edit_masks(pictures, rough(masks), on_frame=stop)
    assert len(calls) == 2


def test_the_threshold_lies_between_two_groups() -> None:
    low, high = torch.linspace(0.1, 0.2, 50), torch.linspace(0.8, 0.9, 9)
    assert 0.2 < otsu(torch.cat([low, high])) < 0.8
    assert otsu(torch.zeros(4)) > 0


def test_predictions_differ_by_the_norm_over_channels() -> None:
    edit, source = torch.zeros(1, 4, 5, 5), torch.zeros(1, 4, 5, 5)
    edit[:, :2, 2, 2] = torch.tensor([3.0, 4.0])
    found = disagreement(edit, source)
    assert found[0, 2, 2] == pytest.approx(5 / 9)
    assert found[0, 0, 0] == 0


def inversion(levels: list[float]) -> Inversion:
    latents = torch.zeros(len(levels), 1, 4, 8, 8)
    return Inversion(torch.tensor(levels), latents, None, "", len(levels) - 1, "normal")


def test_steps_are_chosen_by_their_noise() -> None:
    levels = [14.6, 6.5, 5.0, 3.0, 2.6, 1.6, 1.2, 0.6, 0.0]
    assert compared_steps(inversion(levels), Parameterization()) == [1, 4, 6]
    assert compared_steps(inversion([14.6, 0.0]), Parameterization()) == [0]
    flow = [level / (1 + level) for level in levels]
    assert compared_steps(inversion(flow), Parameterization(flow=True)) == [1, 4, 6]
