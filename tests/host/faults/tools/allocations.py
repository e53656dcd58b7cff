"""Memory that runs out, on a machine that has enough: at the allocations of the pack's own code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from comfy import model_management
from torch.utils._python_dispatch import TorchDispatchMode

from .moments import OURS

TORCH = str(Path(torch.__file__).parent)
# A model's signature is small work in many operations: most faults would hit it.
SIGNATURE = os.path.join("storage", "signature.py")


class Allocations(TorchDispatchMode):
    """Counts what the pack's code allocates; from the `at`-th on there is no memory,
    for so many of them.

    An operation allocates if it returns what is neither a view nor changed in place. It is the
    pack's if the innermost function outside of torch is. Those of signatures are left out.
    """

    def __init__(self, at: int = 0, times: int = 1) -> None:
        super().__init__()
        self.at, self.times, self.count = at, times, 0
        self.reached = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = [
            returned
            for returned in func._schema.returns
            if "Tensor" in str(returned.type) and not returned.alias_info
        ]
        if made and (place := _our_place()):
            self.count += 1
            if self.at and self.at <= self.count < self.at + self.times:
                self.reached = self.reached or place
                raise model_management.OOM_EXCEPTION(f"no room for {func} in {place}")
        return func(*args, **(kwargs or {}))


def _our_place() -> str:
    """The function of the pack that has called torch; nothing if another's has."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_code.co_filename.startswith(TORCH):
        frame = frame.f_back
    code = frame.f_code
    ours = code.co_filename.startswith(OURS) and not code.co_filename.endswith(SIGNATURE)
    return code.co_name if ours else ""
