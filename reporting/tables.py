"""Tables as IMAGE tensors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor

from ..tokenflow_ops.libraries import library
from .plots import drawn

# A cell's text, and whether it is bold.
Cell = tuple[str, bool]

# In pixels: rows, letters, the space between columns and around all.
ROW, LETTER, SPACE, MARGIN = 46, 24, 36, 24
LONGEST = 40  # letters of a cell
DPI = 100


def draw_table(head: Sequence[str], groups: Sequence[Sequence[Sequence[Cell]]]) -> Tensor:
    """Draws a table as papers have them: names to the left, figures to the right.

    There are rules above, below and between head and groups of rows.

    Args:
        head: The columns' heads.
        groups: Groups of rows of cells; groups without rows are left out.

    Returns:
        (1, H, W, 3) float32 in [0, 1], as wide as its texts are.
    """
    groups = [group for group in groups if group]
    rows = [[(text, False) for text in head], *(row for group in groups for row in group)]
    matplotlib = library("matplotlib")
    figure = matplotlib.figure.Figure(dpi=DPI)
    canvas = matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
    texts = [[_text(figure, cell) for cell in row] for row in rows]
    renderer = canvas.get_renderer()
    widths = [
        max(text.get_window_extent(renderer).width for text in column)
        for column in zip(*texts, strict=True)
    ]
    rights = list(
        accumulate(widths, lambda right, width: right + SPACE + width, initial=MARGIN - SPACE)
    )[1:]
    width, height = round(rights[-1]) + MARGIN, ROW * len(rows) + 2 * MARGIN
    figure.set_size_inches(width / DPI, height / DPI)
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            text.set(
                x=rights[j] if j else MARGIN,
                y=height - MARGIN - ROW * (i + 0.5),
                horizontalalignment="right" if j else "left",
            )
    ends = list(accumulate((1, *map(len, groups)), initial=0))
    for end in ends:
        _rule(
            figure, width, height - MARGIN - ROW * end, 1.6 if end in (ends[0], ends[-1]) else 0.8
        )
    return drawn(canvas)


def _text(figure: Any, cell: Cell) -> Any:
    """A cell that has no place yet; places are in pixels from the lower left."""
    content, bold = cell
    return figure.text(
        0,
        0,
        content if len(content) <= LONGEST else content[: LONGEST - 1] + "…",
        size=LETTER * 72 / DPI,
        weight="bold" if bold else "normal",
        verticalalignment="center",
        parse_math=False,
        transform=library("matplotlib").transforms.IdentityTransform(),
    )


def _rule(figure: Any, width: int, y: float, thickness: float) -> None:
    matplotlib, ends = library("matplotlib"), [MARGIN / 2, width - MARGIN / 2]
    pixels = matplotlib.transforms.IdentityTransform()
    figure.add_artist(
        matplotlib.lines.Line2D(ends, [y, y], transform=pixels, color="black", linewidth=thickness)
    )
