"""A clone of the user's model whose every evaluation goes through a run of ours.

A run begins when the host starts sampling and ends when sampling ends, after success, error
and interrupt alike. It travels as one object in `transformer_options`, and nothing else holds it:
the clone has only functions that make runs. So whatever a run keeps goes with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ..conditioning.conds import Conds
from ..families import Family, backbone_of
from ..families.latents import of_frames, shaped_as, start_noise
from ..families.wraps import ForwardWraps
from ..measuring.forecast import forecast
from ..memory import frames_at_once
from .model_call import ModelCall
from .run import Run

KEY = "tokenflow"


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
