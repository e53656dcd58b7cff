"""A clone of the user's model whose every evaluation goes through a run of ours.

A run begins when the host starts sampling and ends when sampling ends, after success, error
and interrupt alike. It travels as one object in `transformer_options`, and nothing else holds it:
the clone has only functions that make runs. So whatever a run keeps goes with it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from comfy import model_management
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ..tokenflow_ops.passes import FeatureMismatch, Pass
from ..tokenflow_ops.shards import ALONE, Shards
from .calls import Handover
from .checkpoints.folders import Keeper
from .checkpoints.run import Checkpoints
from .conditioning.conds import Conds, PassConds, cut_conds, hold_alike
from .conditioning.controls import Encoded
from .families import Family, backbone_of
from .families.latents import of_frames, shaped_as, start_noise
from .families.wraps import ForwardWraps
from .measuring.forecast import forecast
from .memory import frames_at_once, is_oom
from .validation.conflicts import (
    DOWNSCALE,
    check_controls,
    check_every_pass_runs,
    check_patch_images,
)
from .validation.entrance import Entrance
from .validation.errors import NodeError

KEY = "tokenflow"
T = TypeVar("T")


class Run:
    """One sampling run: splits every evaluation of the model into passes over some of the frames.

    Subclasses say which passes.

    Args:
        node: The node's name, for errors.
        frames_per_pass: Frames in one pass, 0 for the host's estimate.
        keeper: Keeps the model's answers, if they are kept.
    """

    def __init__(self, node: str, frames_per_pass: int = 0, keeper: Keeper | None = None) -> None:
        self.node = node
        self.frames_per_pass = frames_per_pass
        self.keeper = keeper
        self.checkpoints: Checkpoints | None = None
        self.expected = 0  # evaluations of the whole run, as far as they are known
        self.keeps: dict[str, int] = {}  # bytes of what it makes, by names for people
        self.most = sys.maxsize
        self.model: Any = None
        self._cut: dict[tuple[Any, ...], tuple[list[dict[str, Any]], PassConds]] = {}
        self._encoded: Encoded = {}

    def begin(self, guider: Any, sampler: Any, sigmas: Tensor, noise: Tensor) -> None:
        """Checks what the user put on the model and the prompts, and takes the model.

        Called once the model is loaded and conditionings are processed.

        Args:
            guider: The run's guider.
            sampler: The host's sampler object.
            sigmas: The run's noise levels, falling, (S+1,).
            noise: What the host adds to the latents, (N, C, h, w).

        Raises:
            NodeError: For what cannot be combined with TokenFlow.
        """
        self.model = guider.model_patcher
        self.expected = self.expected or len(sigmas) - 1
        check_every_pass_runs(self.node, guider.model_options)
        check_patch_images(self.node, guider.model_options)
        check_controls(self.node, guider.conds)

    def reported(self, callback: Any) -> Any:
        """Returns what the sampler calls at every step, made of the host's callback or None."""
        return callback

    def finish(self, x: Tensor, sigma: float) -> Tensor:
        """Returns what the run ends with.

        Args:
            x: What the sampler ends with, (N, C, h, w).
            sigma: The last noise level.

        Returns:
            (N, C, h, w).
        """
        return x

    def denoise(self, x: Tensor, sigma: float, predict: Callable[[Tensor], Tensor]) -> Tensor:
        """Denoises the frames: one evaluation that the sampler asks for.

        Args:
            x: Noisy frames, (N, C, h, w).
            sigma: Their noise level.
            predict: Denoises noisy frames (N, C, h, w) with guidance.

        Returns:
            The denoised frames, (N, C, h, w).
        """
        return predict(x)

    def evaluate(self, call: ModelCall) -> list[Tensor]:
        """Denoises the frames for each list of conditionings.

        Guidance may ask for this several times in one `denoise`.
        """
        return self.over_frames(call, lambda frames: Pass(frames))

    @property
    def quickens(self) -> bool:
        """Whether the running step takes less time than later ones will."""
        return False

    @property
    def leaves(self) -> bool:
        """Whether the run holds what later evaluations may take."""
        return False

    def needs_earlier(self, call: ModelCall) -> bool:
        """Tells whether an evaluation takes what earlier ones have left in the run."""
        return False

    def state(self) -> dict[str, int]:
        """Returns the numbers without which a run that goes on would come to other bits."""
        return {"frames_per_pass": self.frames_per_pass, "most": self.most}

    def restore(self, state: Mapping[str, int]) -> None:
        """Takes over the numbers of a run that was stopped.

        Args:
            state: From `state`.
        """
        self.frames_per_pass, self.most = state["frames_per_pass"], state["most"]

    def over_frames(
        self,
        call: ModelCall,
        make: Callable[[Tensor], Pass],
        shards: Shards = ALONE,
        frames: Tensor | None = None,
    ) -> list[Tensor]:
        """Runs passes over frames in order, and joins what they return.

        Args:
            call: The evaluation.
            make: Makes the pass of some frames (n,).
            shards: The machines that may share the passes, which need nothing of each other.
            frames: Frame numbers, (n,), or None for all.

        Returns:
            The denoised frames (n, C, h, w) for each list of conditionings.
        """
        return self.over_parts(call, lambda part: call.run(self, make(part)), shards, frames)

    def over_parts(
        self,
        call: ModelCall,
        denoise: Callable[[Tensor], list[Tensor]],
        shards: Shards = ALONE,
        frames: Tensor | None = None,
    ) -> list[Tensor]:
        """Denoises frames part by part, in order, and joins what comes of it.

        Args:
            call: The evaluation.
            denoise: Denoises some frames (n,) for each list of conditionings.
            shards: The machines that may share the parts, which need nothing of each other.
            frames: Frame numbers, (n,), or None for all.

        Returns:
            The denoised frames (n, C, h, w) for each list of conditionings.
        """
        frames = shards.here(torch.arange(len(call.x)) if frames is None else frames)
        found: list[Tensor] = []
        done = 0

        # Each part is written to its place: those that are joined in the end would be held twice.
        def work(part: Tensor) -> None:
            nonlocal done
            for number, rows in enumerate(denoise(part)):
                if number == len(found):
                    found.append(rows.new_empty(len(frames), *rows.shape[1:]))
                found[number][done : done + len(part)] = rows
            done += len(part)

        self.in_parts(call, frames, work)
        return joined([there for there in shards.gather(found) if there])

    def in_parts(self, call: ModelCall, frames: Tensor, work: Callable[[Tensor], T]) -> list[T]:
        """Does the work for as many frames at once as memory allows, in order.

        Where memory runs out, parts halve, and stay so for the rest of the run.

        Args:
            call: The evaluation.
            frames: Frame numbers, (n,).
            work: Called with a part of them.

        Returns:
            What it returned for each part.
        """
        done: list[T] = []
        while len(frames):
            part = frames[
                : min(frames_at_once(self.model, call.x.shape, self.frames_per_pass), self.most)
            ]
            try:
                done.append(work(part))
            except Exception as error:
                if len(part) == 1 or not is_oom(error):
                    raise
                self.most = len(part) // 2
                logging.warning(
                    "%s: out of memory, on with %d frames in one pass.", self.node, self.most
                )
            else:
                frames = frames[len(part) :]
        return done

    def cut(self, conds: Conds, frames: Tensor, total: int, kind: str, number: int) -> PassConds:
        """Cuts conditionings down to some frames.

        Those of consecutive frames, which come again at every step, are kept.

        Args:
            conds: Processed conditionings of all frames, list by list.
            frames: Frame numbers, (n,).
            total: Frames of the clip.
            kind: The kind of pass, a part of the new conditionings' uuids.
            number: The pass's number in its evaluation, a part of the uuids where frames
                are not consecutive.

        Returns:
            The conditionings of these frames.
        """
        first, last = int(frames[0]), int(frames[-1])
        if len(frames) != last - first + 1:
            return cut_conds(conds, frames, total, f"{kind}, part {number}", self._encoded)
        name = f"{kind} {first}-{last}"
        entries = [entry for listed in conds for entry in listed or ()]
        key = (name, *(len(listed or ()) for listed in conds))
        before, cut = self._cut.get(key, ((), None))
        # Held and compared by identity: guiders may make new ones at every evaluation, at the
        # address of those they dropped.
        if cut is None or any(one is not other for one, other in zip(before, entries, strict=True)):
            cut = cut_conds(conds, frames, total, name, self._encoded)
            self._cut[key] = entries, cut
        return cut


