"""One evaluation that the sampler asks for, and the passes that it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from comfy import model_management
from torch import Tensor

from ...tokenflow_ops.passes import FeatureMismatch, Pass
from ..calls import Handover
from ..conditioning.conds import Conds, hold_alike
from ..families import Family
from ..validation.conflicts import DOWNSCALE
from ..validation.entrance import Entrance
from ..validation.errors import NodeError

if TYPE_CHECKING:
    from .run import Run


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
