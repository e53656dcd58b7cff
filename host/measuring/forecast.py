"""What a long run will take: said before it begins, and its time from the first steps on."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from comfy import model_management
from comfy_execution.utils import get_executing_context

from ..memory import fits_in_memory, frames_at_once
from ..progress import running_server

if TYPE_CHECKING:
    from ..runs.run import Run

# A run is long from so many frames times evaluations of the model on.
LONG = 1000
# Steps whose pace is told from; what was told is told anew where it was wrong by such a share.
STEPS, WRONG = 4, 0.25


def forecast(run: Run, shape: Sequence[int], steps: int, callback: Any) -> Any:
    """Tells in the log and on the node what a long run will take.

    Args:
        run: The run, which has begun.
        shape: Of the clip's latents, (N, C, h, w).
        steps: How many the sampler takes.
        callback: The host's, or None where the run is part of other work.

    Returns:
        The callback that the sampler is to call; `callback` itself where the run is short.
    """
    if callback is None or shape[0] * run.expected < LONG:
        return callback
    told = Forecast(run, steps, describe(run, shape))
    told.say(told.facts)

    def after(step: int, *rest: Any) -> None:
        callback(step, *rest)
        told.after(step + 1)

    return after


def describe(run: Run, shape: Sequence[int]) -> str:
    """Describes what is known before a run begins.

    Args:
        run: The run, which has begun.
        shape: Of the clip's latents, (N, C, h, w).

    Returns:
        Frames, evaluations and passes; memory; disk. A line each.
    """
    frames, device = shape[0], run.model.load_device
    at_once = frames_at_once(run.model, shape, run.frames_per_pass)
    passes = run.expected * -(-frames // at_once)
    asked = run.model.model.memory_required([2 * at_once, *shape[1:]])
    free = model_management.get_free_memory(device)
    lines = [
        f"{frames} frames, {run.expected} evaluations, about {passes} passes of {at_once} frames",
        f"a pass takes {_gib(asked)} by ComfyUI's estimate, {_gib(free)} are free",
    ]
    for name, size in run.keeps.items():
        where = "main memory" if fits_in_memory(size) else "the temp folder"
        lines.append(f"{name}: {_gib(size)} in {where}")
    if run.checkpoints is not None:
        size = run.expected * run.checkpoints.size(shape)
        lines.append(f"checkpoints: {_gib(size)} in the output folder")
    return "\n".join(lines)


class Forecast:
    """Tells how long a run still takes, by the pace of its last steps.

    Args:
        run: The run.
        steps: How many the sampler takes.
        facts: What is known of it, for the node.
        clock: Gives seconds.
    """

    def __init__(
        self, run: Run, steps: int, facts: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.run, self.steps, self.facts, self.clock = run, steps, facts, clock
        self._began = self._last = clock()
        self._paces: deque[float] = deque(maxlen=STEPS)
        self._told_end: float | None = None
        context = get_executing_context()
        self._node_id = None if context is None else context.node_id

    def after(self, done: int) -> None:
        """Tells, after a step, how long the rest takes.

        Args:
            done: Steps that are done.
        """
        now, since = self.clock(), self._last
        self._last = now
        if done == self.steps:
            self.say(f"{self.steps} steps took {_duration(now - self._began)}")
            return
        if self.run.checkpoints is not None and self.run.checkpoints.replays:
            return  # such steps take no time
        self._paces.append(now - since)
        if done < 2:  # the first one also makes things ready
            return
        left = (self.steps - done) * sum(self._paces) / len(self._paces)
        text = f"{'more than' if self.run.quickens else 'about'} {_duration(left)} left"
        wrong = self._told_end is None or abs(now + left - self._told_end) > WRONG * left
        if wrong:
            self._told_end = now + left
        self.say(text, logged=wrong)

    def say(self, text: str, logged: bool = True) -> None:
        """Says something on the node, below what is known, and in the log.

        Args:
            text: The lines.
            logged: Whether the log is to have it.
        """
        if logged:
            logging.info("%s: %s.", self.run.node, text.replace("\n", "; "))
        server = running_server()
        if server is not None and self._node_id is not None:
            whole = text if text == self.facts else f"{self.facts}\n{text}"
            server.send_progress_text(whole, self._node_id)


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _duration(seconds: float) -> str:
    """As long as people say it: 50 s, 12 min, 3 h 20 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
