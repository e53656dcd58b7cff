"""Save Inversion and Load Inversion."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import comfy.samplers
import folder_paths
import torch
from comfy import model_management
from comfy.cli_args import args
from comfy_api.latest import io, ui

from ..host.families.latents import as_latent, from_latent
from ..host.files.folders import new_path, stored_names, stored_path
from ..host.validation.checks import (
    check_inverted_clip,
    check_latents,
    check_model,
    check_same_model,
    noise_mask,
    others_kept,
)
from ..host.validation.errors import NodeError
from ..host.validation.prompts import check_prompts
from ..tokenflow_ops import Inversion
from ..tokenflow_ops.storage.prompt import Prompt
from ..tokenflow_ops.storage.stored import StoredInversionError, read_inversion, write_inversion
from .inputs import checked
from .schema import MASKED, InversionSocket, schema

SAVE, LOAD = "Save Inversion", "Load Inversion"


class SaveInversion(io.ComfyNode):
    """Keeps an inversion beyond the session, with the workflow as the host keeps it in pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "SaveInversion",
            SAVE,
            "Writes an inversion to a file in the output folder. Load Inversion reads it "
            "in place of DDIM Invert Video. Dropped on the page, the file opens the "
            "workflow it was made with.",
            ["store inversion", "write", "export", "cache", "keep", "noise"],
            inputs=[
                InversionSocket.Input(
                    "inversion",
                    tooltip="Of DDIM Invert Video, made with a plain prompt: "
                    "no ControlNet, no hooks.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="inversions/TokenFlow",
                    tooltip="Name in the output folder, with '/' for folders in it. %year%, "
                    "%month%, %day%, %hour%, %minute%, %second% are filled in; a number is added.",
                ),
            ],
            outputs=[],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    @checked()
    def execute(cls, inversion: Inversion, filename_prefix: str) -> io.NodeOutput:
        try:
            prompt = Prompt.of(inversion.conditioning)
        except TypeError as error:
            raise NodeError(
                SAVE,
                "inversion",
                f"a source prompt with {error}, which a file cannot hold.",
                "Invert with a plain prompt.",
            ) from error
        path = new_path(SAVE, "filename_prefix", filename_prefix)
        try:
            write_inversion(path, inversion, prompt, cls._workflow())
        except OSError as error:
            raise NodeError(
                SAVE,
                "filename_prefix",
                f"{path.name} could not be written ({error}).",
                "Make room on the disk, or choose another folder.",
            ) from error
        place = path.relative_to(os.path.abspath(folder_paths.get_output_directory()))
        text = (
            f"{place.as_posix()}: {inversion.frames} frames, {path.stat().st_size / 2**20:.1f} MiB"
        )
        written = ui.SavedResult(path.name, os.path.dirname(place.as_posix()), io.FolderType.output)
        return io.NodeOutput(ui={**ui.PreviewText(text).as_dict(), "inversions": [written]})

    @classmethod
    def _workflow(cls) -> dict[str, str]:
        """What the host keeps of the graph in the files it saves, unless it was told not to."""
        if args.disable_metadata or not cls.hidden:
            return {}
        more = cls.hidden.extra_pnginfo  # the client's, who may send anything
        known = {"prompt": cls.hidden.prompt, **(more if isinstance(more, dict) else {})}
        return {name: json.dumps(value) for name, value in known.items() if value}


