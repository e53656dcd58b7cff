"""An evaluation of an edit as the method sees it, and what it leaves for the next step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

from ...tokenflow_ops.editing import Left
from ...tokenflow_ops.passes import Pass
from ..runs.model_call import ModelCall

if TYPE_CHECKING:
    from .edit_run import EditRun

T = TypeVar("T")


@dataclass
class Evaluation:
    """One evaluation of the model as the method sees it, a `tokenflow_ops.editing.Denoiser`.

    Attributes:
        edit_run: The sampling run.
        call: The evaluation on the host.
    """

    edit_run: EditRun
    call: ModelCall

    @property
    def x(self) -> Tensor:
        return self.call.x

    @property
    def lists(self) -> int:
        return len(self.call.conds)

    def run(self, work: Pass, lists: int | None = None) -> list[Tensor]:
        """Denoises a pass's frames.

        Args:
            work: The pass.
            lists: For how many of the lists of conditionings, the first ones; None for all.

        Returns:
            For each of these the denoised frames (n, C, h, w).
        """
        return self.call.run(self.edit_run, work, conds=self.call.conds[:lists])

    def source(self, frames: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
        """Looks up the source's features of some frames at this noise level.

        Args:
            frames: Frame numbers, (n,).
            names: Self-attention layers, and layers with hidden features.

        Returns:
            By name tokens (n, P, C) or hidden features (n, C, h, w).
        """
        return self.edit_run.source(self.call, frames, names)

    def in_parts(self, frames: Tensor, work: Callable[[Tensor], T]) -> list[T]:
        """Does the work for as many frames at once as memory allows, in order.

        Args:
            frames: Frame numbers, (n,).
            work: Called with a part of them.

        Returns:
            What it returned for each part.
        """
        return self.edit_run.in_parts(self.call, frames, work)


@dataclass
class LeftByStep:
    """What a step has left for the next one.

    Attributes:
        step: The step.
        left: What its keyframes have left, or all frames as it has denoised them.
        again: The step that has taken it; its further evaluations take it as well.
    """

    step: int
    left: Left | list[Tensor]
    again: int | None = None

    def serves(self, step: int) -> bool:
        """Tells whether a step is to take it, instead of editing the keyframes anew."""
        return step != self.step and self.again in (None, step)
