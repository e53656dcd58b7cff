"""Progress and interrupts: one bar for all that a node does.

It does not matter whether the work goes through the host's sampling.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import latent_preview
from comfy import model_management
from comfy.utils import ProgressBar
from torch import Tensor

# As the host calls it: step, predicted clean latents (N, C, h, w), noisy latents, number of steps.
Callback = Callable[[int, Tensor, Tensor, int], None]


def running_server() -> Any | None:
    """Returns the ComfyUI's server that this process is; None in scripts and tests."""
    module: Any = sys.modules.get("server")
    return None if module is None else module.PromptServer.instance


class Progress:
    """A node's progress bar, which goes from left to right once.

    It does so however many runs and other pieces of work there are.

    Args:
        total: All steps of sampling and other pieces of work.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self._bar = ProgressBar(total)

    def __call__(self, pieces: int = 1) -> None:
        """Moves the bar, and lets the user stop the node.

        To be called after each piece of work that is no step of sampling.

        Args:
            pieces: How many pieces of work that was.
        """
        self.done += pieces
        self._bar.update_absolute(self.done)
        model_management.throw_exception_if_processing_interrupted()

    def sampling(self, model: Any, steps: int) -> Callback:
        """Makes the host's callback, with its previews, for one sampling run.

        Args:
            model: The ModelPatcher that is sampled.
            steps: Steps of the run; they count on from what is done.

        Returns:
            The callback.
        """
        before, shown = self.done, latent_preview.prepare_callback(model, steps)

        def count_on(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
            self.done = before + step + 1
            shown(before + step, denoised, x, self.total)

        return count_on
