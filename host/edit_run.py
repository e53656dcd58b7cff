"""One sampling run of an edit: what it knows of the clip, and what it hands the method at every
evaluation (paper, section 4.2).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import comfy.samplers
import torch
from comfy.sampler_helpers import convert_cond, prepare_mask
from torch import Tensor

from ..tokenflow_ops import JOINT_KEYFRAMES, Correspondences, Injection, StepMatches
from ..tokenflow_ops.backbone import Backbone
from ..tokenflow_ops.baselines.fusion import FirstFrameMotion, motion_from_first
from ..tokenflow_ops.edit import StepPlan, edit_step
from ..tokenflow_ops.passes import CapturePass, Pass
from .memory import is_oom, replaces_attention
from .patching import ModelCall, Run
from .preview import show_frames
from .shards import together
from .steps import Steps
from .validation.checks import check_same_clip
from .validation.conflicts import check_areas
from .validation.errors import NodeError

T = TypeVar("T")


@dataclass(frozen=True)
class Mode:
    """A way to keep frames together.

    passes: run at one evaluation of the sampler. settle: what becomes of the denoised frames (N, C,
    h, w), guidance included. needs_frames: whether it asks for the source's pictures. per_frame:
    whether frames know nothing of each other. needs: the libraries it cannot do without.
    """

    passes: Callable[[EditRun, ModelCall, Moment], list[Tensor]]
    settle: Callable[[EditRun, Moment, Tensor], Tensor] = lambda run, now, denoised: denoised
    needs_frames: bool = False
    per_frame: bool = False
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Edit:
    """What an edit is made of.

    node: the node's name for errors. backbone: the model's layers. mode: how frames are kept
    together. injection: Plug-and-Play, or None. attended_keyframes: how many of them a frame
    attends to at most; 0 for the mode's own. carry_until: share of the schedule, see
    `tokenflow_ops.edit.carry_denoised`. deep: whether frames take all that comes up from below the
    UNet's full resolution from the keyframes, or self-attention's output alone. frames_per_pass: 0
    for the host's estimate. mask: (N, H, W) in [0, 1], 1 where frames are edited, or None for
    everywhere. frames: (N, H, W, 3) in [0, 1], the source's pictures, or None; modes that follow
    optical flow need them.
    """

    node: str
    backbone: Backbone
    correspondences: Correspondences
    injection: Injection | None
    mode: Mode
    attended_keyframes: int
    carry_until: float
    deep: bool
    frames_per_pass: int
    mask: Tensor | None = None
    frames: Tensor | None = None


@dataclass(frozen=True)
class Moment:
    """Where the sampler stands.

    step: of the inversion, the same for all evaluations of one sampling step. matches: its
    keyframes and matches. attention, hidden: the self-attention layers and the layer with hidden
    features (one or none) that take the source's features now. place, steps: of this step in the
    inversion's whole schedule, counted from 0, and all that it has. Every share counts on these and
    not on the steps of the run: a run that is cut in two is one edit, and fewer steps stay at the
    same noise levels.
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
        self.source_conds: list[dict[str, Any]] | None = None
        self.positive: list[dict[str, Any]] | None = None

    def begin(self, guider: Any, sampler: Any, sigmas: Tensor, noise: Tensor) -> None:
        """Checks the batch, and processes the source prompt as the host does the others: features
        may have to be computed again.
        """
        super().begin(guider, sampler, sigmas, noise)
        check_same_clip(self.node, tuple(noise.shape), self.inversion, "latent_image")
        self.steps = Steps(sampler, guider, sigmas)
        self.positive = guider.conds.get("positive")
        if self.edit.mask is not None:
            self.mask = prepare_mask(self.edit.mask.float().clamp(0, 1), noise.shape, noise.device)
        source = convert_cond(self.inversion.conditioning)
        if not any("control" in entry or "hooks" in entry for entry in source):
            clean = self.inversion.latents[-1].to(
                noise
            )  # as during inversion; inpainting models ask for it
            conds = comfy.samplers.process_conds(
                guider.inner_model, noise, {"source": source}, noise.device, clean, seed=0
            )
            self.source_conds = conds["source"]

    def look(self, x: Tensor, sigma: float, predict: Callable[[Tensor], Tensor]) -> Tensor:
        """Outside the mask the model sees the source's own path, and the clean source is what it is
        taken to have found there.
        """
        self.step_sigma = sigma if self.steps is None else self.steps.begins_at(sigma)
        settle = partial(self.edit.mode.settle, self, self.moment(self.step_sigma))
        if self.mask is None:
            return settle(predict(x))
        path, clean = self.inversion.latents_at(sigma).to(x), self.inversion.latents[-1].to(x)
        return torch.lerp(clean, settle(predict(torch.lerp(path, x, self.mask))), self.mask)

    def reported(self, callback: Any) -> Any:
        """With a preview of several frames."""
        return show_frames(self.model, callback)

    def finish(self, x: Tensor, sigma: float) -> Tensor:
        """Some samplers end with a little noise left: outside the mask the source has none of it."""
        return (
            x
            if self.mask is None
            else torch.where(self.mask > 0, x, self.inversion.latents_at(sigma).to(x))
        )

    def evaluate(self, call: ModelCall) -> list[Tensor]:
        """The mode's passes; the plain host where nothing is to be changed."""
        check_same_clip(self.node, tuple(call.x.shape), self.inversion, "latent_image")
        now = self.moment(call.sigma if self.step_sigma is None else self.step_sigma)
        if not self.edit.mode.per_frame or now.injected:
            check_areas(self.node, "positive", call.conds)
        return self.edit.mode.passes(self, call, now)

    def moment(self, sigma: float) -> Moment:
        """Of a sampling step that began at `sigma`."""
        step = self.inversion.closest_step(sigma)
        matches, injection = self.edit.correspondences.steps[step], self.edit.injection
        place, steps = self.inversion.skipped + step, self.inversion.steps
        if injection is None:
            return Moment(step, matches, (), (), place, steps)
        backbone = self.edit.backbone
        attention = (
            backbone.injected_attention(injection.layers)
            if injection.attention_at(place, steps)
            else ()
        )
        hidden = backbone.injected_hidden if injection.features_at(place, steps) else None
        return Moment(step, matches, attention, (hidden,) if hidden else (), place, steps)

    @cached_property
    def motion(self) -> FirstFrameMotion:
        """Where every frame's latents lay in the first one, by the source's pictures."""
        assert self.edit.frames is not None, "checked by the node"
        height, width = self.inversion.latents.shape[-2:]
        return motion_from_first(
            self.edit.frames[..., :3].movedim(-1, 1).float().cpu(), (height, width)
        )

    def source(self, call: ModelCall, frames: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """The source's features of these frames at the evaluation's own noise level: the stored
        ones, or computed now.
        """
        store, step = self.features.store, self.inversion.closest_step(call.sigma)
        names = tuple(names)
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
        """Whether frames need nothing below full resolution.

        Patches on the UNet's blocks (FreeU, downscaling) want to see it run.
        """
        patches = call.options["transformer_options"].get("patches", {})
        patched = any(kind.endswith(("block_patch", "after_skip")) for kind in patches)
        return (
            self.edit.deep
            and bool(self.edit.backbone.deep)
            and not patched
            and not replaces_attention(self.model)
        )

    def source_prompt(self) -> list[dict[str, Any]]:
        """The source prompt, processed.

        Raises: NodeError if it has what a pass of its own cannot have.
        """
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
        """Runs a pass over the source's latents at the evaluation's noise level, with the source
        prompt.
        """
        latents = self.inversion.latents_at(call.sigma)[capture.frames].to(call.x)
        call.run(self, capture, latents, [self.source_prompt()])

    def plan(self, now: Moment, deep: bool = False) -> StepPlan:
        """What TokenFlow does at a step. deep: whether frames take all that lies below full
        resolution as a whole.
        """
        own = self.every_level or not now.hidden
        return StepPlan(
            self.edit.correspondences,
            now.step,
            now.attention,
            now.hidden,
            None if own else self.edit.backbone.injected_attention()[0],
            self.edit.backbone.shallow if deep else None,
            now.place < round(self.edit.carry_until * now.steps),
            self.jointly,
            # Guidance that replaces self-attention (SAG) reads what it saw in the last pass, and
            # takes it for all frames.
            replaces_attention(self.model),
        )

    def edit_jointly(self, call: ModelCall, now: Moment) -> list[Tensor]:
        """The denoised frames for each list of conditionings.

        Where memory runs out, fewer keyframes are edited together, for the run.
        """
        while True:
            plan = self.plan(now, self.carries_deep(call))
            try:
                return edit_step(Evaluation(self, call), plan, together())
            except Exception as error:
                keyframes = min(self.jointly, len(now.matches.keyframes))
                if keyframes == 1 or not is_oom(error):
                    raise
                self.jointly = keyframes // 2
                logging.warning(
                    "%s: out of memory, on with %d keyframes that attend to each other.",
                    self.node,
                    self.jointly,
                )


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the sampler as the method sees it, a `tokenflow_ops.edit.Denoiser`."""

    edit_run: EditRun
    call: ModelCall

    @property
    def x(self) -> Tensor:
        return self.call.x

    @property
    def lists(self) -> int:
        return len(self.call.conds)

    def run(self, work: Pass) -> list[Tensor]:
        return self.call.run(self.edit_run, work)

    def source(self, frames: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        return self.edit_run.source(self.call, frames, names)

    def in_parts(self, frames: Tensor, work: Callable[[Tensor], T]) -> list[T]:
        return self.edit_run.in_parts(self.call, frames, work)
