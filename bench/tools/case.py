"""A clip of the embedded model's world, and edits of it through the pack's own nodes.

Beside them everything that is measured on these edits.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import judge
import make_clip
import torch
from comfy_extras.nodes_mask import ImageCompositeMasked
from scenes import CLIP_LENGTH, SURFACES, Scene, demo_clip, true_flow
from tokenflow_pack.host.families import backbone_of, unet
from tokenflow_pack.host.files.demo_model import FEW, MODELS, UNET, load_demo_model
from tokenflow_pack.modes import MODES
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.edit_mask import FindEditMask
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.injection import PlugAndPlay
from tokenflow_pack.nodes.inversion import InvertVideo
from tokenflow_pack.nodes.sampling.sampler import Sampler
from tokenflow_pack.tokenflow_ops.measuring.metrics import sharpness, source_motion, warp_errors
from torch import Tensor

import nodes
from bench.tools.known import Known, decibels

ROOT = Path(__file__).resolve().parents[2]

CLIP_FRAMES = 24
FEW_STEPS = 30  # below, an extrapolated inversion needs its further iteration


@dataclass(frozen=True)
class Settings:
    """How clips are inverted and edited; interval: frames per keyframe. model: one of MODELS."""

    frames: int = 16
    steps: int = 12
    cfg: float = 5.0
    interval: int = 8
    model: str = UNET

    def __str__(self) -> str:
        words = (
            f"{self.frames} frames, {self.steps} steps, cfg {self.cfg:g}, interval {self.interval}"
        )
        return words if self.model == UNET else f"{words}, {self.model}"

    @classmethod
    def add_to(cls, parser: argparse.ArgumentParser) -> None:
        """An option for each."""
        for name, default in vars(cls()).items():
            choices = MODELS if name == "model" else None
            parser.add_argument(f"--{name}", type=type(default), default=default, choices=choices)

    @classmethod
    def of(cls, options: argparse.Namespace) -> Settings:
        return cls(**{name: getattr(options, name) for name in vars(cls())})


@dataclass(frozen=True)
class Figures:
    """What is measured on a clip. warp, true: warp error x1e-3 along DIS flow of the source and
    along the world's true flow.

    fidelity: how sure a classifier of this world's surfaces is of the prompt's, mean over the
    frames. structure: overlap (IoU) of the pixels of the asked surface with the object's true
    outline. distance: PSNR to the ideal edit of all but the inside of the object, in dB. drift: as
    of `Known.drift`, in 1/255. These are None where nothing is asked for.
    """

    warp: float
    true: float
    sharpness: float
    fidelity: float | None = None
    structure: float | None = None
    distance: float | None = None
    drift: float | None = None


class Loaded:
    """A model with its text encoder and its autoencoder.

    Raises: ValueError for a model that no family knows.
    """

    def __init__(self, model: Any, clip: Any, vae: Any) -> None:
        self.model, self.clip, self.vae = model, clip, vae
        found = backbone_of(model)
        if found is None:
            raise ValueError(f"{type(model.model).__name__} is a model that the pack does not take")
        self.family, self.backbone = found

    @property
    def scheduler(self) -> str:
        """What suits the model."""
        return "simple" if self.backbone.parameterization.flow else "normal"

    def takes(self, mode: str) -> bool:
        """Whether a mode of consistency is made for the model."""
        return self.family is unet or not MODES[mode].of_unets

    def encode(self, text: str) -> Any:
        return nodes.CLIPTextEncode().encode(self.clip, text)[0]

    def decode(self, latents: Any) -> Tensor:
        """(N, h, w, 3) in [0, 1]."""
        return nodes.VAEDecode().decode(self.vae, latents)[0]

    def reconstruct(self, pictures: Tensor) -> Tensor:
        """Pictures (N, h, w, 3) through the autoencoder."""
        return self.decode(nodes.VAEEncode().encode(self.vae, pictures)[0])


class World(Loaded):
    """An embedded model, and the judge of its world. kind: one of MODELS."""

    def __init__(self, kind: str = UNET) -> None:
        self.kind = kind
        super().__init__(*load_demo_model(kind))

    @property
    def scheduler(self) -> str:
        return "sgm_uniform" if self.kind == FEW else super().scheduler

    @cached_property
    def critic(self) -> judge.Judge:
        return judge.load()

    def rates(self, count: int) -> dict[str, float]:
        """Shares of the model's own samples that show the surface,
        shape and ground of their prompts.
        """
        found, wanted = judge.samples(count, kind=self.kind)
        shares = (self.critic.verdict(found) == wanted).float().mean(0).tolist()
        return dict(zip(judge.NAMES, shares, strict=True))

    def sureness(self, pictures: Tensor, surface: str) -> float:
        """The judge's odds for a surface, mean over (N, 3, h, w) pictures."""
        _, (odds, _, _) = self.critic(pictures)
        return float(odds.softmax(1)[:, SURFACES.index(surface)].mean())