class ModelCall:
    """One evaluation that the sampler asks for: all frames at one noise level.

    It is for every list of conditionings.

    Args:
        executor: The host's own evaluation, called with the other arguments in this order.
        family: The model's.
        model: The host's model.
        conds: Processed conditionings of all frames, list by list.
        x: Noisy frames, (N, C, h, w).
        timestep: Their noise level, (1,) or (N,).
        options: The host's model_options.
    """

    def __init__(
        self,
        executor: Callable[..., list[Tensor]],
        family: Family,
        model: Any,
        conds: Conds,
        x: Tensor,
        timestep: Tensor,
        options: dict[str, Any],
    ) -> None:
        self.executor, self.family, self.model, self.options = executor, family, model, options
        self.conds, self.x = conds, x
        # Detached, because the host's training asks for its gradient.
        self.timestep = timestep.detach().expand(len(x))
        self.passes = 0

    @property
    def sigma(self) -> float:
        """Noise over signal, one for all frames."""
        return float(self.timestep[0])

    @property
    def guides_alike(self) -> bool:
        """Whether a frame's guidance is another one's where they show the same.

        Not where prompts hold on some frames or places alone, where there is none, where a patch
        may make attention's output of several lists' together (NAG), and where one brings images to
        the prompts, which may be every frame's own (IPAdapter).
        """
        options = self.options.get("transformer_options", {})
        patches = options.get("patches", {}) | options.get("patches_replace", {})
        mixed = any(
            found and kind.startswith(("attn2", "attn1_output")) for kind, found in patches.items()
        )
        return all(self.conds) and not mixed and hold_alike(self.conds)

    def unchanged(self) -> list[Tensor]:
        """Evaluates as the plain host does."""
        return self.executor(self.model, self.conds, self.x, self.timestep, self.options)

    def run(
        self, run: Run, frames_pass: Pass, x: Tensor | None = None, conds: Conds | None = None
    ) -> list[Tensor]:
        """Runs one pass over its frames.

        Args:
            run: The sampling run.
            frames_pass: The pass.
            x: Noisy latents of the pass's frames, (n, C, h, w), if they are not the sampler's own.
            conds: Conditionings of all frames, if they are not the sampler's own.

        Returns:
            The denoised frames (n, C, h, w) for each list of conditionings.

        Raises:
            NodeError: If a patch on the model keeps the UNet from seeing the pass's frames
                as they are.
        """
        model_management.throw_exception_if_processing_interrupted()
        frames, total = frames_pass.frames, len(self.x)
        cut = run.cut(
            self.conds if conds is None else conds,
            frames,
            total,
            type(frames_pass).__name__,
            self.passes,
        )
        self.passes += 1
        rows = frames.to(self.x.device)
        part = self.x[rows] if x is None else x
        patched = "model_function_wrapper" in self.options
        entrance = Entrance(run.node, part, cut.lists, cut.place, patched)
        # Packs with an image per frame (IPAdapter) pick the rows of a part of the batch as
        # AnimateDiff tells them.
        window = {"sub_idxs": frames.tolist(), "full_length": total, "context_length": len(frames)}
        ours = Handover(frames_pass, run.node, cut.place, entrance).given() | {"ad_params": window}
        given = self.options.get("transformer_options", {})
        options = self.options | {"transformer_options": given | ours | self.family.given(given)}
        try:
            denoised = self.executor(self.model, cut.lists, part, self.timestep[rows], options)
        except Exception as error:
            _wait_for_threads(options)
            if isinstance(error, FeatureMismatch):
                raise NodeError(run.node, "model", f"{error}.", DOWNSCALE) from error
            raise
        entrance.check_reached(denoised)
        return denoised


