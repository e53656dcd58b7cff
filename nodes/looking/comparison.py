"""Compare Clips."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ...reporting.grid import captioned_grid, strip
from ..inputs import before_run, checked
from ..schema import said, schema
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
                io.Image.Input("source", tooltip="The source frames: the first cell."),
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
                    tooltip="As many frames as a clip has, or one with moments. Cells "
                    "without a clip are black.",
                )
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
        source: Tensor,
        edited: Tensor,
        reference: Tensor | None = None,
        names: str = "",
        columns: int = 0,
        moments: int = 0,
        **more_edits: Tensor | None,
    ) -> io.NodeOutput:
        clips, words = like_source(
            NAME, {"source": source, "edited": edited, "reference": reference, **more_edits}
        )
        named = called(NAME, clips, names)
        if moments:
            named, columns = {name: strip(clip, moments) for name, clip in named.items()}, 1
        return io.NodeOutput(captioned_grid(named, columns), ui=said(words))
