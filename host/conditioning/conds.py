"""Cuts processed conditionings down to the frames of one pass.

Processed ones are what the host's `process_conds` made of them.
"""

from __future__ import annotations

import uuid
from typing import Any

from torch import Tensor

from .controls import control_view, rows_of

Conds = list[list[dict[str, Any]] | None]
# Where a conditioning stands: which list (positive, negative, ...) and which entry of it.
Place = tuple[int, int]


class PassConds:
    """The conditionings of one pass: `lists` is for the host; `place` tells what a uuid stands for.

    The host batches and splits conditionings by free memory, in any order; an area conditioning may
    stand in two lists with one uuid; and caching packs key by uuid. So every pass has uuids of its
    own, the same at every step, derived from original, place and pass. By them a row of the batch
    is known again.

    Args:
        conds: Processed conditionings of all frames, list by list.
        frames: Frame numbers, (n,).
        total: Frames of the clip.
        name: The pass's name, a part of the uuids.
    """

    def __init__(self, conds: Conds, frames: Tensor, total: int, name: str) -> None:
        self.place: dict[uuid.UUID, Place] = {}
        views: dict[int, Any] = {}  # the host batches cond and uncond only if they share a control
        self.lists: Conds = [
            None
            if entries is None
            else [
                self._cut(entry, (i, j), frames, total, name, views)
                for j, entry in enumerate(entries)
            ]
            for i, entries in enumerate(conds)
        ]

    def _cut(
        self,
        entry: dict[str, Any],
        place: Place,
        frames: Tensor,
        total: int,
        name: str,
        views: dict[int, Any],
    ) -> dict[str, Any]:
        cut = entry.copy()
        cut["model_conds"] = {
            key: _cut_cond(cond, frames) for key, cond in entry["model_conds"].items()
        }
        if "mask" in entry:
            cut["mask"] = rows_of(entry["mask"], frames)
        if (control := entry.get("control")) is not None:
            if id(control) not in views:
                views[id(control)] = control_view(control, frames, total)
            cut["control"] = views[id(control)]
        cut["uuid"] = uuid.uuid5(entry["uuid"], f"{place}{name}")
        self.place[cut["uuid"]] = place
        return cut


def _cut_cond(cond: Any, frames: Tensor) -> Any:
    value = cond.cond
    if isinstance(value, Tensor):
        return cond._copy_with(rows_of(value, frames))
    if isinstance(value, list) and all(isinstance(item, Tensor) for item in value):
        return cond._copy_with([rows_of(item, frames) for item in value])
    return cond
