"""What a step of an edit makes, as it is found window by window."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..shards import ALONE, Shards
from .joint import Joint
from .plan import Denoiser, StepPlan


@dataclass
class Edited:
    """What a step has made.

    Attributes:
        denoised: For each list of conditionings the denoised frames (N, C, h, w).
        left: What the plan keeps for the next step: of the keyframes for `edit_again`, or the
            denoised frames.
    """

    denoised: list[Tensor]
    left: Left | list[Tensor] | None = None


@dataclass
class Left:
    """What a step's keyframes have left for frames.

    Attributes:
        plan: The step's.
        windows: Of every window which keyframes are its own, and what they and the last one before
            them have left.
    """

    plan: StepPlan
    windows: list[tuple[range, Joint | None, Joint]]


class Result:
    """The frames as they are found, on this machine and the others.

    Args:
        denoiser: Evaluates the model on the clip's N noisy frames.
        shards: The machines that share the clip.
    """

    def __init__(self, denoiser: Denoiser, shards: Shards) -> None:
        self.denoiser, self.shards = denoiser, shards
        self.denoised = [torch.zeros_like(denoiser.x) for _ in range(denoiser.lists)]
        self.run_here: list[Tensor] = []
        self.windows: list[tuple[range, Joint | None, Joint]] | None = []

    def leave(
        self, plan: StepPlan, own: range, before: Joint | None, joint: Joint, away: bool
    ) -> None:
        """Keeps what a window leaves for the next step, where all windows' fits.

        Args:
            plan: The step's.
            own: The window's keyframes.
            before: What the window before has left.
            joint: What the window leaves.
            away: Whether in main memory, so that the device's does not grow with the clip.
        """
        if away and self.windows == []:
            whole = joint.size * len(plan.matches.keyframes) // len(own)
            # Machines that share a clip have to agree.
            if not self.shards.once(lambda: torch.tensor(plan.fits(whole))):
                self.windows = None
        if self.windows is not None:
            left = before.stored(slice(-1, None), away) if before else None
            self.windows.append((own, left, joint.stored(slice(None), away)))

    def keep(self, frames: Tensor, denoised: list[Tensor]) -> None:
        """Puts denoised frames in their places.

        Args:
            frames: Their numbers, (n,).
            denoised: For each list of conditionings (n, C, h, w).
        """
        for whole, part in zip(self.denoised, denoised, strict=True):
            whole[frames.to(whole.device)] = part

    def exchange(self) -> None:
        """Gives the other machines the frames that were run here, and takes theirs."""
        if self.shards is ALONE:
            return
        frames = torch.cat([torch.empty(0, dtype=torch.int64), *self.run_here])
        own = frames, [whole[frames.to(whole.device)] for whole in self.denoised]
        for theirs, denoised in self.shards.gather(own):
            self.keep(theirs, denoised)
