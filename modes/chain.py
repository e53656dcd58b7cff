"""Passes that follow each other: each is given what the one before has collected."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..host.editing.edit_run import EditRun
from ..host.runs.model_call import ModelCall
from ..host.runs.run import joined
from ..tokenflow_ops.passes import Bank, SparseCausalPass


def in_turn(
    run: EditRun, call: ModelCall, make: Callable[[Tensor, Bank], SparseCausalPass]
) -> list[Tensor]:
    """Runs passes over all frames, one after the other.

    Args:
        run: The sampling run.
        call: The evaluation.
        make: Makes the pass of some frames (n,) from the bank of the pass before.

    Returns:
        The denoised frames (N, C, h, w) for each list of conditionings.
    """
    before: Bank = {}

    def work(frames: Tensor) -> list[Tensor]:
        nonlocal before
        one = make(frames, before)
        denoised = call.run(run, one)
        before = one.bank  # only now: a pass that fails is made again
        return denoised

    return joined(run.in_parts(call, torch.arange(len(call.x)), work))
