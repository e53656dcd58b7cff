"""What a user asks `run.py demo` for: a clip, prompts and a checkpoint of their own.

It is looked over with the standard library alone, before anything is installed or started.
"""

from __future__ import annotations

import argparse
import json
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoint import (
    EMBEDDED,
    FLUX,
    OTHER,
    SD1,
    SD2,
    SD3,
    SDXL,
    Checkpoint,
    CheckpointError,
    find_checkpoint,
)
from .comfyui.workflow import Json, Prompt, WorkflowError
from .graphs.columns import ColumnError, Columns
from .needs import ROOT

WORKFLOWS = ROOT / "workflows"
# A checkpoint takes the template of its family: size, steps and guidance fit it.
TEMPLATES: Mapping[str, str] = {
    EMBEDDED: "quickstart",
    SD1: "sd15_pnp",
    SD2: "sd15_pnp",
    SDXL: "sdxl",
    SD3: "sd35",
    FLUX: "flux",
    OTHER: "sd15_pnp",
}
# Where the contents of video files begin so, and at which byte.
SIGNATURES = (
    (4, (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")),
    (0, (b"\x1a\x45\xdf\xa3", b"RIFF", b"FLV", b"OggS", b"GIF8", b"\x30\x26\xb2\x75")),
    (0, (b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"\x47")),
)
# Which of a checkpoint's three outputs each output of a loader is.
LOADERS: Mapping[str, tuple[int, ...]] = {
    "TokenFlowLoadDemoModel": (0, 1, 2),
    "CheckpointLoaderSimple": (0, 1, 2),
    "UNETLoader": (0,),
    "CLIPLoader": (1,),
    "DualCLIPLoader": (1,),
    "TripleCLIPLoader": (1,),
    "VAELoader": (2,),
}
FOLDER = "tokenflow_demo"
LENGTH = "Frames to edit"  # title of the node that cuts a template's clip


class WantedError(ValueError):
    """What is asked for cannot be done; the message says why and what to do."""


@dataclass(frozen=True)
class Wanted:
    """What is to be done with which clip.

    Attributes:
        workflow: The file that is run.
        clip: A video to be edited, None for the workflow's own.
        prompt: What the edit is to show, None for what the workflow says.
        source: What the clip shows, None for what the workflow says.
        frames: How many of the clip's first frames are edited, None for as many as the workflow
            says.
        checkpoint: The model, None for what the workflow loads.
    """

    workflow: Path
    clip: Path | None = None
    prompt: str | None = None
    source: str | None = None
    frames: int | None = None
    checkpoint: Checkpoint | None = None

    @classmethod
    def read(cls, options: argparse.Namespace, comfyui: Path | None) -> Wanted:
        """Reads what the command line asks for, and looks it over.

        Args:
            options: Of `run.py demo`.
            comfyui: The folder of the ComfyUI, None while there is none.

        Returns:
            What is wanted.

        Raises:
            WantedError: If a file is missing or is none of its kind, or a prompt is missing.
        """
        clip, prompt, source = options.clip, options.prompt, options.source_prompt
        if clip:
            check_clip(clip)
        for name, given, what in (
            ("--prompt", prompt, "what the edit is to show"),
            ("--source-prompt", source, "what the clip shows"),
        ):
            if (given is not None or clip) and not (given or "").strip():
                raise WantedError(f"{name} is missing: say {what}, e.g. {name} 'a wolf in snow'.")
        checkpoint = None
        if options.checkpoint:
            try:
                checkpoint = find_checkpoint(options.checkpoint, comfyui)
            except CheckpointError as error:
                raise WantedError(f"--checkpoint: {error}") from error
            check_whole(checkpoint)
        template = TEMPLATES[checkpoint.family if checkpoint else EMBEDDED]
        workflow = options.workflow or WORKFLOWS / f"{template}.json"
        if not workflow.is_file():
            raise WantedError(f"--workflow: there is no file {workflow}.")
        return cls(
            workflow.absolute(),
            clip.absolute() if clip else None,
            prompt,
            source,
            options.frames,
            checkpoint,
        )

    def words(self) -> list[str]:
        """Returns the command line that asks for the same, from any folder."""
        given = {
            "--workflow": self.workflow,
            "--clip": self.clip,
            "--prompt": self.prompt,
            "--source-prompt": self.source,
            "--frames": self.frames,
            "--checkpoint": self.checkpoint and self.checkpoint.path,
        }
        return [f"{name}={value}" for name, value in given.items() if value is not None]

    @property
    def own(self) -> bool:
        """Whether the workflow is changed."""
        return any((self.clip, self.prompt, self.source, self.frames, self.checkpoint))

    @property
    def made_up(self) -> bool:
        """Whether the embedded model edits a clip that is not of its world."""
        return self.workflow == WORKFLOWS / "quickstart.json" and (
            self.checkpoint is None or self.checkpoint.family == EMBEDDED
        )

    @property
    def clip_name(self) -> str:
        """What the clip is called in ComfyUI's input folder."""
        assert self.clip
        return f"own_clip{self.clip.suffix.lower()}"

    @property
    def checkpoint_name(self) -> str:
        """What the checkpoint is called among ComfyUI's."""
        assert self.checkpoint
        return self.checkpoint.path.name

    def length(self, workflow: Json) -> int:
        """Finds how many of the clip's first frames a workflow edits.

        Args:
            workflow: As the editor saves it.

        Returns:
            The number, 0 where it does not say, and may be all.
        """
        for node in workflow.get("nodes", []):
            if node.get("title") == LENGTH and node["type"] == "ImageFromBatch":
                return int(node["widgets_values"][1])
        return 0

    def offered(self, folder: Path) -> tuple[str, ...]:
        """Makes the checkpoint one of ComfyUI's, wherever it lies, by a link.

        Args:
            folder: Where the link goes.

        Returns:
            Options of ComfyUI's command line.

        Raises:
            WantedError: If no link can be made.
        """
        if not self.checkpoint or self.checkpoint.family == EMBEDDED:
            return ()
        models, listed = folder / "checkpoints", folder / "models.yaml"
        models.mkdir(parents=True, exist_ok=True)
        for link in models.iterdir():
            link.unlink()
        try:
            (models / self.checkpoint_name).symlink_to(self.checkpoint.path)
        except OSError as error:
            raise WantedError(
                f"cannot link {self.checkpoint.path} ({error}). Put it into ComfyUI's "
                "models/checkpoints and give its name there."
            ) from error
        # JSON is YAML.
        listed.write_text(json.dumps({FOLDER: {"checkpoints": str(models.absolute())}}))
        return ("--extra-model-paths-config", str(listed.absolute()))

    def filled(self, prompt: Prompt, info: Json) -> Prompt:
        """Sets in a workflow's prompt what is asked for.

        Args:
            prompt: The API prompt, which is changed.
            info: The server's node definitions.

        Returns:
            The prompt.

        Raises:
            WorkflowError: If the workflow has no place for it, or several.
        """
        columns = Columns(prompt, info)
        values: dict[str, tuple[str, Any]] = {
            "clip": ("--clip", self.clip and self.clip_name),
            "prompt": ("--prompt", self.prompt),
            "source": ("--source-prompt", self.source),
            f"{LENGTH}.length": ("--frames", self.frames),
        }
        for column, (option, value) in values.items():
            if value is None:
                continue
            try:
                for place in columns.places(column):
                    prompt[place.node]["inputs"][place.input] = value
            except ColumnError as error:
                raise WorkflowError(f"{option} sets nothing in this workflow: {error}") from error
        if self.checkpoint and self.checkpoint.family != EMBEDDED:
            _load(prompt, self.checkpoint_name)
        return prompt


def check_clip(path: Path) -> None:
    """Checks that a file is a video, by its name and its first bytes. Raises WantedError."""
    if not path.is_file():
        kind = "a folder, not a video" if path.is_dir() else "not there"
        raise WantedError(f"--clip: {path} is {kind}. Name a video file.")
    kind = mimetypes.guess_type(path.name)[0] or ""
    named = kind.startswith("video/") or path.suffix.lower() in (".mkv", ".webm", ".gif")
    with path.open("rb") as file:
        begin = file.read(16)
    if not named or not any(begin[at:].startswith(starts) for at, starts in SIGNATURES):
        raise WantedError(
            f"--clip: {path} is not a video. Name an mp4, mov, mkv, webm or avi file."
        )


def check_whole(checkpoint: Checkpoint) -> None:
    """Checks that a checkpoint can be loaded as one. Raises WantedError."""
    if checkpoint.family == EMBEDDED:
        embedded = ROOT / "demo" / "model.safetensors"
        if not checkpoint.path.samefile(embedded):
            raise WantedError(
                f"--checkpoint: {checkpoint.path} has the embedded model's layout, which ComfyUI "
                f"does not load. Name {embedded}, or leave the option out."
            )
    elif checkpoint.lacks:
        raise WantedError(
            f"--checkpoint: there is no {' and no '.join(checkpoint.lacks)} in {checkpoint.path}. "
            "Name a whole checkpoint, or load the parts in a workflow of yours by --workflow."
        )


def _load(prompt: Prompt, name: str) -> None:
    """Puts one checkpoint in the place of everything that loads a model."""
    loaders = {n: LOADERS[e["class_type"]] for n, e in prompt.items() if e["class_type"] in LOADERS}
    if not loaders:
        raise WorkflowError("--checkpoint sets nothing in this workflow: it loads no model")
    node = next(iter(loaders))
    for entry in prompt.values():
        for input, value in entry["inputs"].items():
            if isinstance(value, list) and value and value[0] in loaders:
                entry["inputs"][input] = [node, loaders[value[0]][value[1]]]
    for other in loaders:
        del prompt[other]
    prompt[node] = {
        "class_type": "CheckpointLoaderSimple",
        "inputs": {"ckpt_name": name},
        "_meta": {"title": f"Load Checkpoint {name}"},
    }
