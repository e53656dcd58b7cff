"""The edit: what happens at every evaluation the sampler asks for (paper, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from comfy.sampler_helpers import convert_cond, prepare_mask
from torch import Tensor

from ..tokenflow_ops import JOINT_KEYFRAMES, Correspondences, Injection, StepMatches
from ..tokenflow_ops.fusion import FirstFrameMotion, motion_from_first
from .checks import check_same_clip
from .conflicts import check_areas
from .errors import NodeError
from .layers import deep_layers, injected_attention, injected_features
from .memory import replaces_attention
from .modes import MODES
from .passes import DEEP, CapturePass
from .patching import ModelCall, Run, patch
from .preview import show_frames
from .steps import Steps


@dataclass(frozen=True)
class Edit:
    """What an edit is made of.

    node: the node's name for errors. layers: the model's self-attention layers. consistency: one of MODES.
    injection: Plug-and-Play, or None. attended_keyframes: how many of them a frame attends to at most; 0 for the mode's own.
    carry_until: share of the schedule, see `joint_edit.carry_denoised`. deep: whether frames take all that comes up from below the UNet's
    full resolution from the keyframes, or self-attention's output alone. frames_per_pass: 0 for the host's estimate.
    mask: (N, H, W) in [0, 1], 1 where frames are edited, or None for everywhere.
    frames: (N, H, W, 3) in [0, 1], the source's pictures, or None; modes that follow optical flow need them.
    """

    node: str
    layers: tuple[str, ...]
    correspondences: Correspondences
    injection: Injection | None
    consistency: str
    attended_keyframes: int
    carry_until: float
    deep: bool
    frames_per_pass: int
    mask: Tensor | None = None
    frames: Tensor | None = None


def apply_edit(model: Any, edit: Edit) -> Any:
    """A clone of the model that samples the edit under any of the host's samplers."""
    return patch(model, partial(EditRun, edit), edit.frames_per_pass, with_deep=edit.deep)


@dataclass(frozen=True)
class Moment:
    """Where the sampler stands.

    step: of the inversion, the same for all evaluations of one sampling step. matches: its keyframes and matches.
    attention, hidden: the self-attention layers and the ResBlock part (one or none) that take the source's features now.
    place, steps: of this step in the inversion's whole schedule, counted from 0, and all that it has. Every share counts on these and not
    on the steps of the run: a run that is cut in two is one edit, and fewer steps stay at the same noise levels.
    """

    step: int
    matches: StepMatches
    attention: tuple[str, ...]
    hidden: tuple[str, ...]
    place: int
    steps: int

    @property
    def injected(self) -> tuple[str, ...]:
        """All that takes the source's features."""
        return *self.attention, *self.hidden

    def before(self, share: float) -> bool:
        """Whether this step is among the first `share` of the schedule's."""
        return self.place < int(share * self.steps)


