"""Extract SA Features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io

from ..host.memory import fits_in_memory
from ..host.progress import Progress
from ..host.shards import together
from ..host.source import capture_features
from ..host.validation.checks import check_model, check_same_model
from ..host.validation.conflicts import check_levels
from ..host.validation.errors import NodeError
from ..tokenflow_ops import (
    Descriptor,
    DiskStore,
    FeatureStore,
    Inversion,
    MemoryStore,
    SourceFeatures,
)
from ..tokenflow_ops.backbone import Backbone
from ..tokenflow_ops.features.descriptors import coarse_to_fine, share_by_resolution
from ..tokenflow_ops.features.source_features import compute_at
from ..tokenflow_ops.measuring.views import feature_colours
from .inputs import checked
from .schema import (
    CELL,
    FeaturesSocket,
    InversionSocket,
    as_image,
    frames_per_pass_input,
    schema,
    shown_frames,
    step_at,
)

NAME = "Extract SA Features"
COARSE_TO_FINE, ALL, ONE_PER_RESOLUTION, DECODER = LAYERS = (
    "coarse to fine",
    "all",
    "one per resolution",
    "decoder",
)
EVERY, EVERY_KTH, ONE_LEVEL = STEPS = "every", "every k-th", "one noise level"
NOISE_LEVEL = 0.1


class ExtractFeatures(io.ComfyNode):
    """Stage 1: what the self-attention layers see of the source frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "ExtractFeatures",
            NAME,
            "Runs the inverted frames through the model and reads the inputs of its self-attention "
            "layers, on which frames are matched.",
            ["self attention features", "diffusion features", "dift", "tokenflow"],
            advanced=("layers", "steps", "every", "noise_level", "storage", "frames_per_pass"),
            inputs=[
                io.Model.Input("model", tooltip="The model the frames were inverted with."),
                InversionSocket.Input("inversion", tooltip="From DDIM Invert Video."),
                io.Combo.Input(
                    "layers",
                    options=list(LAYERS),
                    default=COARSE_TO_FINE,
                    tooltip="What frames are matched on. coarse to fine: the decoder's first "
                    "layers, coarse and fine together; best and fastest. all: each layer on its "
                    "own features, as in the paper. The help explains the others.",
                ),
                io.Combo.Input(
                    "steps",
                    options=list(STEPS),
                    default=ONE_LEVEL,
                    tooltip="At which noise levels frames are matched. one noise level: a clean "
                    "one for all steps; best and fastest. every: each step on its own features, as "
                    "in the paper. every k-th: others use the nearest.",
                ),
                io.Int.Input("every", default=5, min=1, max=1000, tooltip="k for 'every k-th'."),
                io.Float.Input(
                    "noise_level",
                    default=NOISE_LEVEL,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="For 'one noise level': 0 is the cleanest step, 1 the "
                    "noisiest. 0.1 to 0.3 match best.",
                ),
                io.Combo.Input(
                    "storage",
                    options=["auto", "memory", "disk", "recompute"],
                    default="auto",
                    tooltip="auto: host memory if a quarter of what is free suffices, else "
                    "recompute. disk: ComfyUI's temp folder. recompute: nothing is kept, the model "
                    "is run again for matches and Plug-and-Play.",
                ),
                frames_per_pass_input(),
            ],
            outputs=[
                FeaturesSocket.Output(
                    display_name="features", tooltip="For Build NN Correspondences."
                ),
                io.Image.Output(
                    display_name="components",
                    tooltip="The features' first three principal components as colours: equal "
                    "colours will be matched. Of a long clip 64 frames.",
                ),
            ],
        )

    @classmethod
    @checked()
    def execute(
        cls,
        model: Any,
        inversion: Inversion,
        layers: str = COARSE_TO_FINE,
        steps: str = ONE_LEVEL,
        every: int = 5,
        noise_level: float = NOISE_LEVEL,
        storage: str = "auto",
        frames_per_pass: int = 0,
    ) -> io.NodeOutput:
        backbone = check_model(NAME, model)
        check_same_model(NAME, model, inversion)
        capture = partial(capture_features, NAME, model, inversion, frames_per_pass=frames_per_pass)
        shapes, element, hidden = _probe(capture, backbone)
        check_levels(NAME, shapes, *inversion.latents.shape[-2:])
        capture = partial(capture, shapes=shapes)
        matched_by = _matched_by(shapes, backbone.decoder_layers, layers)
        count = len(inversion.sigmas) - 1
        chosen = _steps(count, steps, every, noise_level)
        kept = list(
            dict.fromkeys(layer for descriptor in matched_by.values() for layer in descriptor)
        )
        # Plug-and-Play's features belong to their own steps: between levels the matches carry them.
        extra = [name] if len(chosen) == count and (name := backbone.injected_hidden) else []
        numbers = len(chosen) * (
            sum(shapes[name][0] * shapes[name][1] for name in kept) + (hidden if extra else 0)
        )
        store = _store(storage, inversion.frames * element * numbers)
        features = SourceFeatures(
            inversion, shapes, matched_by, chosen, store, capture, backbone.matched_on_output
        )
        progress = Progress((0 if store is None else len(chosen)) + 1)
        if store is not None:
            capture([*kept, *extra], chosen, _told_if_full()(store.put), progress=progress)
        components = _components(features)
        progress()
        return io.NodeOutput(features, components)