class Editable:
    """A source clip to be edited through the pack's nodes. source: (N, h, w, 3).
    caption: what it shows.
    """

    def __init__(self, world: Loaded, settings: Settings, source: Tensor, caption: str) -> None:
        self.world, self.settings, self.source, self.caption = world, settings, source, caption

    @cached_property
    def latents(self) -> dict[str, Any]:
        encoded: dict[str, Any] = nodes.VAEEncode().encode(self.world.vae, self.source)[0]
        return encoded

    def asked(self, surface: str) -> str:
        """The edit prompt's words."""
        return self.caption

    @property
    def source_prompt(self) -> Any:
        return self.world.encode(self.caption)

    def edit_prompt(self, surface: str) -> Any:
        return self.world.encode(self.asked(surface))

    def against_source(self, share: float) -> Any:
        """A negative prompt: the host's average of the source prompt, so much of it, and none."""
        average = nodes.ConditioningAverage().addWeighted
        return average(self.source_prompt, self.world.encode(""), share)[0]

    def invert(self, model: Any = None, **choices: Any) -> Any:
        """choices: inputs of DDIM Invert Video."""
        few = {"iterations": 1} if self.settings.steps < FEW_STEPS else {}
        usual = {"steps": self.settings.steps, "scheduler": self.world.scheduler}
        choices = {**usual, "check_reconstruction": False, **few, **choices}
        return InvertVideo.execute(
            model=model or self.world.model,
            latents=self.latents,
            positive=self.source_prompt,
            **choices,
        ).args[0]

    def features(self, inversion: Any, model: Any = None, **choices: Any) -> Any:
        """choices: inputs of Extract SA Features."""
        return ExtractFeatures.execute(
            model=model or self.world.model, inversion=inversion, **choices
        ).args[0]

    def match(self, features: Any, **choices: Any) -> Any:
        """choices: inputs of Build NN Correspondences."""
        choices = {"keyframe_interval": self.settings.interval, "seed": 1} | choices
        return BuildCorrespondences.execute(features=features, **choices).args[0]

    def edit_mask(self, inversion: Any, surface: str, **choices: Any) -> tuple[Tensor, Tensor]:
        """Where the edit to a surface is to happen, and its outlines.

        choices: inputs of Find Edit Mask.
        """
        mask, _, outlines = FindEditMask.execute(
            model=self.world.model,
            inversion=inversion,
            positive=self.edit_prompt(surface),
            frames=self.source,
            **choices,
        ).args
        return mask, outlines

    def edit(
        self,
        found: Any,
        surface: str,
        mode: str = "tokenflow",
        injected: bool = True,
        model: Any = None,
        **choices: Any,
    ) -> Tensor:
        """An edit, decoded: (N, h, w, 3). choices: inputs of TokenFlow Sampler."""
        choices = {
            "cfg": self.settings.cfg,
            "consistency": mode,
            "injection": PlugAndPlay.execute().args[0] if injected else None,
            "frames": self.source,
            "positive": self.edit_prompt(surface),
            "negative": self.world.encode(""),
        } | choices
        return self.world.decode(
            Sampler.execute(model=model or self.world.model, correspondences=found, **choices).args[
                0
            ]
        )