class EditRun(Run):
    """One sampling run of an edit."""

    def __init__(self, edit: Edit) -> None:
        super().__init__(edit.node, edit.frames_per_pass)
        self.edit = edit
        self.features = edit.correspondences.features
        self.jointly = edit.attended_keyframes or JOINT_KEYFRAMES
        self.inversion = self.features.inversion
        self.steps: Steps | None = None
        self.step_sigma: float | None = None  # at which the sampler's running step began
        self.mask: Tensor | None = None
        self.deep_layers: tuple[str, ...] = ()
        self.source_conds: list[dict[str, Any]] | None = None
        self.positive: list[dict[str, Any]] | None = None

    def begin(self, guider: Any, sampler: Any, sigmas: Tensor, noise: Tensor) -> None:
        """Checks the batch, and processes the source prompt as the host does the others: features may have to be computed again."""
        super().begin(guider, sampler, sigmas, noise)
        check_same_clip(self.node, tuple(noise.shape), self.inversion, "latent_image")
        self.steps = Steps(sampler, guider, sigmas)
        self.positive = guider.conds.get("positive")
        self.deep_layers = deep_layers(self.model.model.diffusion_model)
        if self.edit.mask is not None:
            self.mask = prepare_mask(self.edit.mask.float().clamp(0, 1), noise.shape, noise.device)
        source = convert_cond(self.inversion.conditioning)
        if not any("control" in entry or "hooks" in entry for entry in source):
            clean = self.inversion.latents[-1].to(noise)  # as during inversion; inpainting models ask for it
            conds = comfy.samplers.process_conds(guider.inner_model, noise, {"source": source}, noise.device, clean, seed=0)
            self.source_conds = conds["source"]

    def look(self, x: Tensor, sigma: float, predict: Callable[[Tensor], Tensor]) -> Tensor:
        """Outside the mask the model sees the source's own path, and the clean source is what it is taken to have found there."""
        self.step_sigma = sigma if self.steps is None else self.steps.begins_at(sigma)
        settle = partial(MODES[self.edit.consistency].settle, self, self.moment(self.step_sigma))
        if self.mask is None:
            return settle(predict(x))
        path, clean = self.inversion.latents_at(sigma).to(x), self.inversion.latents[-1].to(x)
        return torch.lerp(clean, settle(predict(torch.lerp(path, x, self.mask))), self.mask)

    def reported(self, callback: Any) -> Any:
        """With a preview of several frames."""
        return show_frames(self.model, callback)

    def finish(self, x: Tensor, sigma: float) -> Tensor:
        """Some samplers end with a little noise left: outside the mask the source has none of it."""
        return x if self.mask is None else torch.where(self.mask > 0, x, self.inversion.latents_at(sigma).to(x))

    def evaluate(self, call: ModelCall) -> list[Tensor]:
        """The mode's passes; the plain host where nothing is to be changed."""
        check_same_clip(self.node, tuple(call.x.shape), self.inversion, "latent_image")
        now = self.moment(call.sigma if self.step_sigma is None else self.step_sigma)
        if self.edit.consistency != "per frame" or now.injected:
            check_areas(self.node, "positive", call.conds)
        return MODES[self.edit.consistency].passes(self, call, now)

    def moment(self, sigma: float) -> Moment:
        """Of a sampling step that began at `sigma`."""
        step = self.inversion.closest_step(sigma)
        matches, injection = self.edit.correspondences.steps[step], self.edit.injection
        place, steps = self.inversion.skipped + step, self.inversion.steps
        if injection is None:
            return Moment(step, matches, (), (), place, steps)
        attention = injected_attention(self.edit.layers, injection.layers) if injection.attention_at(place, steps) else ()
        hidden = injected_features(self.edit.layers) if injection.features_at(place, steps) else None
        return Moment(step, matches, attention, (hidden,) if hidden else (), place, steps)

    @cached_property
    def motion(self) -> FirstFrameMotion:
        """Where every frame's latents lay in the first one, by the source's pictures."""
        assert self.edit.frames is not None, "checked by the node"
        height, width = self.inversion.latents.shape[-2:]
        return motion_from_first(self.edit.frames[..., :3].movedim(-1, 1).float().cpu(), (height, width))

    def source(self, call: ModelCall, frames: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The source's features of these frames at the evaluation's own noise level: the stored ones, or computed now."""
        store, step = self.features.store, self.inversion.closest_step(call.sigma)
        if not names:
            return {}
        if store is not None and all(store.has(step, name) for name in names):
            return {name: store.get(step, name, frames) for name in names}
        capture = CapturePass(frames, names=frozenset(names))
        self.look_at_source(call, capture)
        return capture.kept

    @property
    def every_level(self) -> bool:
        """Whether features belong to every step, by the user's choice."""
        return len(self.features.steps) == len(self.inversion.sigmas) - 1

    def carries_deep(self, call: ModelCall) -> bool:
        """Whether frames need nothing below full resolution. Patches on the UNet's blocks (FreeU, downscaling) want to see it run."""
        patches = call.options["transformer_options"].get("patches", {})
        patched = any(kind.endswith(("block_patch", "after_skip")) for kind in patches)
        return self.edit.deep and bool(self.deep_layers) and not patched and not replaces_attention(self.model)

    @cached_property
    def shallow_layers(self) -> frozenset[str]:
        """What frames take from keyframes if they take what is deeper as a whole: that, and these layers' output."""
        below = tuple(f"{path}." for path in self.deep_layers)
        return frozenset((DEEP, *(layer for layer in self.edit.layers if not layer.startswith(below))))

    def source_prompt(self) -> list[dict[str, Any]]:
        """The source prompt, processed. Raises: NodeError if it has what a pass of its own cannot have."""
        if self.source_conds is None:
            raise NodeError(
                self.node,
                "correspondences",
                "a source prompt with ControlNet or hooks, whose features are not stored.",
                "Choose memory or disk as storage, all layers and every step in Extract SA Features; the public code's mode and fatezero "
                "always need a plain source prompt.",
            )
        return self.source_conds

    def look_at_source(self, call: ModelCall, capture: CapturePass) -> None:
        """Runs a pass over the source's latents at the evaluation's noise level, with the source prompt."""
        latents = self.inversion.latents_at(call.sigma)[capture.frames].to(call.x)
        call.run(self, capture, latents, [self.source_prompt()])


def sample_edit(
    model: Any,
    positive: Any,
    negative: Any,
    cfg: float,
    sampler: str,
    sigmas: Tensor,
    latents: Tensor,
    noise: Tensor,
    seed: int,
    callback: Callable[..., None],
) -> Tensor:
    """The host's own sampling of a patched model from `latents` (N, C, h, w) as on a LATENT socket, `noise` of unit scale added to them."""
    chosen = comfy.samplers.sampler_object(sampler)
    return comfy.sample.sample_custom(model, noise, cfg, chosen, sigmas, positive, negative, latents, callback=callback, seed=seed)
