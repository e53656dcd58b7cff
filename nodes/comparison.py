"""Compare Clips."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..host.grid import captioned_grid
from .clips import called, check_like_source, edit_inputs, names_input
from .schema import schema

NAME = "Compare Clips"


class CompareClips(io.ComfyNode):
    """Source and edits side by side; the host's own grids write no captions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "CompareClips",
            NAME,
            "Puts the source and its edits into one grid, frame by frame, each with its name below: for Create Video or Save Image.",
            ["grid", "side by side", "captions", "compare videos", "contact sheet"],
            inputs=[
                io.Image.Input("source", tooltip="The source frames: the first cell."),
                *edit_inputs(),
                names_input(),
                io.Int.Input(
                    "columns", default=0, min=0, max=16, optional=True, tooltip="Clips in a row. 0: about as many as there are rows."
                ),
            ],
            outputs=[io.Image.Output(display_name="grid", tooltip="As many frames as a clip has. Cells without a clip are black.")],
        )

    @classmethod
    def execute(
        cls,
        source: Tensor,
        edited: Tensor,
        reference: Tensor | None = None,
        names: str = "",
        columns: int = 0,
        **more_edits: Tensor | None,
    ) -> io.NodeOutput:
        clips = check_like_source(NAME, {"source": source, "edited": edited, "reference": reference, **more_edits})
        return io.NodeOutput(captioned_grid(called(NAME, clips, names), columns))
