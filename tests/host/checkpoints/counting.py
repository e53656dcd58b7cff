"""Short runs whose calls of the model are counted, and may be stopped at one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import pytest
from comfy_extras.nodes_custom_sampler import SamplerCustom
from tokenflow_pack.host.families.latents import as_latent
from torch import Tensor

from ..helpers import NEGATIVE, POSITIVE, call, injection, invert, watched
from ..small import applied, edit, matched, tiny_model
from ..tiny_models import moving_clip

SMALL = 8, 8
Run = Callable[[Any], Tensor]


class Stopped(Exception):
    """As if the process had ended."""


class Counting:
    """A model whose calls are counted; one of them may stop the run."""

    def __init__(self) -> None:
        self.calls = self.stop_at = 0
        self.model = watched(tiny_model(), self._see)

    def _see(self, _: Any) -> None:
        self.calls += 1
        if self.calls == self.stop_at:
            raise Stopped

    def stopped_at(self, number: int, run: Run) -> None:
        """Runs until a call of the model."""
        self.calls, self.stop_at = 0, number
        with pytest.raises(Stopped):
            run(self.model)
        self.stop_at = 0

    def calls_of(self, run: Run) -> tuple[int, Tensor]:
        """Runs to the end. Returns: how often the model was called, and what came out."""
        self.calls, self.stop_at = 0, 0
        found = run(self.model)
        return self.calls, found


def sampled(sampler: str = "euler", **inputs: Any) -> Run:
    """TokenFlow Sampler."""

    def run(model: Any) -> Tensor:
        correspondences = matched(3, SMALL, "recompute")
        given = {"correspondences": correspondences, "injection": injection(), "seed": 1, **inputs}
        return edit(model, sampler_name=sampler, frames_per_pass=2, **given)

    return run


def sampled_by_host(
    sampler: str = "euler", seed: int = 1, positive: Any = POSITIVE, cfg: float = 4.0, **inputs: Any
) -> Run:
    """Apply TokenFlow under the host's SamplerCustom."""

    def run(model: Any) -> Tensor:
        correspondences = matched(3, SMALL, "recompute")
        patched = applied(
            model, correspondences, injection=injection(), frames_per_pass=2, **inputs
        )
        inversion = correspondences.features.inversion
        noisy = {"samples": as_latent(patched, inversion.latents[0], inversion.sigmas[0])}
        chosen = comfy.samplers.sampler_object(sampler)
        given = (False, seed, cfg, positive, NEGATIVE, chosen, inversion.sigmas, noisy)
        return call(SamplerCustom.execute, patched, *given)[0]["samples"]

    return run


def inverted(**inputs: Any) -> Run:
    """DDIM Invert Video."""

    def run(model: Any) -> Tensor:
        given = {"frames_per_pass": 2, "check_reconstruction": False, **inputs}
        return invert(model, moving_clip(3, *SMALL), **given)[0].latents

    return run
