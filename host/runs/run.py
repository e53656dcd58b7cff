"""A sampling run: it splits every evaluation of the model into passes over some of the frames."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...tokenflow_ops.passes import Pass
from ...tokenflow_ops.shards import ALONE, Shards
from ..checkpoints.folders import Keeper
from ..checkpoints.run import Checkpoints
from ..conditioning.conds import Conds, PassConds, cut_conds
from ..conditioning.controls import Encoded
from ..memory import frames_at_once, is_oom
from ..validation.conflicts import check_controls, check_every_pass_runs, check_patch_images
from .model_call import ModelCall

T = TypeVar("T")


class Run:
    """One sampling run: splits every evaluation of the model into passes over some of the frames.

    Subclasses say which passes.

    Args:
        node: The node's name, for errors.
        frames_per_pass: Frames in one pass, 0 for the host's estimate.
        keeper: Keeps the model's answers, if they are kept.
    """

    def __init__(self, node: str, frames_per_pass: int = 0, keeper: Keeper | None = None) -> None:
        self.node = node
        self.frames_per_pass = frames_per_pass
        self.keeper = keeper
        self.checkpoints: Checkpoints | None = None
        self.expected = 0  # evaluations of the whole run, as far as they are known
        self.keeps: dict[str, int] = {}  # bytes of what it makes, by names for people
        self.most = sys.maxsize
        self.model: Any = None
        self._cut: dict[tuple[Any, ...], tuple[list[dict[str, Any]], PassConds]] = {}
        self._encoded: Encoded = {}

    def begin(self, guider: Any, sampler: Any, sigmas: Tensor, noise: Tensor) -> None:
        """Checks what the user put on the model and the prompts, and takes the model.

        Called once the model is loaded and conditionings are processed.

        Args:
            guider: The run's guider.
            sampler: The host's sampler object.
            sigmas: The run's noise levels, falling, (S+1,).
            noise: What the host adds to the latents, (N, C, h, w).

        Raises:
            NodeError: For what cannot be combined with TokenFlow.
        """
        self.model = guider.model_patcher
        self.expected = self.expected or len(sigmas) - 1
        check_every_pass_runs(self.node, guider.model_options)
        check_patch_images(self.node, guider.model_options)
        check_controls(self.node, guider.conds)

    def reported(self, callback: Any) -> Any:
        """Returns what the sampler calls at every step, made of the host's callback or None."""
        return callback

    def finish(self, x: Tensor, sigma: float) -> Tensor:
        """Returns what the run ends with.

        Args:
            x: What the sampler ends with, (N, C, h, w).
            sigma: The last noise level.

        Returns:
            (N, C, h, w).
        """
        return x

    def denoise(self, x: Tensor, sigma: float, predict: Callable[[Tensor], Tensor]) -> Tensor:
        """Denoises the frames: one evaluation that the sampler asks for.

        Args:
            x: Noisy frames, (N, C, h, w).
            sigma: Their noise level.
            predict: Denoises noisy frames (N, C, h, w) with guidance.

        Returns:
            The denoised frames, (N, C, h, w).
        """
        return predict(x)

    def evaluate(self, call: ModelCall) -> list[Tensor]:
        """Denoises the frames for each list of conditionings.

        Guidance may ask for this several times in one `denoise`.
        """
        return self.over_frames(call, lambda frames: Pass(frames))

    @property
    def quickens(self) -> bool:
        """Whether the running step takes less time than later ones will."""
        return False

    @property
    def leaves(self) -> bool:
        """Whether the run holds what later evaluations may take."""
        return False

    def needs_earlier(self, call: ModelCall) -> bool:
        """Tells whether an evaluation takes what earlier ones have left in the run."""
        return False

    def state(self) -> dict[str, int]:
        """Returns the numbers without which a run that goes on would come to other bits."""
        return {"frames_per_pass": self.frames_per_pass, "most": self.most}

    def restore(self, state: Mapping[str, int]) -> None:
        """Takes over the numbers of a run that was stopped.

        Args:
            state: From `state`.
        """
        self.frames_per_pass, self.most = state["frames_per_pass"], state["most"]

    def over_frames(
        self,
        call: ModelCall,
        make: Callable[[Tensor], Pass],
        shards: Shards = ALONE,
        frames: Tensor | None = None,
    ) -> list[Tensor]:
        """Runs passes over frames in order, and joins what they return.

        Args:
            call: The evaluation.
            make: Makes the pass of some frames (n,).
            shards: The machines that may share the passes, which need nothing of each other.
            frames: Frame numbers, (n,), or None for all.

        Returns:
            The denoised frames (n, C, h, w) for each list of conditionings.
        """
        return self.over_parts(call, lambda part: call.run(self, make(part)), shards, frames)

    def over_parts(
        self,
        call: ModelCall,
        denoise: Callable[[Tensor], list[Tensor]],
        shards: Shards = ALONE,
        frames: Tensor | None = None,
    ) -> list[Tensor]:
        """Denoises frames part by part, in order, and joins what comes of it.

        Args:
            call: The evaluation.
            denoise: Denoises some frames (n,) for each list of conditionings.
            shards: The machines that may share the parts, which need nothing of each other.
            frames: Frame numbers, (n,), or None for all.

        Returns:
            The denoised frames (n, C, h, w) for each list of conditionings.
        """
        frames = shards.here(torch.arange(len(call.x)) if frames is None else frames)
        found: list[Tensor] = []
        done = 0

        # Each part is written to its place: those that are joined in the end would be held twice.
        def work(part: Tensor) -> None:
            nonlocal done
            for number, rows in enumerate(denoise(part)):
                if number == len(found):
                    found.append(rows.new_empty(len(frames), *rows.shape[1:]))
                found[number][done : done + len(part)] = rows
            done += len(part)

        self.in_parts(call, frames, work)
        return joined([there for there in shards.gather(found) if there])

    def in_parts(self, call: ModelCall, frames: Tensor, work: Callable[[Tensor], T]) -> list[T]:
        """Does the work for as many frames at once as memory allows, in order.

        Where memory runs out, parts halve, and stay so for the rest of the run.

        Args:
            call: The evaluation.
            frames: Frame numbers, (n,).
            work: Called with a part of them.

        Returns:
            What it returned for each part.
        """
        done: list[T] = []
        while len(frames):
            part = frames[
                : min(frames_at_once(self.model, call.x.shape, self.frames_per_pass), self.most)
            ]
            try:
                done.append(work(part))
            except Exception as error:
                if len(part) == 1 or not is_oom(error):
                    raise
                self.most = len(part) // 2
                logging.warning(
                    "%s: out of memory, on with %d frames in one pass.", self.node, self.most
                )
            else:
                frames = frames[len(part) :]
        return done

    def cut(self, conds: Conds, frames: Tensor, total: int, kind: str, number: int) -> PassConds:
        """Cuts conditionings down to some frames.

        Those of consecutive frames, which come again at every step, are kept.

        Args:
            conds: Processed conditionings of all frames, list by list.
            frames: Frame numbers, (n,).
            total: Frames of the clip.
            kind: The kind of pass, a part of the new conditionings' uuids.
            number: The pass's number in its evaluation, a part of the uuids where frames
                are not consecutive.

        Returns:
            The conditionings of these frames.
        """
        first, last = int(frames[0]), int(frames[-1])
        if len(frames) != last - first + 1:
            return cut_conds(conds, frames, total, f"{kind}, part {number}", self._encoded)
        name = f"{kind} {first}-{last}"
        entries = [entry for listed in conds for entry in listed or ()]
        key = (name, *(len(listed or ()) for listed in conds))
        before, cut = self._cut.get(key, ((), None))
        # Held and compared by identity: guiders may make new ones at every evaluation, at the
        # address of those they dropped.
        if cut is None or any(one is not other for one, other in zip(before, entries, strict=True)):
            cut = cut_conds(conds, frames, total, name, self._encoded)
            self._cut[key] = entries, cut
        return cut


def joined(parts: list[list[Tensor]]) -> list[Tensor]:
    """Joins what several passes returned.

    Args:
        parts: For each pass, in the order of the clip, the denoised frames (n, C, h, w) of each
            list of conditionings.

    Returns:
        The frames of all of them, for each list of conditionings.
    """
    if len(parts) == 1:
        return parts[0]
    return [torch.cat(rows) for rows in zip(*parts, strict=True)]
