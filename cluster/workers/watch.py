"""Figures of a prompt while it runs: seconds, memory, which nodes ran."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil

from launch.comfyui.workflow import Prompt
from launch.graphs.graph import title

from .events import Step


class Watch:
    """Listens to a prompt.

    It takes the seconds of every type of node, and the most memory of the server's process.

    Args:
        process: The server's process.
        prompt: The API prompt.
    """

    def __init__(self, process: psutil.Process, prompt: Prompt) -> None:
        self.process, self.prompt = process, prompt
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.peak = 0
        self.began = self.since = time.monotonic()
        self.node: str | None = None
        self.told: tuple[str | None, float] = (None, 0.0)
        self.ran: set[str] = set()

    def hear(self, kind: str, data: dict[str, Any], tell: Callable[[Step], None]) -> None:
        """Listens to `launch.comfyui.client.run_prompt` and passes steps on.

        Args:
            kind: The type of a message.
            data: What the message says.
            tell: Gets each step that is worth telling.
        """
        with suppress(psutil.NoSuchProcess):
            self.peak = max(self.peak, self.process.memory_info().rss)
        if kind in ("executing", "execution_success"):
            now = time.monotonic()
            if self.node is not None and self.node in self.prompt:
                self.seconds[self.prompt[self.node]["class_type"]] += now - self.since
            self.node, self.since = data.get("node"), now
            self.ran |= {node for node in (self.node,) if node in self.prompt}
        elif kind == "progress" and self.node in self.prompt and data["max"] > 1 and self._is_due():
            tell(Step(title(self.prompt, self.node), data["value"], data["max"]))

    def _is_due(self) -> bool:
        """Whether a step is worth telling.

        That is the first of its node, or one some time after the last one told.
        """
        node, before = self.told
        due = node != self.node or time.monotonic() - before > 0.25
        if due:
            self.told = self.node, time.monotonic()
        return due

    def figures(self, cached: frozenset[str]) -> dict[str, Any]:
        """Makes what the manifest says of the run; memory in bytes."""
        return {
            "seconds": round(time.monotonic() - self.began, 3),
            "seconds_by_node_type": {
                kind: round(seconds, 3) for kind, seconds in self.seconds.items()
            },
            "nodes_cached": len(cached & set(self.prompt)),
            "nodes_run": len(self.ran),
            "peak_host_memory": self.peak,
        }
