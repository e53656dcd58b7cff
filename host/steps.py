"""Which step an evaluation of a sampler belongs to.

A sampler may evaluate the model several times a step, between or on the step's noise levels: Heun's
second evaluation stands on the next level, where Euler would begin its next step. The level alone
cannot tell, so the sampler is rehearsed on a single number without a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy import model_management
from torch import Tensor

from .memory import is_oom


class Steps:
    """The evaluations of one sampling run, counted as they come.

    Args:
        rehearsed: For every evaluation its noise level and that of its step's first one.
    """

    def __init__(self, rehearsed: Sequence[tuple[float, float]]) -> None:
        self._rehearsed = rehearsed
        self._seen = 0

    def begins_at(self, sigma: float) -> float:
        """Returns the noise level at which the step of the next evaluation, at `sigma`, began.

        That is `sigma` itself where the rehearsal does not say: for adaptive samplers, and for
        those that do not report their steps as they begin.
        """
        expected, begin = (
            self._rehearsed[self._seen] if self._seen < len(self._rehearsed) else (0.0, 0.0)
        )
        self._seen += 1
        return begin if _close(expected, sigma) else sigma


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-4 * abs(other)


# Adaptive samplers may never stop evaluating a model that finds nothing.
MOST_EVALUATIONS_PER_STEP = 10


class _Nothing:
    """A model whose clean latents are zero."""

    def __init__(self, guider: Any, steps: int) -> None:
        self.inner_model = guider
        self.levels: list[float] = []  # the noise levels it was asked for
        self.most = steps * MOST_EVALUATIONS_PER_STEP

    def __call__(self, x: Tensor, sigma: Tensor, model_options: dict[str, Any], **_: Any) -> Tensor:
        if len(self.levels) == self.most:
            raise RuntimeError("too many evaluations for a sampler of fixed steps")
        self.levels.append(float(sigma[0]))
        denoised = torch.zeros_like(x)
        # The CFG++ samplers bring functions of their own.
        for function in model_options.get("sampler_post_cfg_function", []):
            denoised = function(
                {"denoised": denoised, "uncond_denoised": denoised, "model_options": model_options}
            )
        return denoised


def rehearse(sampler: Any, guider: Any, sigmas: Tensor) -> list[tuple[float, float]]:
    """Finds for every evaluation its noise level and that of its step's first one.

    k-diffusion's samplers report a step right after its first evaluation, at the same level.

    Args:
        sampler: The host's sampler object.
        guider: The run's guider; samplers ask it for the noise schedule.
        sigmas: The run's noise levels, falling, (S+1,).

    Returns:
        Both levels of every evaluation; nothing if they cannot be known beforehand.
    """
    nothing = _Nothing(guider, len(sigmas) - 1)
    levels, firsts = nothing.levels, list[int]()

    def report(info: dict[str, Any]) -> None:
        if levels and "sigma" in info and _close(float(info["sigma"]), levels[-1]):
            firsts.append(len(levels) - 1)

    try:
        with torch.random.fork_rng(devices=[]):
            sampler.sampler_function(
                nothing,
                torch.ones(1, 1, 1, 1),
                sigmas.detach().cpu().clone(),
                extra_args={"model_options": {}, "seed": 0},
                callback=report,
                disable=True,
                **sampler.extra_options,
            )
    except model_management.InterruptProcessingException:
        raise
    # Samplers of other packs may ask for anything: then the levels have to do.
    except Exception as error:
        if is_oom(error):  # reported late, for something that ran before
            raise
        return []
    if not firsts or firsts[0] != 0:
        return []
    begins = [
        levels[max(first for first in firsts if first <= number)] for number in range(len(levels))
    ]
    return list(zip(levels, begins, strict=True))
