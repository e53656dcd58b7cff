"""Compare Clips: every clip in its cell, every name below it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.nodes.looking.comparison import NAME, CompareClips
from tokenflow_pack.reporting.grid import caption
from torch import Tensor

from ..helpers import call

HEIGHT, WIDTH = 24, 64
# With an alpha channel.
CLIPS = torch.rand(5, 2, HEIGHT, WIDTH, 4, generator=torch.Generator().manual_seed(0))


def compared(*clips: Tensor, **inputs: Any) -> Tensor:
    grid, _ = call(CompareClips.execute, *clips, **inputs)
    return grid


def cells(grid: Tensor, rows: int, columns: int) -> list[Tensor]:
    """Clip and bar of every cell, (N, h + bar, w, 3), row after row."""
    assert grid.shape[1] % rows == 0
    assert grid.shape[2] == columns * WIDTH
    return [cell for row in grid.chunk(rows, 1) for cell in row.chunk(columns, 2)]


def test_clips_are_in_their_cells_to_the_bit_and_the_last_cells_are_black() -> None:
    more = {"edit_7": CLIPS[4], "reference": CLIPS[2], "edit_3": CLIPS[3]}  # in no order
    for columns, shape in ((0, (2, 3)), (2, (3, 2)), (16, (1, 5))):
        grid = compared(CLIPS[0], CLIPS[1], **more, columns=columns)
        found = cells(grid, *shape)
        assert (found[0].shape[1] - HEIGHT) % 2 == 0
        for clip, cell in zip(CLIPS, found, strict=False):
            assert torch.equal(cell[:, :HEIGHT], clip[..., :3])
            bar = cell[:, HEIGHT:]
            assert bar.max() == 1
            assert torch.equal(bar[0], bar[1])
        for cell in found[5:]:
            assert not cell.any()
        assert len(found) - 5 == shape[0] * shape[1] - 5


def test_a_strip_is_one_picture_with_moments_from_the_first_frame_to_the_last() -> None:
    long = torch.rand(2, 7, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(1))
    for moments, chosen in ((1, [0]), (3, [0, 3, 6]), (64, list(range(7)))):
        found = compared(long[0], long[1], moments=moments, columns=2)
        assert found.shape[::2] == (1, len(chosen) * WIDTH)
        for clip, row in zip(long, found[0].chunk(2, 0), strict=True):
            assert torch.equal(row[:HEIGHT], torch.cat([clip[i] for i in chosen], 1))
            assert row[HEIGHT:].max() == 1


def test_every_clip_has_its_name() -> None:
    def bars(names: str) -> list[Tensor]:
        return [
            cell[0, HEIGHT:]
            for cell in cells(
                compared(CLIPS[0], CLIPS[1], reference=CLIPS[2], names=names, columns=3), 1, 3
            )
        ]

    first, second = bars("one\ntwo"), bars("one, three")
    height = first[0].shape[0]
    for bar, name in zip(first, ("source", "one", "two"), strict=True):
        assert torch.equal(bar, caption(name, WIDTH, height, 12))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[2], second[2])
    assert ((first[1] > 0) & (first[1] < 1)).any()  # smooth edges


def test_long_names_shrink_and_are_then_cut() -> None:
    def extent(name: str, size: int = 20) -> Tensor:
        """Rows and columns that the letters cover."""
        rows, columns = caption(name, 100, 32, size)[..., 0].nonzero().T
        return torch.stack([rows.max() - rows.min(), columns.max() - columns.min()]) + 1

    short, long, longer = (extent("H" * n) for n in (4, 7, 40))
    assert long[0] < short[0]
    assert longer[0] == long[0]
    assert short[1] < long[1] < 100
    assert longer[1] < 100
    assert torch.equal(caption("H" * 40, 100, 32, 20), caption("H" * 50, 100, 32, 20))
    assert extent("H" * 4, 12)[0] < short[0]
    assert caption("anything", 3, 32, 20).shape == (32, 3, 3)


def test_letters_grow_with_the_frames() -> None:
    large = torch.zeros(1, 512, 512, 3)
    bar = compared(large, large, columns=2).shape[1] - 512
    assert bar == pytest.approx(0.08 * 512, abs=2)


@pytest.mark.parametrize(
    ("inputs", "socket", "words"),
    [
        ({"reference": CLIPS[2, :1]}, "edit_2", ("1 frames, the source has 2", "equal length")),
        (
            {"edit_12": CLIPS[2, :, :8]},
            "edit_12",
            ("64 x 8 pixels, the source's are 64 x 24", "equal size"),
        ),
        ({"names": "a\nb"}, "names", ("2 names for 1 edits",)),
        ({"names": "source"}, "names", ("a name twice",)),
    ],
)
def test_what_fits_no_grid_is_refused(
    inputs: dict[str, Any], socket: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(NodeError) as error:
        call(CompareClips.execute, CLIPS[0], CLIPS[1], **inputs)
    assert str(error.value).startswith(f"{NAME}, input '{socket}': ")
    for word in words:
        assert word in str(error.value)