def _probe(capture: Any, backbone: Backbone) -> tuple[dict[str, tuple[int, int]], int, int]:
    """Runs one frame through the model.

    Returns tokens and width of every layer, bytes of a number, and how many numbers a frame's
    hidden features are.
    """
    names, path = backbone.attention, backbone.injected_hidden
    found = compute_at(capture, 0, [*names, *([path] if path else [])], torch.tensor([0]))
    shapes = {name: (found[name].shape[1], found[name].shape[2]) for name in names}
    return shapes, found[names[0]].element_size(), found[path].numel() if path else 0


def _matched_by(
    shapes: dict[str, tuple[int, int]], decoder: tuple[str, ...], layers: str
) -> dict[str, Descriptor]:
    if layers == COARSE_TO_FINE:
        return coarse_to_fine(shapes, decoder)
    shared = share_by_resolution(shapes, preferred=decoder)
    if layers == ONE_PER_RESOLUTION:
        return {name: (shared[name],) for name in shapes}
    return {name: (name if layers == ALL or name in decoder else shared[name],) for name in shapes}


def _steps(count: int, choice: str, every: int, noise_level: float) -> tuple[int, ...]:
    if choice == EVERY_KTH:
        return tuple(range(0, count, every))
    if choice == ONE_LEVEL:
        return (step_at(noise_level, count),)
    return tuple(range(count))


@contextmanager
def _told_if_full() -> Iterator[None]:
    """Raises: NodeError where features cannot be written."""
    try:
        yield
    except OSError as error:
        found = f"the features cannot be written to {folder_paths.get_temp_directory()} ({error})."
        raise NodeError(
            NAME, "storage", found, "Make room on that disk, or choose memory or recompute."
        ) from error


@_told_if_full()
def _store(storage: str, size: int) -> FeatureStore | None:
    if storage == "auto":
        storage = together().once(lambda: "memory" if fits_in_memory(size) else "recompute")
    if storage == "memory":
        return MemoryStore()
    if storage == "disk":
        folder = Path(folder_paths.get_temp_directory())
        folder.mkdir(parents=True, exist_ok=True)
        return DiskStore(folder)
    return None


def _components(features: SourceFeatures) -> torch.Tensor:
    """A picture per shown frame of what the finest layers are matched on, at a low noise level."""
    inversion = features.inversion
    step = features.nearest_step(round(0.8 * (len(inversion.sigmas) - 2)))
    colours = feature_colours(features, features.finest, step, shown_frames(inversion.frames))
    height, width = inversion.latents.shape[-2:]
    return as_image(colours, height * CELL, width * CELL)
