"""Load Video from Folder."""

from __future__ import annotations

from comfy_api.latest import InputImpl, io, ui

from ...host.files.clip_folders import TABLE, FolderClip, clip_folders, folder_clips
from ...host.validation.errors import NodeError
from ..inputs import before_run, checked
from ..schema import schema

NAME = "Load Video from Folder"
MOST = 10**6  # clips


class LoadFromFolder(io.ComfyNode):
    """Takes Load Video's place: every queued run has the next clip of a folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "LoadFromFolder",
            NAME,
            "Loads one clip of a folder, and with every run the next: queue as many runs as there "
            f"are clips. A {TABLE} beside them gives each its prompts.",
            ["batch", "folder of videos", "many clips", "load video", "queue", "loop"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=clip_folders(),
                    tooltip="Folders with videos in the input folder, which itself is '.'. Press R "
                    "to read them again.",
                ),
                io.Int.Input(
                    "index",
                    default=0,
                    min=0,
                    max=MOST,
                    control_after_generate=True,
                    tooltip="Which clip, counted from 0; behind the last one it begins anew. With "
                    "'increment' below every run takes the next.",
                ),
            ],
            outputs=[
                io.Video.Output(
                    display_name="video", tooltip="For Get Video Components or Encode Video."
                ),
                io.String.Output(
                    display_name="name",
                    tooltip="The clip's name without its ending, for the prefix of Save Video.",
                ),
                io.String.Output(
                    display_name="source",
                    tooltip=f"What the clip shows, by the column source of {TABLE}.",
                ),
                io.String.Output(
                    display_name="prompt",
                    tooltip=f"What the edit is to show, by the column prompt of {TABLE}.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None, index: int | None = None) -> bool | str:
        """Instead of the host's look into the list, which would refuse folders that came since.

        `folder` is None if it is linked.
        """

        def check() -> None:
            if folder is not None:
                folder_clips(NAME, "folder", folder)

        return before_run(cls, {"index": index}, check)

    @classmethod
    def fingerprint_inputs(cls, folder: str, index: int = 0) -> tuple[str, int, int, str, str]:
        """Another file of the same name is loaded again, and so is one with another prompt."""
        try:
            _, clip = _chosen(folder, index)
            found = clip.path.stat()
        except (NodeError, OSError):  # told when the node runs
            return "", 0, 0, "", ""
        return str(clip.path), found.st_size, found.st_mtime_ns, clip.source, clip.prompt

    @classmethod
    @checked("folder")
    def execute(cls, folder: str, index: int = 0) -> io.NodeOutput:
        text, clip = _chosen(folder, index)
        return io.NodeOutput(
            InputImpl.VideoFromFile(str(clip.path)),
            clip.path.stem,
            clip.source,
            clip.prompt,
            ui=ui.PreviewText(text),
        )


def _chosen(folder: str, index: int) -> tuple[str, FolderClip]:
    """What is said of a clip, and the clip."""
    clips = folder_clips(NAME, "folder", folder)
    number = index % len(clips)
    return f"{number + 1} of {len(clips)}: {clips[number].path.name}", clips[number]
