"""Compare Clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ...host.progress import Progress
from ...host.video.clips import Clip, in_step
from ...host.video.writing import USUAL_RATE, held_video, written_video
from ...reporting.grid import captioned_grid, strip
from ...tokenflow_ops import spread
from ..inputs import before_run, checked
from ..schema import clip_input, said, schema, shown_frames
from .clips import called, check_names, edit_inputs, like_source, names_input, parsed

NAME = "Compare Clips"
NEEDS = ("matplotlib",)


class CompareClips(io.ComfyNode):
    """Source and edits side by side; the host's own grids write no captions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "CompareClips",
            NAME,
            "Puts the source and its edits into one grid, frame by frame, each with its name "
            "below: for Create Video or Save Image.",
            ["grid", "side by side", "captions", "compare videos", "contact sheet"],
            advanced=("columns",),
            inputs=[
                clip_input("source", tooltip="The source frames: the first cell."),
                *edit_inputs(),
                names_input(),
                io.Int.Input(
                    "columns",
                    default=0,
                    min=0,
                    max=16,
                    optional=True,
                    tooltip="Clips in a row. 0: about as many as there are rows.",
                ),
                io.Int.Input(
                    "moments",
                    default=0,
                    min=0,
                    max=64,
                    optional=True,
                    tooltip="Above 0: one picture instead of a clip, with a row for each clip and "
                    "so many of its frames side by side.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="grid",
                    tooltip="As many frames as a clip has, or one with moments; of VIDEOs with "
                    "more than 64 so many, spread evenly. Cells without a clip are black.",
                ),
                io.Video.Output(
                    display_name="video",
                    tooltip="All frames of the grid, with the source's frame rate: for Save Video.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, names: str | None = None) -> bool | str:
        return before_run(
            cls, {"names": names}, lambda: check_names(NAME, parsed(names or "")), NEEDS
        )

    @classmethod
    @checked(needs=NEEDS)
    def execute(
        cls,
        source: Any,
        edited: Any,
        reference: Any = None,
        names: str = "",
        columns: int = 0,
        moments: int = 0,
        **more_edits: Any,
    ) -> io.NodeOutput:
        clips, words = like_source(
            NAME, {"source": source, "edited": edited, "reference": reference, **more_edits}
        )
        named = called(NAME, clips, names)
        rate = clips["source"].rate or Fraction(USUAL_RATE)
        if moments:
            chosen = spread(len(clips["source"]), moments)
            strips = {name: strip(clip[chosen], moments) for name, clip in named.items()}
            grid = captioned_grid(strips, 1)
            return io.NodeOutput(grid, held_video(grid, rate), ui=said(words))
        if not any(clip.streamed for clip in clips.values()):
            grid = _joined(_grids(named, columns), len(clips["source"]))
            return io.NodeOutput(grid, held_video(grid, rate), ui=said(words))
        shown = shown_frames(len(clips["source"]))
        few = captioned_grid({name: clip[shown] for name, clip in named.items()}, columns)
        frames = (_even(frame) for grid in _grids(named, columns) for frame in grid)
        return io.NodeOutput(few, written_video(NAME, frames, rate), ui=said(words))


def _grids(clips: Mapping[str, Clip], columns: int) -> Iterator[Tensor]:
    """The grid, a few frames at a time."""
    progress = Progress(len(next(iter(clips.values()))))
    for block in in_step(clips):
        grid = captioned_grid(block, columns)
        yield grid
        progress(len(grid))


def _joined(grids: Iterator[Tensor], count: int) -> Tensor:
    """All frames of the grid, of which there are so many; a list would be held twice."""
    whole, first = torch.empty(0), 0
    for grid in grids:
        if not first:
            whole = torch.empty(count, *grid.shape[1:])
        whole[first : first + len(grid)] = grid
        first += len(grid)
    return whole


def _even(frame: Tensor) -> Tensor:
    """A frame (H, W, 3) with a black row or column more where H.264 needs one."""
    height, width = frame.shape[:2]
    return torch.nn.functional.pad(frame, (0, 0, 0, width % 2, 0, height % 2))
