"""Progress and interrupts: one bar for all that a node does, whether it goes through the host's
sampling or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import latent_preview
from comfy import model_management
from comfy.utils import ProgressBar
from torch import Tensor

# As the host calls it: step, clean latents (N, C, h, w) as foreseen, noisy latents, all steps.
Callback = Callable[[int, Tensor, Tensor, int], None]


class Progress:
    """A node's progress bar, which goes from left to right once, however many runs and other pieces
    of work there are.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self._bar = ProgressBar(total)

    def __call__(self) -> None:
        """To be called after each piece of work that is no step of sampling: moves the bar, and
        lets the user stop it.
        """
        self.done += 1
        self._bar.update_absolute(self.done)
        model_management.throw_exception_if_processing_interrupted()

    def sampling(self, model: Any, steps: int) -> Callback:
        """The host's callback, with its previews, for a run of `steps`: they count on from what is
        done.
        """
        before, shown = self.done, latent_preview.prepare_callback(model, steps)

        def count_on(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
            self.done = before + step + 1
            shown(before + step, denoised, x, self.total)

        return count_on
