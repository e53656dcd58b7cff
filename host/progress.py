"""Progress and interrupts of work that does not go through the host's sampling."""

from __future__ import annotations

from collections.abc import Callable

from comfy import model_management
from comfy.utils import ProgressBar


def counted(total: int) -> Callable[[], None]:
    """What to call after each of `total` pieces of work: moves the node's progress bar and lets the user stop it."""
    progress = ProgressBar(total)

    def done() -> None:
        progress.update(1)
        model_management.throw_exception_if_processing_interrupted()

    return done
