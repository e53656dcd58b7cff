"""Where checkpoints lie, and when they go.

The host empties its temp folder when it starts, so they are in the output folder. A run's stay when
it is done: until the whole graph is done, since a later node may fail as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import folder_paths
from comfy_execution.utils import get_executing_context

from ...tokenflow_ops.storage.journal import Journal
from ..progress import running_server
from .key import nodes_above, run_key
from .run import Checkpoints

FOLDER = "tokenflow_checkpoints"
# After so many seconds nobody goes on with a run; the newest KEPT runs that were stopped stay until
# then. No run is so slow that it writes nothing in BUSY seconds.
STALE, KEPT, BUSY = 7 * 86400.0, 4, 86400.0
PAUSE = 1.0


def new_checkpoints(
    node: str, model: Any, graph: Mapping[str, Any] | None, lists: int, *parts: Any
) -> Checkpoints:
    """Makes the checkpoints of a run, which may find what the same graph has left.

    Those that nobody needs any more go.

    Args:
        node: The node's name.
        model: The user's ModelPatcher.
        graph: The prompt that the host runs.
        lists: Of how many lists of conditionings the model is asked for.
        *parts: What else the run depends on, see `run_key`.

    Returns:
        The checkpoints.
    """
    context = get_executing_context()
    key = run_key(model, graph, context.node_id if context else None, node, *parts)
    remove_stale(key)
    return Checkpoints(node, Journal(_root() / key), lists)


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


def remove_when_done(journal: Journal, graph: Mapping[str, Any] | None) -> None:
    """Removes a finished run's checkpoints once a graph with its node has come to a good end.

    They stay as long as graphs end with errors or are interrupted, for then the same node may be
    asked for again. Without a server they stay until they are stale.

    Args:
        journal: The run's.
        graph: The prompt that the host runs.
    """
    context, server = get_executing_context(), running_server()
    if context is not None and server is not None and graph is not None:
        above = partial(nodes_above, node_id=context.node_id)
        before = server.prompt_queue.get_history().keys()
        work = _remove(journal, server.prompt_queue, set(before), above, above(graph))
        asyncio.run_coroutine_threadsafe(work, server.loop)


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
