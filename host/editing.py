"""The edit: keyframes jointly, then every frame from their tokens, at every evaluation the sampler asks for (paper, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from comfy.sampler_helpers import convert_cond
from torch import Tensor

from ..tokenflow_ops import Correspondences, Injection
from .checks import check_same_clip
from .conds import Conds
from .errors import NodeError
from .layers import injected_attention, injected_features
from .passes import Bank, CapturePass, JointPass, KeyframePass, Pass, PropagationPass
from .patching import ModelCall, Run, patch

CONSISTENCY = ("tokenflow", "joint attention", "per frame")


@dataclass(frozen=True)
class Edit:
    """What an edit is made of.

    node: the node's name for errors. layers: the model's self-attention layers. consistency: one of CONSISTENCY.
    injection: Plug-and-Play, or None. attended_keyframes: how many of them a frame attends to, 0 for all.
    frames_per_pass: 0 for the host's estimate.
    """

    node: str
    layers: tuple[str, ...]
    correspondences: Correspondences
    injection: Injection | None
    consistency: str
    attended_keyframes: int
    frames_per_pass: int


def apply_edit(model: Any, edit: Edit) -> Any:
    """A clone of the model that samples the edit under any of the host's samplers."""
    return patch(model, partial(EditRun, edit), edit.frames_per_pass)


class EditRun(Run):
    """One sampling run of an edit."""

    def __init__(self, edit: Edit) -> None:
        super().__init__(edit.node, edit.frames_per_pass)
        self.edit = edit
        self.features = edit.correspondences.features
        self.inversion = self.features.inversion
        self.sigmas: list[float] = []
        self.source_conds: Conds | None = None

    def begin(self, guider: Any, sigmas: Tensor, noise: Tensor) -> None:
        """Checks the batch, and processes the source prompt as the host does the others: features may have to be computed again."""
        super().begin(guider, sigmas, noise)
        check_same_clip(self.edit.node, tuple(noise.shape), self.inversion, "latent_image")
        self.sigmas = sigmas.tolist()
        source = convert_cond(self.inversion.conditioning)
        if not any("control" in entry or "hooks" in entry for entry in source):
            conds = comfy.samplers.process_conds(guider.inner_model, noise, {"source": source}, noise.device, seed=0)
            self.source_conds = [conds["source"]]

    def evaluate(self, call: ModelCall) -> list[Tensor]:
        """Keyframe pass, then all frames; the plain host where nothing is to be changed."""
        edit = self.edit
        check_same_clip(edit.node, tuple(call.x.shape), self.inversion, "latent_image")
        attention, hidden = self.injected(call.sigma)
        if edit.consistency == "per frame" and not attention and hidden is None:
            return call.unchanged()
        self._refuse_areas(call.conds)
        step = self.inversion.step_of(call.sigma)
        names = (*attention, hidden) if hidden else attention

        if edit.consistency == "per frame":
            return self.over_frames(call, lambda frames: Pass(frames, source=self.source(call, step, frames, names)))

        matches = edit.correspondences.steps[step]
        joint = edit.consistency == "joint attention"
        keyframe_source = self.source(call, step, matches.keyframes, names)
        limit = edit.attended_keyframes
        bank: Bank = {}
        call.run(
            self, KeyframePass(matches.keyframes, source=keyframe_source, limit=limit, keep="context" if joint else "output", bank=bank)
        )
        if joint:
            return self.over_frames(
                call,
                lambda frames: JointPass(
                    frames,
                    source=self.source(call, step, frames, names),
                    bank=bank,
                    keyframes=matches.keyframes,
                    keyframe_source=keyframe_source,
                    limit=limit,
                ),
            )
        tokens = partial(edit.correspondences.tokens, step)
        features_only = (hidden,) if hidden else ()
        return self.over_frames(
            call,
            lambda frames: PropagationPass(
                frames, source=self.source(call, step, frames, features_only), node=edit.node, bank=bank, matches=matches, tokens=tokens
            ),
        )

    def injected(self, sigma: float) -> tuple[tuple[str, ...], str | None]:
        """The self-attention layers and the ResBlock part that take the source's features at this noise level."""
        injection = self.edit.injection
        if injection is None:
            return (), None
        steps = len(self.sigmas) - 1
        step = max(0, sum(s >= sigma * (1 - 1e-4) for s in self.sigmas[:-1]) - 1)
        attention = injected_attention(self.edit.layers, injection.layers) if injection.attention_at(step, steps) else ()
        return attention, injected_features(self.edit.layers) if injection.features_at(step, steps) else None

    def source(self, call: ModelCall, step: int, frames: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The source's features of these frames: the stored ones, or computed now from the stored latents."""
        store = self.features.store
        if not names:
            return {}
        if store is not None and all(store.has(step, name) for name in names):
            return {name: store.get(step, name, frames) for name in names}
        if self.source_conds is None:
            raise NodeError(
                self.edit.node,
                "correspondences",
                "a source prompt with ControlNet or hooks, whose features are not stored.",
                "Choose memory or disk as storage, all layers and every step in Extract SA Features.",
            )
        capture = CapturePass(frames, names=frozenset(names))
        latents = self.inversion.latents_at(call.sigma)[frames].to(call.x)
        call.run(self, capture, latents, self.source_conds)
        return capture.kept

    def _refuse_areas(self, conds: Conds) -> None:
        if any("area" in entry for entries in conds for entry in entries or ()):
            raise NodeError(
                self.edit.node,
                "positive",
                "a conditioning limited to an area, which crops the frame so that the source's correspondences no longer fit.",
                "Use ConditioningSetMask instead of ConditioningSetArea.",
            )


def sample_edit(
    model: Any,
    positive: Any,
    negative: Any,
    cfg: float,
    sampler: str,
    sigmas: Tensor,
    latents: Tensor,
    seed: int,
    callback: Callable[..., None],
) -> Tensor:
    """The host's own sampling of a patched model from noisy `latents` (N, C, h, w) as on a LATENT socket: zero noise is added to them."""
    chosen = comfy.samplers.sampler_object(sampler)
    return comfy.sample.sample_custom(
        model, torch.zeros_like(latents), cfg, chosen, sigmas, positive, negative, latents, callback=callback, seed=seed
    )
