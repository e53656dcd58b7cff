"""Where checkpoints lie, and when they go.

The host empties its temp folder when it starts, so they are in the output folder. A run's stay when
it is done: until the whole graph is done, since a later node may fail as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from inspect import isroutine
from pathlib import Path
from typing import Any

import folder_paths
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ...tokenflow_ops.storage.journal import Journal
from ..progress import running_server
from .key import nodes_above, run_key
from .run import Checkpoints

FOLDER = "tokenflow_checkpoints"
# After so many seconds nobody goes on with a run; the newest KEPT runs that were stopped stay until
# then. No run is so slow that it writes nothing in BUSY seconds.
STALE, KEPT, BUSY = 7 * 86400.0, 4, 86400.0
PAUSE = 1.0


@dataclass(frozen=True)
class Keeper:
    """Opens the checkpoints of a sampling run, and lets them go once its graph is done.

    Attributes:
        node: The node that asks for them, for errors.
        told: What tells its runs from others, beside what they sample, see `run_key`.
    """

    node: str
    told: tuple[Any, ...] = ()

    def open(
        self, guider: Any, sampler: Any, sigmas: Tensor, noise: Tensor, latents: Tensor, seed: Any
    ) -> Checkpoints:
        """Makes a run's checkpoints, which may find what the same graph has left.

        Those that nobody needs any more go.

        Args:
            guider: The run's guider, with processed conditionings.
            sampler: The host's sampler object.
            sigmas: Noise levels, falling, (S+1,).
            noise: What the host adds to the latents.
            latents: What sampling starts from.
            seed: Of the noise that the sampler itself draws.

        Returns:
            The checkpoints.
        """
        context = get_executing_context()
        key = run_key(
            guider.model_patcher,
            _running_graph(),
            context.node_id if context else None,
            self.node,
            self.told,
            _plain(guider),
            guider.original_conds,
            _sampler_told(sampler),
            [sigmas, noise, latents, seed],
        )
        remove_stale(key)
        lists = 1 if _plain(guider).get("cfg") == 1 else sum(map(bool, guider.conds.values()))
        return Checkpoints(self.node, Journal(_root() / key), lists)

    def close(self, kept: Checkpoints) -> None:
        """Removes a finished run's checkpoints once a graph with its node has come to a good end.

        They stay as long as graphs end with errors or are interrupted, for then the same node may
        be asked for again. Without a server they stay until they are stale.

        Args:
            kept: The run's.
        """
        context, server, graph = get_executing_context(), running_server(), _running_graph()
        if context is not None and server is not None and graph is not None:
            above = partial(nodes_above, node_id=context.node_id)
            before = server.prompt_queue.get_history().keys()
            work = _remove(kept.journal, server.prompt_queue, set(before), above, above(graph))
            asyncio.run_coroutine_threadsafe(work, server.loop)


def _running_graph() -> Mapping[str, Any] | None:
    """The prompt that the host runs, node by node; None without a server.

    A patched model does not bring it along: the host keeps a node's output for later prompts.
    """
    context, server = get_executing_context(), running_server()
    if context is None or server is None:
        return None
    running, _ = server.prompt_queue.get_current_queue_volatile()
    return next((item[2] for item in running if item[1] == context.prompt_id), None)


def _plain(holder: Any) -> dict[str, Any]:
    """The numbers and words that an object of the host holds."""
    return {
        name: value
        for name, value in vars(holder).items()
        if isinstance(value, bool | int | float | str)
    }


def _sampler_told(sampler: Any) -> list[Any]:
    """What tells a sampler of the host from others."""
    function: Any = getattr(sampler, "sampler_function", None)
    name = f"{function.__module__}.{function.__qualname__}" if isroutine(function) else ""
    return [sampler, name, getattr(sampler, "extra_options", {})]


def remove_stale(needed: str = "") -> None:
    """Removes runs that were stopped too long ago, or are too many.

    Args:
        needed: Name of one that stays.
    """
    root = _root()
    with suppress(OSError):  # another process may have come first, or there is nothing
        now, changed = time.time(), {}
        for run in root.iterdir():
            changed[run] = max(path.stat().st_mtime for path in (run, *run.iterdir()))
        newest = sorted(changed, key=lambda run: changed[run], reverse=True)
        for place, run in enumerate(newest):
            idle = now - changed[run]
            if run.name != needed and (idle > STALE or (place >= KEPT and idle > BUSY)):
                Journal(run).remove()


async def _remove(
    journal: Journal,
    queue: Any,
    looked_at: set[str],
    above: Callable[[Mapping[str, Any]], Any],
    mine: Any,
) -> None:
    while journal.folder.exists():
        await asyncio.sleep(PAUSE)
        ended = queue.get_history()
        for prompt_id in ended.keys() - looked_at:
            looked_at.add(prompt_id)
            status = ended[prompt_id].get("status") or {}
            if (
                status.get("status_str") == "success"
                and above(ended[prompt_id]["prompt"][2]) == mine
            ):
                await asyncio.to_thread(journal.remove)


def _root() -> Path:
    return Path(folder_paths.get_output_directory(), FOLDER)