def joined(parts: list[list[Tensor]]) -> list[Tensor]:
    """Joins what several passes returned.

    Args:
        parts: For each pass, in the order of the clip, the denoised frames (n, C, h, w) of each
            list of conditionings.

    Returns:
        The frames of all of them, for each list of conditionings.
    """
    if len(parts) == 1:
        return parts[0]
    return [torch.cat(rows) for rows in zip(*parts, strict=True)]


def _wait_for_threads(options: Mapping[str, Any]) -> None:
    """Takes what the host's threads still answer after one of them failed.

    Otherwise it would be taken for the next call's answer.

    options: the host's model_options.
    """
    pool: Any = options.get("multigpu_thread_pool")
    if pool is None:
        return
    for device in pool.devices:
        last = object()
        pool.submit(device, lambda answer: answer, last)
        while pool.get_result(device)[0] is not last:
            pass


def run_of(model_options: Mapping[str, Any]) -> Run:
    """Returns the run to which an evaluation belongs.

    Args:
        model_options: The host's, as samplers are given them.

    Returns:
        The run.
    """
    run: Run = model_options["transformer_options"][KEY]
    return run


def patch(
    model: Any, new_run: Callable[[], Run], frames_per_pass: int = 0, with_deep: bool = False
) -> Any:
    """Makes a clone of a ModelPatcher that is evaluated through runs of ours.

    The given model is not touched.

    Args:
        model: The ModelPatcher.
        new_run: Makes the run of one sampling: a new one each time, which nothing else holds.
        frames_per_pass: Frames in one pass, 0 for the host's estimate.
        with_deep: Whether passes are asked for the model's deep layers.

    Returns:
        The clone.
    """
    clone = model.clone()
    found = backbone_of(clone)
    assert found is not None, "checked by the nodes"
    family, backbone = found
    if not with_deep:
        backbone = replace(backbone, deep=())
    wraps = ForwardWraps(family.wrapped(backbone), partial(family.wrapper, backbone))
    clone.remove_callbacks_with_key(CallbacksMP.ON_PRE_RUN, KEY)
    _add_wrappers(clone, family, new_run, frames_per_pass)
    wraps.during_sampling(clone, KEY)
    family.watch(clone, KEY, backbone)
    return clone


