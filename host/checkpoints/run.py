"""The checkpoints of one sampling run: the model's answers, kept and given again."""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from comfy import model_management
from torch import Tensor

from ...tokenflow_ops.storage.journal import Answer, Journal
from ..memory import frames_at_once, replaces_attention
from ..shards import together
from ..validation.errors import NodeError

if TYPE_CHECKING:
    from ..runs.model_call import ModelCall
    from ..runs.run import Run

SOCKET = "checkpoints"


class Checkpoints:
    """Keeps what the model answers in a run, and answers in its place what is known.

    Args:
        node: The node's name, for errors.
        journal: Where answers are kept.
        lists: Of how many lists of conditionings an answer is.
    """

    def __init__(self, node: str, journal: Journal, lists: int) -> None:
        self.node, self.journal, self.lists = node, journal, lists
        self.number = self.known = self._usable = 0
        self._keeps = True

    @property
    def replays(self) -> bool:
        """Whether the last evaluation was known."""
        return self.number <= self.known

    def begin(self, run: Run, shape: Sequence[int]) -> None:
        """Looks up what is known, and puts the run into the state that it was in.

        Args:
            run: The run, which has begun.
            shape: Of the clip's latents, (N, C, h, w).

        Raises:
            NodeError: If self-attention is replaced, or the disk has no room.
        """
        if replaces_attention(run.model):
            raise NodeError(
                self.node,
                SOCKET,
                "something on the model reads what self-attention saw in the last step (SAG), "
                "which checkpoints do not hold.",
                "Switch them off, or take it from the model.",
            )
        # All that share a clip go on at the same evaluation.
        counts = together().gather(torch.tensor(self.journal.usable()))
        self.number, self.known = 0, min(int(count) for count in counts)
        self._usable = self.known
        last = self.journal.read(self.known - 1) if self.known else None
        if last is not None:
            run.restore(last.state)
            logging.info(
                "%s goes on: %d of %d evaluations are known.", self.node, self.known, run.expected
            )
        else:
            # The host's estimate may be another when the run goes on.
            run.frames_per_pass = frames_at_once(run.model, shape, run.frames_per_pass)
        self._check_room((run.expected - self.known) * self.size(shape))

    def evaluate(self, run: Run, call: ModelCall) -> list[Tensor]:
        """Denoises the frames for each list of conditionings, or looks up how they were.

        Args:
            run: The run.
            call: The evaluation.

        Returns:
            The denoised frames, (N, C, h, w) each.
        """
        number, self.number = self.number, self.number + 1
        question = _digest(call)
        if number < self.known:
            model_management.throw_exception_if_processing_interrupted()
            answer = self.journal.read(number)
            fits = (
                answer is not None
                and answer.question == question
                and [part.shape for part in answer.denoised] == [call.x.shape] * len(call.conds)
            )
            if all(bool(one) for one in together().gather(torch.tensor(fits))):
                assert answer is not None
                return [part.to(call.x) for part in answer.denoised]
            logging.warning(
                "%s: evaluation %d is not the one that is known, so the run goes on from there.",
                self.node,
                number,
            )
            self.known = number
        anew = not run.needs_earlier(call)
        denoised = run.evaluate(call)
        if anew:
            self._usable = number
        if not run.leaves:
            self._usable = number + 1
        self._keep(number, Answer(question, denoised, self._usable, run.state()))
        return denoised

    def _keep(self, number: int, answer: Answer) -> None:
        if not self._keeps:
            return
        # What went wrong is not to come again.
        self._keeps = all(bool(torch.isfinite(part).all()) for part in answer.denoised)
        if not self._keeps:
            return
        try:
            self.journal.write(number, answer)
        except OSError as error:
            self._keeps = False
            logging.warning(
                "%s: no more checkpoints, %s cannot be written (%s). The run goes on.",
                self.node,
                self.journal.folder,
                error,
            )

    def size(self, shape: Sequence[int]) -> int:
        """Returns how many bytes the answer to one evaluation takes.

        Args:
            shape: Of the clip's latents, (N, C, h, w).

        Returns:
            Their number.
        """
        return self.lists * math.prod(shape) * 4

    def _check_room(self, size: int) -> None:
        folder = self.journal.folder
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if size > free:
            raise NodeError(
                self.node,
                SOCKET,
                f"they will take {size / 2**30:.1f} GiB more in {folder}, "
                f"where {free / 2**30:.1f} GiB are free.",
                "Make room on that disk, or switch them off.",
            )


def _digest(call: ModelCall) -> str:
    """Tells an evaluation from others: its frames, noise level and number of prompts."""
    digest = hashlib.sha256(f"{len(call.conds)} {tuple(call.x.shape)} {call.sigma!r}".encode())
    digest.update(call.x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
