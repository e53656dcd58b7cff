"""Moments of a run, to break it at: every call of a function of the pack is one."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

from launch.comfyui.inprocess import ROOT

OURS = tuple(
    f"{ROOT / part}{os.sep}" for part in ("host", "modes", "nodes", "reporting", "tokenflow_ops")
)
# So many faults of a kind are drawn. More take longer: TOKENFLOW_FAULTS=1000.
FAULTS = int(os.environ.get("TOKENFLOW_FAULTS", "0"))


class Fault(Exception):
    """What is raised on purpose."""


@dataclass
class Calls:
    """Counts the calls of the pack's functions while its nodes run; does something as the `at`-th,
    `reached`, begins.

    begun: the number of every node's first call.
    """

    at: int = 0
    action: Callable[[], None] = lambda: None
    count: int = 0
    begun: list[int] = field(default_factory=list)
    reached: str = ""
    running: int = 0
    _ours: dict[CodeType, bool] = field(default_factory=dict)

    def see(self, frame: FrameType, event: str, _: Any) -> None:
        """What `sys.setprofile` calls."""
        code = frame.f_code
        ours = self._ours.get(code)
        if ours is None:
            ours = self._ours[code] = code.co_filename.startswith(OURS)
        if not ours or event not in ("call", "return"):
            return
        if code.co_name == "execute":
            self.running += 1 if event == "call" else -1
            if event == "call" and self.running == 1:
                self.begun.append(self.count + 1)
        if event == "call" and self.running:
            self.count += 1
            if self.count == self.at:
                self.reached = code.co_name
                self.action()


@contextmanager
def at_call(number: int = 0, action: Callable[[], None] = lambda: None) -> Iterator[Calls]:
    """Does `action` as the `number`-th call begins of what runs inside; what it raises, that call
    raises. 0: only counts.
    """
    calls = Calls(number, action)
    sys.setprofile(calls.see)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def in_every_node(calls: Calls) -> list[int]:
    """Two moments in each node that ran, a third and two thirds of its calls from its first."""
    spans = zip(calls.begun, [*calls.begun[1:], calls.count + 1], strict=True)
    return [begin + (end - begin) * third // 3 for begin, end in spans for third in (1, 2)]


def drawn(total: int, usual: int, seed: int) -> list[int]:
    """Some of the numbers from 1 to `total`, in order: `usual` many,
    unless the environment asks for more.
    """
    return sorted(random.Random(seed).sample(range(1, total + 1), min(total, FAULTS or usual)))
