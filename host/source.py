"""Stage 1 on the host: the source's inversion and features, through the host's own sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from comfy import model_management
from torch import Tensor

from ..tokenflow_ops import Inversion, invert
from ..tokenflow_ops.features.source_features import Consumer
from ..tokenflow_ops.inversion import makes_pair
from ..tokenflow_ops.passes import CapturePass, Pass
from ..tokenflow_ops.shards import ALONE
from .checkpoints.folders import Keeper
from .families.latents import for_host, of_frames, shaped_as
from .memory import room
from .progress import Progress
from .runs.model_call import ModelCall
from .runs.patching import patch, run_of
from .runs.run import Run
from .shards import together
from .validation.conflicts import check_areas, check_captured, check_every_layer_runs


def invert_frames(
    node: str,
    model: Any,
    positive: Any,
    negative: Any,
    cfg: float,
    latents: Tensor,
    sigmas: Tensor,
    iterations: int,
    extrapolate: int = 0,
    pairs: bool = False,
    frames_per_pass: int = 0,
    progress: Progress | None = None,
    keeper: Keeper | None = None,
) -> Tensor:
    """Finds the source's path to noise by DDIM inversion.

    Args:
        node: The node's name, for errors.
        model: The user's ModelPatcher, which is not touched.
        positive: The source prompt, a CONDITIONING.
        negative: The negative prompt, a CONDITIONING; it may be empty.
        cfg: Scale of the guidance, 1 for none.
        latents: The source, (N, C, h, w) as on a LATENT socket.
        sigmas: Noise levels, falling, (S+1,).
        iterations: As `tokenflow_ops.invert` takes them.
        extrapolate: As `tokenflow_ops.invert` takes it.
        pairs: As `tokenflow_ops.invert` takes it.
        frames_per_pass: Frames in one pass, 0 for the host's estimate.
        progress: Counts the steps, if given.
        keeper: Keeps the model's answers, if they are kept.

    Returns:
        The path at `sigmas`, (S+1, N, C, h, w) float32 in the model's latent space.

    Raises:
        NodeError: If the path fits nowhere, or for what cannot be combined with TokenFlow.
    """
    # For all steps at once: a list would have to be joined, and held twice.
    path: Tensor | None = None

    def climb(
        model_k: Any,
        x: Tensor,
        upwards: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        disable: bool | None = None,
    ) -> Tensor:
        nonlocal path
        denoised, top = x, len(upwards) - 1
        run = run_of(extra_args["model_options"])
        assert isinstance(run, SourceRun)
        path = room(node, len(upwards), *x.shape)

        def epsilon(x: Tensor, sigma: Tensor) -> Tensor:
            nonlocal denoised
            denoised = model_k(x, sigma.expand(len(x)), **extra_args)
            return (x - denoised) / sigma

        for index, reached in invert(epsilon, x, upwards.flip(0), iterations, extrapolate, pairs):
            path[index].copy_(reached)
            run.in_pairs = pairs and makes_pair(index, top)
            if index < top and callback is not None:
                callback(
                    {
                        "i": top - 1 - index,
                        "denoised": denoised,
                        "x": reached,
                        "sigma": upwards[top - index],
                    }
                )
        return torch.zeros_like(x)  # a flow model's host divides what a run ends with by 1 - sigma

    def new_run() -> SourceRun:
        run = SourceRun(node, frames_per_pass, keeper)
        run.expected = evaluations(sigmas, iterations, extrapolate, pairs)
        run.keeps["path to noise"] = len(sigmas) * latents.numel() * 4
        return run

    patched = patch(model, new_run, frames_per_pass)
    run_as_sampler(climb, patched, positive, negative, cfg, sigmas.flip(0), latents, progress)
    assert path is not None, "the host has called the sampler"
    return path


def evaluations(sigmas: Tensor, iterations: int, extrapolate: int, pairs: bool = False) -> int:
    """Counts the evaluations of the model that an inversion asks for.

    Args:
        sigmas: Noise levels, falling, (S+1,).
        iterations: As `tokenflow_ops.invert` takes them.
        extrapolate: As `tokenflow_ops.invert` takes it.
        pairs: As `tokenflow_ops.invert` takes it.

    Returns:
        Their number.
    """
    asked = 0

    def count(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return x

    for _ in invert(count, torch.zeros(1), sigmas.cpu(), iterations, extrapolate, pairs):
        pass
    return asked


def capture_features(
    node: str,
    model: Any,
    inversion: Inversion,
    names: Iterable[str],
    steps: Iterable[int],
    consume: Consumer,
    frames: Tensor | None = None,
    frames_per_pass: int = 0,
    shapes: Mapping[str, tuple[int, int]] | None = None,
    progress: Progress | None = None,
) -> None:
    """Runs the source through the model at some steps, and hands over what the layers saw.

    Args:
        node: The node's name, for errors.
        model: The user's ModelPatcher, which is not touched.
        inversion: The source's path, with its prompt.
        names: Self-attention layers, whose normed input is recorded, and parts of ResBlocks.
        steps: Steps of the inversion.
        consume: Called after every pass with its features by name, (n, P, C) or (n, C, h, w) on
            the host's intermediate device, in the model's type: all of a clip's may be more than
            memory holds.
        frames: Frame numbers, (n,), or None for all.
        frames_per_pass: Frames in one pass, 0 for the host's estimate.
        shapes: Tokens and width (P, C) that layers are known to have.
        progress: Counts the steps; None where this is part of other work.

    Raises:
        NodeError: If the layers have other shapes, did not run or are not finite, or for what
            cannot be combined with TokenFlow.
    """
    wanted, visited = frozenset(names), list(steps)

    def keep(step: int, found: dict[str, Tensor], first: int, total: int) -> None:
        check_captured(node, step, found, wanted, shapes or {})
        consume(step, found, first, total)

    def go_on(step: int, denoised: Tensor, run: Run) -> None:
        assert isinstance(run, CaptureRun), "the model is patched with it"
        run.recorded = False

    visit_steps(
        patch(
            model, lambda: CaptureRun(node, wanted, visited, keep, frames_per_pass), frames_per_pass
        ),
        inversion,
        inversion.conditioning,
        visited,
        go_on,
        frames,
        progress,
    )


def visit_steps(
    model: Any,
    inversion: Inversion,
    prompt: Any,
    steps: Sequence[int],
    consume: Callable[[int, Tensor, Run], None],
    frames: Tensor | None = None,
    progress: Progress | None = None,
) -> None:
    """Denoises the source once at each of some steps of its inversion.

    Args:
        model: The ModelPatcher, a clone from `patch`.
        inversion: The source's path.
        prompt: What the model is told, a CONDITIONING.
        steps: Steps of the inversion.
        consume: Called with each step, the denoised frames (n, C, h, w) and the run.
        frames: Frame numbers, (n,), or None for all.
        progress: Counts the steps; None where this is part of other work.
    """

    def visit(
        model_k: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        disable: bool | None = None,
    ) -> Tensor:
        for done, step in enumerate(steps):
            latents, sigma = inversion.latents[step], inversion.sigmas[step].to(x)
            latents = (latents if frames is None else latents[frames]).to(x)
            denoised = model_k(latents, sigma.expand(len(latents)), **extra_args)
            consume(step, denoised, run_of(extra_args["model_options"]))
            if callback is not None:
                callback({"i": done, "denoised": denoised, "x": latents, "sigma": sigma})
        return x

    # Of the noise levels only the number counts, of the latents the size: one zero for all.
    shape = inversion.frames if frames is None else len(frames), *inversion.latents.shape[2:]
    sigmas, blank = inversion.sigmas[: len(steps) + 1], inversion.latents.new_zeros(1).expand(shape)
    run_as_sampler(visit, model, prompt, [], 1.0, sigmas, blank, progress)


class SourceRun(Run):
    """A run over the source, which the whole model has to see; machines may share its frames."""

    in_pairs = False  # whether two steps are made with one evaluation

    @property
    def quickens(self) -> bool:
        """Whether the running steps are made in pairs, and later ones are not."""
        return self.in_pairs

    def begin(self, guider: Any, sampler: Any, sigmas: Tensor, noise: Tensor) -> None:
        """Checks what the user put on the model and the prompts, more strictly than for an edit.

        Args:
            guider: The run's guider.
            sampler: The host's sampler object.
            sigmas: The run's noise levels, falling, (S+1,).
            noise: What the host adds to the latents, (N, C, h, w).

        Raises:
            NodeError: For what cannot be combined with TokenFlow, or keeps layers from
                seeing the source.
        """
        check_every_layer_runs(self.node, guider.model_options)
        super().begin(guider, sampler, sigmas, noise)

    def evaluate(self, call: ModelCall) -> list[Tensor]:
        return self.over_frames(call, Pass, together())


class CaptureRun(SourceRun):
    """Hands over the features of each pass, in the order of the frames.

    Args:
        node: The node's name, for errors.
        names: The layers to record.
        steps: The steps that are visited.
        keep: Takes the features.
        frames_per_pass: Frames in one pass, 0 for the host's estimate.
    """

    def __init__(
        self,
        node: str,
        names: frozenset[str],
        steps: Sequence[int],
        keep: Consumer,
        frames_per_pass: int,
    ) -> None:
        super().__init__(node, frames_per_pass)
        self.names, self.steps, self.keep = names, iter(steps), keep
        self.recorded = False  # whether the step's features are known

    def evaluate(self, call: ModelCall) -> list[Tensor]:
        """Evaluates all frames, and records each pass.

        Where guidance evaluates once more, with changed attention (PAG), nothing is recorded.
        """
        check_areas(self.node, "inversion", call.conds)
        if self.recorded:
            return super().evaluate(call)
        self.recorded = True
        step, shards, total = next(self.steps), together(), len(call.x)
        device, here = model_management.intermediate_device(), list[dict[str, Tensor]]()

        def capture(frames: Tensor) -> list[Tensor]:
            work = CapturePass(frames, names=self.names, device=device)
            denoised = call.run(self, work)
            if shards is ALONE:
                self.keep(step, work.kept, int(frames[0]), total)
            else:
                here.append(work.kept)
            return denoised

        denoised, first = self.over_parts(call, capture, shards), 0
        if shards is not ALONE:
            for part in (part for machine in shards.gather(here) for part in machine):
                rows = len(next(iter(part.values())))
                self.keep(step, part, first, total)
                first += rows
        return denoised


def run_as_sampler(
    function: Callable[..., Tensor],
    model: Any,
    positive: Any,
    negative: Any,
    cfg: float,
    sigmas: Tensor,
    latents: Tensor,
    progress: Progress | None,
) -> None:
    """Runs a function as one of the host's samplers.

    The host loads the model, processes the conditionings and cleans up.

    Args:
        function: Called as the host calls a sampler of k-diffusion.
        model: The ModelPatcher to sample.
        positive: The prompt, a CONDITIONING.
        negative: The negative prompt, a CONDITIONING; it may be empty.
        cfg: Scale of the guidance, 1 for none.
        sigmas: What the function is given as noise levels, (S+1,).
        latents: What the function and the conditionings are given as the clip, (N, C, h, w) as on
            a LATENT socket.
        progress: Counts the steps and shows previews of them; None where this is part
            of other work.
    """

    def sampling(model_k: Any, x: Tensor, sigmas: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        def denoise(frames: Tensor, sigma: Tensor, **more: Any) -> Tensor:
            return of_frames(model_k(shaped_as(frames, x), sigma, **more))

        return shaped_as(function(denoise, of_frames(x), sigmas, *args, **kwargs), x)

    latents = for_host(model, latents)
    sampler = comfy.samplers.KSAMPLER(sampling)
    callback = None if progress is None else progress.sampling(model, len(sigmas) - 1)
    comfy.sample.sample_custom(
        model,
        latents.new_zeros(1).expand_as(latents),
        cfg,
        sampler,
        sigmas,
        positive,
        negative,
        latents,
        callback=callback,
        seed=0,
    )