class Case(Editable):
    """A clip of a scene of the embedded model's world.

    times: of each frame. source: (N, h, w, 3).
    """

    def __init__(
        self, world: World, settings: Settings, scene: Scene, times: list[float], source: Tensor
    ) -> None:
        super().__init__(world, settings, source, scene.caption())
        self.scene, self.times = scene, times

    @classmethod
    def numbered(
        cls, world: World, settings: Settings, number: int = 0, slowed: bool = False
    ) -> Case:
        """number: 0 is the embedded clip, any other one a scene drawn from it, nothing picked, and
        encoded in the same way.

        slowed: the scene's whole length in as many frames as the settings ask for.
        """
        if number == 0 and not slowed:
            scene, times = demo_clip()
            frames = read_video(ROOT / "demo" / "tokenflow_star.mp4")
        else:
            scene = Scene(torch.Generator().manual_seed(number)) if number else demo_clip()[0]
            count = settings.frames if slowed else CLIP_FRAMES
            times = [CLIP_LENGTH * i / count for i in range(count)]
            frames = filmed(scene, times)
        count = settings.frames
        return cls(world, settings, scene, times[:count], frames[:count])

    @cached_property
    def known(self) -> Known:
        shots = [self.scene] * len(self.times)
        return Known.of(channels_first(self.source), shots, self.times)

    @cached_property
    def motion(self) -> list[tuple[Tensor, Tensor]]:
        return source_motion(channels_first(self.source))

    @cached_property
    def truth(self) -> list[tuple[Tensor, Tensor]]:
        flows = [true_flow(self.scene, a, b) for a, b in pairwise(self.times)]
        return [(flow, ~occluded) for flow, occluded in flows]

    def other_surfaces(self, count: int, seed: int) -> list[str]:
        """Surfaces to edit to, drawn from all but the clip's own."""
        others = [name for name in SURFACES if name != self.scene.surface]
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
        return [others[i] for i in order[:count]]

    def asked(self, surface: str) -> str:
        return self.caption.replace(self.scene.surface, surface)

    @cache  # noqa: B019 (a case lives as long as its edits)
    def ideal(self, surface: str) -> Tensor:
        """(N, h, w, 3): the same scene with another surface, encoded as the source is."""
        return filmed(self.scene.dressed(surface), self.times)

    def figures(self, clip: Tensor, surface: str | None = None) -> Figures:
        """clip: (N, h, w, 3). surface: what was asked for."""
        pictures = channels_first(clip)
        found = Figures(
            warp=float(warp_errors(pictures, self.motion).nanmean()),
            true=float(warp_errors(pictures, self.truth).nanmean()),
            sharpness=float(sharpness(pictures).mean()),
        )
        if surface is None:
            return found
        error, known = pictures - channels_first(self.ideal(surface)), self.known
        return replace(
            found,
            fidelity=self.world.sureness(pictures, surface),
            structure=float(known.overlaps(pictures, surface).mean()),
            distance=decibels(error, known.away | known.band),
            drift=known.drift(error),
        )


def composited(source: Tensor, edited: Tensor, outlines: Tensor) -> Tensor:
    """An edit (N, h, w, 3) laid over its source where outlines (N, h, w) say so, by the host."""
    laid: Tensor = ImageCompositeMasked().composite(source, edited, 0, 0, False, outlines)[0]
    return laid


def channels_first(clip: Tensor) -> Tensor:
    """(N, h, w, 3) to (N, 3, h, w), cut to [0, 1]."""
    return clip.movedim(-1, 1).clamp(0, 1)


def filmed(scene: Scene, times: list[float]) -> Tensor:
    """A scene as an encoded video shows it, (N, h, w, 3)."""
    with tempfile.TemporaryDirectory() as folder:
        make_clip.write(Path(folder, "clip.mp4"), scene, times)
        return read_video(Path(folder, "clip.mp4"))


def read_video(path: Path) -> Tensor:
    """All frames, (N, h, w, 3) in [0, 1]."""
    with av.open(str(path)) as file:
        return (
            torch.stack(
                [
                    torch.from_numpy(frame.to_ndarray(format="rgb24"))
                    for frame in file.decode(video=0)
                ]
            ).float()
            / 255
        )
