"""One sampling run of an edit (paper, section 4.2).

What the run knows of the clip, and what it hands the method at every evaluation of the model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, partial
from typing import Any

import comfy.samplers
import torch
from comfy.sampler_helpers import convert_cond, prepare_mask
from torch import Tensor

from ...tokenflow_ops import JOINT_KEYFRAMES
from ...tokenflow_ops.baselines.fusion import FirstFrameMotion, motion_from_first
from ...tokenflow_ops.editing import Left, StepPlan, edit_again, edit_step
from ...tokenflow_ops.parameterization import before
from ...tokenflow_ops.passes import CapturePass
from ...tokenflow_ops.propagation import FEATURES, carries_pictures
from ..checkpoints.folders import Keeper
from ..conditioning.conds import hold_alike
from ..families.latents import for_host
from ..memory import fits_in_memory, is_oom, replaces_attention
from ..preview import show_frames
from ..runs.model_call import ModelCall
from ..runs.run import Run
from ..shards import together
from ..steps import Steps, rehearse
from ..validation.checks import check_same_clip
from ..validation.conflicts import check_areas
from ..validation.errors import NodeError
from .edit import Edit, Moment, kept_path
from .evaluation import Evaluation, LeftByStep


class EditRun(Run):
    """One sampling run of an edit.

    Args:
        edit: What to sample.
        keeper: Keeps the model's answers, if they are kept.
    """

    def __init__(self, edit: Edit, keeper: Keeper | None = None) -> None:
        super().__init__(edit.node, edit.frames_per_pass, keeper)
        self.edit = edit
        self.features = edit.correspondences.features
        self.jointly = edit.attended_keyframes or JOINT_KEYFRAMES
        self.inversion = self.features.inversion
        self.steps: Steps | None = None
        self.levels: list[float] = []  # of noise, at which the sampler's steps begin
        self.step_sigma: float | None = None  # at which the sampler's running step began
        self.mask: Tensor | None = None
        self.left: dict[Any, LeftByStep] = {}
        self.said_full = False
        self.evaluations = 0  # of the sampler's running call
        self.source_conds: list[dict[str, Any]] | None = None
        self.positive: list[dict[str, Any]] | None = None

    def begin(self, guider: Any, sampler: Any, sigmas: Tensor, noise: Tensor) -> None:
        """Checks the batch, and processes the source prompt as the host processes the others.

        The source prompt is needed where features have to be computed again.

        Args:
            guider: The run's guider.
            sampler: The host's sampler object.
            sigmas: The run's noise levels, falling, (S+1,).
            noise: What the host adds to the latents, (N, C, h, w).

        Raises:
            NodeError: If the batch is not the inverted clip, or for what cannot be
                combined with TokenFlow.
        """
        super().begin(guider, sampler, sigmas, noise)
        self.levels = sigmas.tolist()
        check_same_clip(self.node, tuple(noise.shape), self.inversion, "latent_image")
        rehearsed = rehearse(sampler, guider, sigmas)
        self.steps, self.expected = Steps(rehearsed), len(rehearsed) or self.expected
        self.positive = guider.conds.get("positive")
        if self.edit.mask is not None:
            self.mask = prepare_mask(self.edit.mask.float().clamp(0, 1), noise.shape, noise.device)
        source = convert_cond(self.inversion.conditioning)
        if not any("control" in entry or "hooks" in entry for entry in source):
            # As during inversion; inpainting models ask for it.
            noise = for_host(guider.model_patcher, noise)
            clean = for_host(guider.model_patcher, self.inversion.latents[-1].to(noise))
            conds = comfy.samplers.process_conds(
                guider.inner_model, noise, {"source": source}, noise.device, clean, seed=0
            )
            self.source_conds = conds["source"]

    def denoise(self, x: Tensor, sigma: float, predict: Callable[[Tensor], Tensor]) -> Tensor:
        """Denoises the frames; outside the mask, once it holds, they are kept.

        There the model sees the path of what is kept, and what is kept counts as what it has found.

        Args:
            x: Noisy frames, (N, C, h, w).
            sigma: Their noise level.
            predict: Denoises noisy frames (N, C, h, w) with guidance.

        Returns:
            The denoised frames, (N, C, h, w).
        """
        self.step_sigma = sigma if self.steps is None else self.steps.begins_at(sigma)
        self.evaluations = 0
        after_guidance = partial(self.edit.mode.after_guidance, self, self.moment(self.step_sigma))
        mask = self.mask_at(self.step_sigma)
        if mask is None:
            return after_guidance(predict(x))
        path, clean = self.kept_at(sigma).to(x), self.kept_at(0.0).to(x)
        return torch.lerp(clean, after_guidance(predict(torch.lerp(path, x, mask))), mask)

    def kept_at(self, sigma: float) -> Tensor:
        """Returns what stays outside of the mask at a noise level, (N, C, h, w).

        It is the source on its own path, or the given clip under the noise of that path.

        Args:
            sigma: The level.

        Returns:
            Latents in the model's latent space.
        """
        return kept_path(self.edit, sigma)

    def mask_at(self, sigma: float) -> Tensor | None:
        """Returns the mask, (N, 1, h, w), in a step that begins at a noise level.

        Args:
            sigma: The level.

        Returns:
            None as long as everything is edited.
        """
        noise = self.edit.backbone.parameterization.noise_over_signal(sigma)
        return None if before(self.edit.mask_from, noise) and sigma else self.mask

    def reported(self, callback: Any) -> Any:
        """Returns the host's callback with a preview of several frames."""
        return show_frames(self.model, callback)

    def finish(self, x: Tensor, sigma: float) -> Tensor:
        """Puts back what is kept outside the mask.

        Some samplers end with a little noise left, and what is kept has none of it.

        Args:
            x: What the sampler ends with, (N, C, h, w).
            sigma: The last noise level.

        Returns:
            (N, C, h, w).
        """
        mask = self.mask_at(sigma)
        if mask is None:
            return x
        return torch.where(mask > 0, x, self.kept_at(sigma).to(x))

    def evaluate(self, call: ModelCall) -> list[Tensor]:
        """Runs the mode's passes, or the plain host where nothing is to be changed."""
        check_same_clip(self.node, tuple(call.x.shape), self.inversion, "latent_image")
        now = self.moment(call.sigma if self.step_sigma is None else self.step_sigma)
        if not self.edit.mode.per_frame or now.injected:
            check_areas(self.node, "positive", call.conds)
        return self.edit.mode.passes(self, call, now)

    @property
    def quickens(self) -> bool:
        """Whether frames are made of the keyframes' pictures, and do not run."""
        if self.step_sigma is None or self.edit.mode.passes is not EditRun.edit_jointly:
            return False
        return self.plan(self.moment(self.step_sigma)).carries

    @property
    def leaves(self) -> bool:
        """Whether a step has left something for another one."""
        return bool(self.left)

    def needs_earlier(self, call: ModelCall) -> bool:
        """Tells whether an evaluation takes what another step has left.

        Further evaluations for one call of the sampler count on from the first.
        """
        now = self.moment(call.sigma if self.step_sigma is None else self.step_sigma)
        return bool(self.evaluations) or any(kept.serves(now.step) for kept in self.left.values())

    def state(self) -> dict[str, int]:
        """Returns the numbers of a run, and how many keyframes are edited together."""
        return {**super().state(), "jointly": self.jointly}

    def restore(self, state: Mapping[str, int]) -> None:
        """Takes over the numbers of a run that was stopped."""
        super().restore(state)
        self.jointly = state["jointly"]

    def moment(self, sigma: float) -> Moment:
        """Describes the sampling step that began at the noise level `sigma`."""
        step = self.inversion.closest_step(sigma)
        matches, injection = self.edit.correspondences.steps[step], self.edit.injection
        place, steps = self.inversion.skipped + step, self.inversion.steps
        backbone = self.edit.backbone
        noise = backbone.parameterization.noise_over_signal(sigma)
        # A sampler's sigma went through other arithmetic: allow a relative hair.
        following = max((level for level in self.levels if level < sigma * (1 - 1e-4)), default=0.0)
        ends = backbone.parameterization.noise_over_signal(following)
        if injection is None:
            return Moment(step, matches, (), (), noise, ends, place, steps)
        attention = (
            backbone.injected_attention(injection.layers) if injection.attention_at(noise) else ()
        )
        hidden = (
            backbone.hidden_layers(self.features.shapes, injection.features_in)
            if injection.features_at(noise)
            else ()
        )
        return Moment(step, matches, attention, hidden, noise, ends, place, steps)

    @cached_property
    def motion(self) -> FirstFrameMotion:
        """Where every frame's latents lay in the first frame, by the source's pictures."""
        assert self.edit.frames is not None, "checked by the node"
        height, width = self.inversion.latents.shape[-2:]
        return motion_from_first(
            self.edit.frames[..., :3].movedim(-1, 1).float().cpu(), (height, width)
        )

    def source(self, call: ModelCall, frames: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Returns the source's features of some frames at the evaluation's own noise level.

        They are the stored ones, or computed now if not all are stored.

        Args:
            call: The evaluation.
            frames: Frame numbers, (n,).
            names: Self-attention layers, and layers with hidden features.

        Returns:
            By name tokens (n, P, C) or hidden features (n, C, h, w).

        Raises:
            NodeError: If they have to be computed, and the source prompt has ControlNet or hooks.
        """
        names = tuple(names)
        if not names:
            return {}
        stored = self.features.stored(self.inversion.closest_step(call.sigma), names, frames)
        if stored is not None:
            return stored
        capture = CapturePass(frames, names=frozenset(names))
        self.run_on_source(call, capture)
        return capture.kept

    @property
    def every_level(self) -> bool:
        """Whether every step has features of its own, by the user's choice."""
        return len(self.features.steps) == len(self.inversion.sigmas) - 1

    def carries_deep(self, call: ModelCall) -> bool:
        """Tells whether frames need nothing below full resolution.

        They do need it where patches on the model's blocks (FreeU, downscaling, skipped layers)
        want to see it run, and where self-attention is replaced.
        """
        options = call.options["transformer_options"]
        # The host puts them on UNets too, where they change nothing.
        replaced = options.get("patches_replace", {}).get("dit")
        patched = bool(replaced and self.edit.backbone.matched_on_output) or any(
            kind.endswith(("block_patch", "after_skip", "_block"))
            for kind in options.get("patches", {})
        )
        return (
            self.edit.deep
            and bool(self.edit.backbone.deep)
            and not patched
            and not replaces_attention(self.model)
        )

    def source_prompt(self) -> list[dict[str, Any]]:
        """Returns the source prompt, processed.

        Returns:
            One list of conditionings.

        Raises:
            NodeError: If it has what a pass of its own cannot have: ControlNet or hooks.
        """
        if self.source_conds is None:
            raise NodeError(
                self.node,
                "correspondences",
                "a source prompt with ControlNet or hooks, whose features are not stored.",
                "Choose memory or disk as storage, all layers and every step in Extract SA "
                "Features; the public code's mode and fatezero always need a plain source prompt.",
            )
        return self.source_conds

    def run_on_source(self, call: ModelCall, capture: CapturePass) -> None:
        """Runs a pass over the source at the evaluation's noise level, with the source prompt.

        Args:
            call: The evaluation.
            capture: The pass, which keeps what it sees.

        Raises:
            NodeError: If the source prompt has ControlNet or hooks.
        """
        latents = self.inversion.latents_at(call.sigma)[capture.frames].to(call.x)
        call.run(self, capture, latents, [self.source_prompt()])

    def kept_for_next(self, now: Moment, deep: bool, alike: bool) -> str | None:
        """Tells what a step keeps for the next one.

        Args:
            now: Where the sampler stands.
            deep: Whether frames take all that lies below full resolution as a whole. A patch that
                wants all of the model to run wants it at every step.
            alike: Whether prompts hold on all frames alike; else each changes by its own.

        Returns:
            FEATURES or CHANGES, or None for nothing.
        """
        repeats = self.edit.repeats
        if repeats is None or not repeats.follow(now.noise, now.ends):
            return None
        possible = deep == self.edit.deep if repeats.takes == FEATURES else alike
        return repeats.takes if possible else None

    def fits_for_next(self, size: int) -> bool:
        """Tells whether so many bytes may be kept in main memory for the next step.

        Args:
            size: Bytes.

        Returns:
            Whether they fit. Where not, it is said once: the run takes longer.
        """
        if fits_in_memory(size):
            return True
        if not self.said_full:
            logging.info(
                "%s: %.1f GiB do not fit into main memory: keyframes run at every step.",
                self.node,
                size / 2**30,
            )
        self.said_full = True
        return False

    def plan(
        self,
        now: Moment,
        deep: bool = False,
        guided: bool = False,
        alike: bool = False,
        before: list[Tensor] | None = None,
    ) -> StepPlan:
        """Makes the plan of what TokenFlow does at a step.

        Args:
            now: Where the sampler stands.
            deep: Whether frames take all that lies below full resolution as a whole.
            guided: Whether a frame's guidance is another one's where they show the same.
            alike: Whether prompts hold on all frames alike.
            before: All frames as the step before has denoised them, if it has kept them.

        Returns:
            The step's plan.
        """
        backbone = self.edit.backbone
        along = None if self.every_level else {path: backbone.beside(path) for path in now.hidden}
        ends = float(self.inversion.sigmas[now.step + 1])
        ends = backbone.parameterization.noise_over_signal(ends)
        carries = carries_pictures(self.edit.carry_until, now.noise, ends)
        # Guidance that replaces self-attention (SAG) reads what it saw in the last pass, and takes
        # it for all frames.
        at_once = replaces_attention(self.model)
        keeps = self.kept_for_next(now, deep, alike) if not (carries or at_once) else None
        return StepPlan(
            self.edit.correspondences,
            now.step,
            now.attention,
            now.hidden,
            along,
            backbone.shallow if deep else None,
            carries,
            self.jointly,
            at_once,
            guides_along=self.edit.guides_along and guided and not at_once,
            keeps=keeps,
            fits=self.fits_for_next,
            before=before,
            merges=self.edit.merges and not at_once,
        )

    def edit_jointly(self, call: ModelCall, now: Moment) -> list[Tensor]:
        """Edits the keyframes jointly, and every frame from their tokens.

        Where memory runs out, fewer keyframes are edited together for the rest of the run.

        Args:
            call: The evaluation.
            now: Where the sampler stands.

        Returns:
            The denoised frames (N, C, h, w) for each list of conditionings.
        """
        self.evaluations += 1
        key = self.evaluations, len(call.conds)
        kept, before = self.left.get(key), None
        if kept is not None and kept.serves(now.step):
            kept.again = now.step
            if isinstance(kept.left, Left):
                return edit_again(Evaluation(self, call), kept.left, together()).denoised
            before = kept.left
        else:
            self.left.pop(key, None)  # before the next one is made
        deep, alike = self.carries_deep(call), hold_alike(call.conds)
        while True:
            plan = self.plan(now, deep, call.guides_alike, alike, before)
            try:
                edited = edit_step(Evaluation(self, call), plan, together())
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
            else:
                if edited.left is not None:
                    self.left[key] = LeftByStep(now.step, edited.left)
                return edited.denoised