class LoadInversion(io.ComfyNode):
    """Takes DDIM Invert Video's place.

    Model and prompt are inputs, not contents of the file: the outputs are those of DDIM Invert
    Video, its links can stay as they are, and everything is checked here. Nothing of a stranger's
    file reaches the host but two tensors of checked shape and range.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "LoadInversion",
            LOAD,
            "Reads an inversion that Save Inversion wrote, in place of DDIM Invert Video. Refuses "
            "files that are damaged or were made with another model, prompt or clip.",
            ["stored inversion", "read", "import", "cache", "reuse", "noise"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=stored_names(),
                    tooltip="Files of the input and output folders. Press R "
                    "to read the folders again.",
                ),
                io.Model.Input(
                    "model", tooltip="The model it was made with. A LoRA on top is fine."
                ),
                io.Conditioning.Input("positive", tooltip="The source prompt it was made with."),
                io.Latent.Input(
                    "latents",
                    optional=True,
                    tooltip="The source frames, encoded: the file is refused if it was made from "
                    "other frames. A noise mask on them takes the place of the file's.",
                ),
            ],
            outputs=[
                InversionSocket.Output(
                    display_name="inversion",
                    tooltip="The path from the frames to noise, for Extract SA Features.",
                ),
                io.Latent.Output(
                    display_name="noisy",
                    tooltip="The noisy end, to sample from with added noise disabled.",
                ),
                io.Sigmas.Output(
                    display_name="sigmas", tooltip="The noise levels downwards, for SamplerCustom."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        """Instead of the host's look into the list, which would refuse files that came since.

        `file` is None if it is linked.
        """
        try:
            return file is None or bool(stored_path(LOAD, "file", file))
        except NodeError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, file: str, **others: Any) -> tuple[int, int, int]:
        """Another file of the same name is loaded again.

        The host reads its files for that; these have gigabytes.
        """
        found = stored_path(LOAD, "file", file).stat()
        return found.st_ino, found.st_size, found.st_mtime_ns

    @classmethod
    @checked("file")
    def execute(
        cls, file: str, model: Any, positive: Any, latents: dict[str, Any] | None = None
    ) -> io.NodeOutput:
        check_model(LOAD, model)
        inversion, prompt = _read(stored_path(LOAD, "file", file))
        check_same_model(LOAD, model, inversion)
        check_prompts(LOAD, model, positive)
        _check_same_prompt(positive, prompt)
        latent_format = model.get_model_object("latent_format")
        channels = inversion.latents.shape[2]
        if channels != latent_format.latent_channels:
            raise NodeError(
                LOAD,
                "file",
                f"latents with {channels} channels, "
                f"the model takes {latent_format.latent_channels}.",
                "Invert the clip again.",
            )
        mask, others = inversion.mask, others_kept(latents or {})
        if latents is not None:
            check_inverted_clip(
                LOAD, from_latent(model, check_latents(LOAD, model, latents)), inversion
            )
            set_now = noise_mask(LOAD, latents, inversion.frames)
            mask = mask if set_now is None else set_now
        path = inversion.latents.to(model_management.intermediate_device())
        inversion = dataclasses.replace(inversion, latents=path, conditioning=positive, mask=mask)
        sigmas = inversion.sigmas
        text = (
            f"{inversion.frames} frames, inverted in {len(sigmas) - 1} steps "
            f"up to sigma {float(sigmas[0]):.2f}"
        )
        if mask is not None:
            text += f"\n{MASKED}"
        return io.NodeOutput(
            inversion,
            {**others, "samples": as_latent(model, path[0], sigmas[0])},
            sigmas.clone(),
            ui=ui.PreviewText(text),
        )


def _read(path: Path) -> tuple[Inversion, Prompt]:
    """Raises: NodeError for what is no stored inversion, or one that this ComfyUI cannot use."""
    try:
        inversion, prompt = read_inversion(
            path, model_management.get_free_memory(torch.device("cpu"))
        )
    except StoredInversionError as error:
        raise NodeError(LOAD, "file", error.found, error.remedy) from error
    if inversion.scheduler not in comfy.samplers.SCHEDULER_NAMES:
        raise NodeError(
            LOAD,
            "file",
            f"the scheduler {inversion.scheduler!r}, which this ComfyUI lacks.",
            "Install the pack that brings it, or invert again.",
        )
    return inversion, prompt


def _check_same_prompt(positive: Any, prompt: Prompt) -> None:
    try:
        same = prompt.is_same(Prompt.of(positive))
    except TypeError as error:
        raise NodeError(
            LOAD,
            "positive",
            f"a prompt with {error}, which no stored inversion has.",
            "Connect the plain source prompt.",
        ) from error
    if not same:
        raise NodeError(
            LOAD,
            "positive",
            "this prompt is not the one the source was inverted with.",
            "Connect the source prompt; dropped on the page, the file opens the "
            "workflow it was made with.",
        )
