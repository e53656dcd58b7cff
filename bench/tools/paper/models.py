"""A user's checkpoint by the host's loaders, and the host's CLIP models for the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.sd
import comfy.utils
import folder_paths
from tokenflow_pack.host.files.demo_model import UNET, load_demo_model
from tokenflow_pack.host.measuring.clip_scores import frame_embedding, prompt_embedding
from tokenflow_pack.host.measuring.optical_flow import DIS, flow_choices
from tokenflow_pack.host.validation.errors import NodeError
from torch import Tensor

from bench.tools.case import Loaded
from launch.checkpoint import EMBEDDED, Checkpoint, CheckpointError, read_checkpoint, read_shapes

NAME = "bench paper"
# Ends of the names of the projections into CLIP's common space, and their widths: ViT-H, ViT-bigG.
PICTURES, TEXTS = ("visual_projection.weight", "visual.proj"), ("text_projection.weight",)
WIDTHS = (1024, 1280)


@dataclass(frozen=True)
class Files:
    """What a model is loaded from: the checkpoint; of one that holds the diffusion model alone also
    its text encoders, the host's name of their kind, and the autoencoder.
    """

    checkpoint: str
    text_encoders: tuple[str, ...] = ()
    text_kind: str = "stable_diffusion"
    vae: str = ""

    def record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Judges:
    """What the scores are made with. flow: one of the pack's names of optical flows. vision, text:
    files of CLIP's two halves; empty for none, text also for the checkpoint's own.
    """

    flow: str = DIS
    vision: str = ""
    text: str = ""

    def __str__(self) -> str:
        named = {"flow": self.flow, "CLIP": Path(self.vision).name, "text": Path(self.text).name}
        return ", ".join(f"{what} {name}" for what, name in named.items() if name)


def part_files(
    checkpoint: Checkpoint, text_encoders: Iterable[str], text_kind: str, vae: str
) -> Files:
    """Where a model's parts are. text_encoders, vae: names in the host's folders, none for what is
    in the checkpoint.

    Raises: ValueError for what is not there, or not known.
    """
    encoders = tuple(_needed("text_encoders", name) for name in text_encoders)
    if not hasattr(comfy.sd.CLIPType, text_kind.upper()):
        known = ", ".join(kind.name.lower() for kind in comfy.sd.CLIPType)
        raise ValueError(f"--text-kind {text_kind} is not known to ComfyUI, which knows {known}")
    files = Files(str(checkpoint.path), encoders, text_kind, _needed("vae", vae) if vae else "")
    given = {"text encoder": encoders, "autoencoder": vae}
    lacks = [what for what in checkpoint.lacks if not given[what]]
    if lacks and checkpoint.family != EMBEDDED:
        raise ValueError(
            f"there is no {' and no '.join(lacks)} in {checkpoint.path}. Name them by "
            "--text-encoders, --text-kind and --vae."
        )
    return files


def load_model(files: Files) -> Loaded:
    """Loads a checkpoint.

    Raises: ValueError for a file that the host, or the pack, does not take.
    """
    path = Path(files.checkpoint)
    if path.suffix != ".ckpt" and read_checkpoint(path).family == EMBEDDED:
        return Loaded(*load_demo_model(UNET, path))
    embeddings = folder_paths.get_folder_paths("embeddings")
    if files.text_encoders or files.vae:
        model = comfy.sd.load_diffusion_model(str(path))
        clip = vae = None
    else:
        try:
            model, clip, vae = comfy.sd.load_checkpoint_guess_config(
                str(path), embedding_directory=embeddings
            )[:3]
        except RuntimeError as error:
            raise ValueError(f"ComfyUI does not know what {path} is") from error
    if files.text_encoders:
        kind = getattr(comfy.sd.CLIPType, files.text_kind.upper())
        clip = comfy.sd.load_clip([*files.text_encoders], embeddings, kind)
    if files.vae:
        weights, metadata = comfy.utils.load_torch_file(files.vae, return_metadata=True)
        vae = comfy.sd.VAE(sd=weights, metadata=metadata)
    lacks = {
        "text encoder (--text-encoders)": clip,
        "autoencoder (--vae)": getattr(vae, "first_stage_model", None),
    }
    missing = [what for what, found in lacks.items() if found is None]
    if model is None or missing:
        raise ValueError(f"there is no {' and no '.join(missing) or 'model'} in {path}")
    return Loaded(model, clip, vae)


def find_judges(flow: str = "", vision: str = "", text: str = "") -> Judges:
    """What of the host's folders the scores can be made with, or what of it is named.

    Raises: ValueError for a name that is not there.
    """
    return Judges(_flow(flow), *_clips(vision, text))


def _flow(asked: str) -> str:
    there = [name for name in flow_choices() if name == DIS or _path("optical_flow", name)]
    if asked and asked not in there:
        raise ValueError(f"there is no optical flow {asked}. There is: {', '.join(there)}")
    # Of torchvision's two the large one, which comes first, is the paper's kind.
    return asked or next((name for name in there if name != DIS), DIS)


def _clips(vision: str, text: str) -> tuple[str, str]:
    visions = _projecting("clip_vision", PICTURES, [vision] if vision else None)
    texts = _projecting("text_encoders", TEXTS, [text] if text else None)
    for path, width in visions.items():
        for other, found in texts.items():
            if found == width in WIDTHS:
                return path, other
    return next(iter(visions), ""), text and next(iter(texts), "")


def _projecting(kind: str, ends: tuple[str, ...], names: Iterable[str] | None) -> dict[str, int]:
    """{file of a kind: width of the space that it projects into}."""
    found = {}
    for name in folder_paths.get_filename_list(kind) if names is None else names:
        path = _needed(kind, name)
        try:
            shapes = read_shapes(Path(path))
        except (CheckpointError, OSError):
            shapes = {}
        widths = [min(shape) for key, shape in shapes.items() if key.endswith(ends) and shape]
        if widths or names is not None:
            found[path] = widths[0] if widths else 0
    return found


def _needed(kind: str, name: str) -> str:
    path = _path(kind, name)
    if path is None:
        raise ValueError(f"there is no file {name} in ComfyUI's folder {kind}")
    return path


def _path(kind: str, name: str) -> str | None:
    path: str | None = folder_paths.get_full_path(kind, name)
    return path


@dataclass(frozen=True)
class Scorers:
    """embed: of frames, None without a vision model. prompt: of prompts, None without a text
    encoder that fits.
    """

    embed: Callable[[Tensor], Tensor] | None = None
    prompt: Callable[[str], Tensor] | None = None


def load_scorers(judges: Judges, own: Any) -> Scorers:
    """own: the checkpoint's text encoder, for where no other one is named; SDXL's and SD 2.x's
    may fit.
    """
    if not judges.vision:
        return Scorers()
    vision = comfy.clip_vision.load(judges.vision)
    embed = frame_embedding(NAME, "--clip-vision", vision)
    text = comfy.sd.load_clip([judges.text]) if judges.text else own

    def prompt(words: str) -> Tensor:
        return prompt_embedding(NAME, "--clip-text", text, words, vision)

    try:
        prompt("a dog")
    except NodeError:
        if judges.text:
            raise
        return Scorers(embed)
    return Scorers(embed, prompt)