def _add_wrappers(
    clone: Any, family: Family, new_run: Callable[[], Run], frames_per_pass: int
) -> None:
    def outer_sample(executor: Any, *args: Any, **kwargs: Any) -> Any:
        run = new_run()
        options = executor.class_obj.model_options["transformer_options"]
        outer = options.get(KEY)
        options[KEY] = run
        try:
            return executor(*args, **kwargs)
        finally:
            options[KEY] = outer

    def prepare_sampling(
        executor: Any, model: Any, noise_shape: Any, *args: Any, **kwargs: Any
    ) -> Any:
        # The host would make room for the whole clip at once.
        frames = frames_at_once(model, noise_shape, frames_per_pass)
        return executor(model, [frames, *noise_shape[1:]], *args, **kwargs)

    def sampler_sample(
        executor: Any,
        guider: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        run = run_of(extra_args["model_options"])
        run.begin(guider, executor.class_obj, sigmas, of_frames(noise))
        if run.keeper is not None:
            started = (sigmas, noise, latent_image, extra_args.get("seed"))
            run.checkpoints = run.keeper.open(guider, executor.class_obj, *started)
            run.checkpoints.begin(run, of_frames(noise).shape)
        last = float(sigmas[-1])  # uni_pc writes into them
        noise = start_noise(guider.model_patcher, sigmas, noise, latent_image)
        callback = forecast(run, of_frames(noise).shape, len(sigmas) - 1, run.reported(callback))
        x = executor(guider, sigmas, extra_args, callback, noise, latent_image, *args, **kwargs)
        if run.keeper is not None and run.checkpoints is not None:
            run.keeper.close(run.checkpoints)
        return shaped_as(run.finish(of_frames(x), last), x)

    def predict_noise(
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        def predict(frames: Tensor) -> Tensor:
            return of_frames(
                executor(shaped_as(frames, x), timestep, model_options, *args, **kwargs)
            )

        sigma = float(timestep.detach().flatten()[0])
        return shaped_as(run_of(model_options).denoise(of_frames(x), sigma, predict), x)

    def calc_cond_batch(
        executor: Any,
        model: Any,
        conds: Conds,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
    ) -> list[Tensor]:
        def evaluate(
            model: Any, conds: Conds, frames: Tensor, timestep: Tensor, options: dict[str, Any]
        ) -> list[Tensor]:
            found = executor(model, conds, shaped_as(frames, x), timestep, options)
            return [of_frames(part) for part in found]

        call = ModelCall(evaluate, family, model, conds, of_frames(x), timestep, model_options)
        run = run_of(model_options)
        kept = run.checkpoints
        found = run.evaluate(call) if kept is None else kept.evaluate(run, call)
        return [shaped_as(part, x) for part in found]

    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, outer_sample),
        (WrappersMP.PREPARE_SAMPLING, prepare_sampling),
        (WrappersMP.SAMPLER_SAMPLE, sampler_sample),
        (WrappersMP.PREDICT_NOISE, predict_noise),
        (WrappersMP.CALC_COND_BATCH, calc_cond_batch),
    ):
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, wrapper)
