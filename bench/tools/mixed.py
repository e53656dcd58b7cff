"""Edits of the embedded model's world as prompts for a server.

They are drawn so that one seldom is like the last.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.tools.case import SURFACES, demo_clip, make_clip
from bench.tools.models import to_and_fro
from launch.comfyui.workflow import Prompt

LENGTHS = (1, 5, 8, 13, 24)
INTERVAL = 4
MODES = (
    "per frame",
    "joint attention",
    "tokenflow, public code",
    "first frame",
    "sparse-causal",
    "fatezero",
    "rerender",
)
PRESETS = ("balanced", "faithful", "fast", "draft", "lean")
STORAGES = ("auto", "memory", "disk", "recompute")
STORED = "inversions/soak"


def write_clips(folder: Path, lengths: Iterable[int] = LENGTHS) -> None:
    """Clips of these lengths, from the embedded scene."""
    scene, times = demo_clip()
    for length in lengths:
        make_clip.write(
            folder / clip_name(length),
            scene,
            [times[i] for i in to_and_fro(len(times), length).tolist()],
        )


def clip_name(length: int) -> str:
    return f"{length}-frames.mp4"


@dataclass
class Graph:
    """A prompt that grows node by node."""

    nodes: dict[str, Any] = field(default_factory=dict)

    def add(self, kind: str, **inputs: Any) -> Callable[[int], list[Any]]:
        """A node. Returns: what its outputs are called by their index."""
        name = str(len(self.nodes) + 1)
        self.nodes[name] = {"class_type": kind, "inputs": inputs}
        return lambda output: [name, output]

    def prompt(self) -> Prompt:
        return dict(self.nodes)


@dataclass(frozen=True)
class Clip:
    """What an edit begins with: outputs of nodes. scene: the caption, with the surface in it."""

    graph: Graph
    demo: Callable[[int], list[Any]]
    frames: list[Any]
    latents: list[Any]
    scene: str

    @classmethod
    def of(cls, length: int) -> Clip:
        graph = Graph()
        demo = graph.add("TokenFlowLoadDemoModel")
        frames = graph.add(
            "GetVideoComponents", video=graph.add("LoadVideo", file=clip_name(length))(0)
        )(0)
        return cls(
            graph,
            demo,
            frames,
            graph.add("VAEEncode", pixels=frames, vae=demo(2))(0),
            demo_clip()[0].caption(),
        )

    def words(self, text: str) -> list[Any]:
        return self.graph.add("CLIPTextEncode", clip=self.demo(1), text=text)(0)

    def invert(self, steps: int, **choices: Any) -> Callable[[int], list[Any]]:
        inputs = {
            "cfg": 1.0,
            "steps": steps,
            "scheduler": "normal",
            "refinement": "extrapolated",
            "iterations": 0,
            "depth": 1.0,
        }
        inputs |= {
            "model": self.demo(0),
            "latents": self.latents,
            "positive": self.words(self.scene),
            "frames_per_pass": 0,
        }
        return self.graph.add("TokenFlowInvertVideo", **inputs | choices)

    def match(self, inversion: list[Any], seed: int, **choices: Any) -> list[Any]:
        inputs = {
            "layers": "coarse to fine",
            "steps": "one noise level",
            "every": 2,
            "noise_level": 0.1,
            "storage": "auto",
        }
        inputs |= {"model": self.demo(0), "inversion": inversion, "frames_per_pass": 0}
        features = self.graph.add("TokenFlowExtractFeatures", **inputs | choices)(0)
        inputs = {
            "keyframe_interval": INTERVAL,
            "keyframes": "random at every step",
            "seed": seed,
            "backend": "auto",
            "search_window": 0,
        }
        return self.graph.add("TokenFlowBuildCorrespondences", features=features, **inputs)(0)

    def edit(self, found: list[Any], surface: str, seed: int, **choices: Any) -> list[Any]:
        scene = demo_clip()[0]
        inputs = {
            "positive": self.words(scene.caption().replace(scene.surface, surface)),
            "negative": self.words(""),
            "cfg": 5.0,
        }
        inputs |= {
            "sampler_name": "euler",
            "seed": seed,
            "start": 1.0,
            "consistency": "tokenflow",
            "frames_per_pass": 0,
        }
        inputs |= {
            "injection": self.graph.add(
                "TokenFlowPlugAndPlay", attention_until=0.5, features_until=0.8, layers="decoder"
            )(0)
        }
        inputs |= {"model": self.demo(0), "correspondences": found}
        return self.graph.add("TokenFlowSampler", **inputs | choices)(0)

    def save(self, latents: list[Any]) -> Prompt:
        """The whole prompt, which ends in pictures in the output folder."""
        self.graph.add(
            "SaveImage",
            images=self.graph.add("VAEDecode", samples=latents, vae=self.demo(2))(0),
            filename_prefix="soak",
        )
        return self.graph.prompt()

    def save_latents(self, latents: list[Any]) -> Prompt:
        """The same, to the bit."""
        self.graph.add("SaveLatent", samples=latents, filename_prefix="soak")
        return self.graph.prompt()


def reference_edit() -> Prompt:
    """Always the same one."""
    clip = Clip.of(8)
    return clip.save_latents(clip.edit(clip.match(clip.invert(5)(0), 1), "gold", 1))


def plain_sampling() -> Prompt:
    """The host's own, without any node of ours behind the model; always the same."""
    clip = Clip.of(8)
    inputs = {
        "seed": 1,
        "steps": 5,
        "cfg": 5.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    inputs |= {
        "model": clip.demo(0),
        "positive": clip.words(clip.scene),
        "negative": clip.words(""),
        "latent_image": clip.latents,
    }
    return clip.save_latents(clip.graph.add("KSampler", **inputs)(0))


def first_edit(draw: random.Random) -> list[Prompt]:
    """Another length, schedule, way to match, storage and preset."""
    clip = Clip.of(draw.choice(LENGTHS))
    inversion = clip.invert(draw.randint(2, 6), refinement=draw.choice(("none", "extrapolated")))(0)
    choices = {
        "layers": draw.choice(("coarse to fine", "all", "decoder")),
        "steps": draw.choice(("one noise level", "every")),
    }
    found = clip.match(inversion, draw.randrange(100), storage=draw.choice(STORAGES), **choices)
    return [clip.save(clip.edit(found, draw.choice(SURFACES), 0, preset=draw.choice(PRESETS)))]


def second_edits(draw: random.Random) -> list[Prompt]:
    """The same clip, one prompt after the other:
    what is known of the clip stays in the host's cache.
    """
    length, steps, seed = draw.choice(LENGTHS), draw.randint(2, 6), draw.randrange(100)
    prompts = []
    for surface in draw.sample(SURFACES, 3):
        clip = Clip.of(length)
        prompts.append(clip.save(clip.edit(clip.match(clip.invert(steps)(0), seed), surface, 0)))
    return prompts


def other_mode(draw: random.Random) -> list[Prompt]:
    """One of the modes for comparison."""
    clip = Clip.of(draw.choice(LENGTHS[1:]))
    found = clip.match(clip.invert(draw.randint(2, 4))(0), 0)
    return [
        clip.save(
            clip.edit(
                found, draw.choice(SURFACES), 0, consistency=draw.choice(MODES), frames=clip.frames
            )
        )
    ]


def hosts_sampler(draw: random.Random) -> list[Prompt]:
    """KSampler (Advanced) on a model of Apply TokenFlow."""
    clip, steps = Clip.of(draw.choice(LENGTHS)), draw.randint(2, 5)
    inverted = clip.invert(steps)
    inputs = {"consistency": "tokenflow", "frames_per_pass": draw.choice((0, 3))}
    model = clip.graph.add(
        "TokenFlowApply", model=clip.demo(0), correspondences=clip.match(inverted(0), 0), **inputs
    )(0)
    inputs = {
        "add_noise": "disable",
        "noise_seed": 0,
        "steps": steps,
        "cfg": 4.0,
        "scheduler": "normal",
        "start_at_step": 0,
    }
    inputs |= {
        "sampler_name": draw.choice(("euler", "dpmpp_2m", "heun")),
        "end_at_step": steps,
        "return_with_leftover_noise": "disable",
    }
    inputs |= {
        "positive": clip.words("a gold star on sand"),
        "negative": clip.words(""),
        "latent_image": inverted(1),
    }
    return [clip.save(clip.graph.add("KSamplerAdvanced", model=model, **inputs)(0))]


def masked_edit(draw: random.Random) -> list[Prompt]:
    """A part of the frame, from fresh noise."""
    clip = Clip.of(draw.choice(LENGTHS))
    mask = clip.graph.add("SolidMask", value=draw.random(), width=128, height=128)(0)
    found = clip.match(clip.invert(draw.randint(2, 5))(0), 0)
    return [
        clip.save(
            clip.edit(
                found,
                draw.choice(SURFACES),
                draw.randrange(100),
                mask=mask,
                start=0.7,
                noise="fresh",
            )
        )
    ]


def stored_inversion(draw: random.Random) -> list[Prompt]:
    """Saved by one prompt and loaded by the next."""
    length, steps = draw.choice(LENGTHS), draw.randint(2, 5)
    saving, clip = Clip.of(length), Clip.of(length)
    saving.graph.add(
        "TokenFlowSaveInversion", inversion=saving.invert(steps)(0), filename_prefix=STORED
    )
    file = f"{STORED}_00001_.inversion.safetensors [output]"
    inputs = {
        "file": file,
        "model": clip.demo(0),
        "positive": clip.words(clip.scene),
        "latents": clip.latents,
    }
    inversion = clip.graph.add("TokenFlowLoadInversion", **inputs)(0)
    return [
        saving.graph.prompt(),
        clip.save(clip.edit(clip.match(inversion, 0), draw.choice(SURFACES), 0)),
    ]


def tuned_edit(draw: random.Random) -> list[Prompt]:
    """With a few steps of Tune-A-Video."""
    clip = Clip.of(8)
    inputs = {
        "steps": 3,
        "learning_rate": 1e-3,
        "rank": draw.choice((0, 4)),
        "seed": draw.randrange(100),
        "gradient_checkpointing": True,
    }
    prompts = {"model": clip.demo(0), "latents": clip.latents, "positive": clip.words(clip.scene)}
    tuned = clip.graph.add("TokenFlowTuneAVideo", **prompts, **inputs)(0)
    found = clip.match(clip.invert(2, model=tuned)(0), 0, model=tuned)
    return [
        clip.save(
            clip.edit(found, draw.choice(SURFACES), 0, consistency="sparse-causal", model=tuned)
        )
    ]


def refused_edit(draw: random.Random) -> list[Prompt]:
    """Bad input, which our nodes refuse while the prompt runs."""
    clip = Clip.of(8)
    if draw.random() < 0.5:
        # Without a negative prompt.
        return [clip.save(clip.edit(clip.match(clip.invert(2, cfg=3.0)(0), 0), "gold", 0))]
    found = clip.match(clip.invert(2)(0), 0)
    return [clip.save(clip.edit(found, "gold", 0, consistency="rerender"))]  # without frames


MIX: dict[str, Callable[[random.Random], list[Prompt]]] = {
    "first edit": first_edit,
    "second edits": second_edits,
    "another mode": other_mode,
    "host's sampler": hosts_sampler,
    "masked": masked_edit,
    "stored inversion": stored_inversion,
    "Tune-A-Video": tuned_edit,
    "refused": refused_edit,
}
