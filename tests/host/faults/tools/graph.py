"""The prompts that faults are injected into, as the page would queue them,
and the nodes that begin and end them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...once import once_a_session
from . import plain as host
from .plain import SETTINGS

PREFIX = "kept/clip"
STEPS = 2


class Pictures:
    """A linear autoencoder's decoder: latents (N, C, h, w) to pictures (N, 8 h, 8 w, 3)."""

    def decode(self, samples: Tensor) -> Tensor:
        return (
            samples[:, :3]
            .repeat_interleave(8, 2)
            .repeat_interleave(8, 3)
            .movedim(1, -1)
            .mul(0.1)
            .add(0.5)
            .clamp(0, 1)
        )


@once_a_session
def frames() -> Tensor:
    """The source clip's pictures."""
    return Pictures().decode(host.latents()["samples"])


class Ready:
    """Begins a prompt: what loaders and encoders would give. `model` is the test's to change."""

    RETURN_TYPES = (
        "MODEL",
        "LATENT",
        "CONDITIONING",
        "CONDITIONING",
        "CONDITIONING",
        "VAE",
        "IMAGE",
    )
    FUNCTION = "give"
    model: Any = None

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls) -> int:
        return id(cls.model)

    def give(self) -> tuple[Any, ...]:
        return (
            self.model or host.model(),
            host.latents(),
            *host.conditionings(),
            Pictures(),
            frames(),
        )


class Keep:
    """Ends a prompt: keeps the last latents that came here."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "keep"
    kept: list[Tensor] = []

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"latent": ("LATENT",)}}

    def keep(self, latent: dict[str, Tensor]) -> tuple[()]:
        self.kept[:] = [latent["samples"].clone()]
        return ()


MODEL, LATENTS, SOURCE, POSITIVE, NEGATIVE, VAE, FRAMES = (["ready", i] for i in range(7))
Prompt = dict[str, dict[str, Any]]


def _prompt(**nodes: tuple[str, dict[str, Any]]) -> Prompt:
    return {
        name: {"class_type": kind, "inputs": inputs}
        for name, (kind, inputs) in {"ready": ("Ready", {}), **nodes}.items()
    }


def nothing() -> Prompt:
    """After it the host's cache holds no other prompt's results."""
    return _prompt(keep=("Keep", {"latent": LATENTS}))


def plain() -> Prompt:
    """The host's own sampling: `plain.py` as a prompt."""
    inputs = {
        "model": MODEL,
        "positive": POSITIVE,
        "negative": NEGATIVE,
        "latent_image": LATENTS,
        **SETTINGS,
    }
    return _prompt(sample=("KSampler", inputs), keep=("Keep", {"latent": ["sample", 0]}))


def edit(storage: str = "disk", views: bool = False, interval: int = 2, **sampler: Any) -> Prompt:
    """A whole edit. views: with the nodes for looking at what the method does. sampler: inputs of
    TokenFlow Sampler.
    """
    shown: dict[str, tuple[str, dict[str, Any]]] = {
        "check": (
            "TokenFlowCheckReconstruction",
            {"model": MODEL, "inversion": ["invert", 0], "vae": VAE, "frames": FRAMES},
        ),
        "features": ("TokenFlowPreviewFeatures", {"features": ["extract", 0]}),
        "matches": (
            "TokenFlowPreviewCorrespondences",
            {"correspondences": ["build", 0], "frames": FRAMES},
        ),
    }
    source = {"model": MODEL, "positive": SOURCE, "negative": NEGATIVE}
    invert = {
        "latents": LATENTS,
        "steps": STEPS,
        "cfg": 1.0,
        "check_reconstruction": views,
        "vae": VAE,
        **source,
    }
    invert["refinement"] = "extrapolated" if views else "none"
    steered = {
        "model": MODEL,
        "positive": POSITIVE,
        "negative": NEGATIVE,
        "cfg": 4.0,
        "frames_per_pass": 1,
        **sampler,
    }
    return _prompt(
        invert=("TokenFlowInvertVideo", invert),
        save=("TokenFlowSaveInversion", {"inversion": ["invert", 0], "filename_prefix": PREFIX}),
        extract=(
            "TokenFlowExtractFeatures",
            {"model": MODEL, "inversion": ["invert", 0], "storage": storage},
        ),
        inject=("TokenFlowPlugAndPlay", {}),
        build=(
            "TokenFlowBuildCorrespondences",
            {
                "features": ["extract", 0],
                "keyframe_interval": interval,
                "intervals": "even",
                "backend": "torch",
            },
        ),
        **(shown if views else {}),
        sample=(
            "TokenFlowSampler",
            {"correspondences": ["build", 0], "injection": ["inject", 0], **steered},
        ),
        keep=("Keep", {"latent": ["sample", 0]}),
    )
