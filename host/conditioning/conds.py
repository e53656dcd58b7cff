"""Cuts processed conditionings down to the frames of one pass.

Processed ones are what the host's `process_conds` made of them.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...tokenflow_ops.passes import Place
from .controls import Encoded, control_view, rows_of

Conds = list[list[dict[str, Any]] | None]


@dataclass(frozen=True)
class PassConds:
    """The conditionings of one pass.

    The host batches and splits conditionings by free memory, in any order; an area conditioning may
    stand in two lists with one uuid; and caching packs key by uuid. So every pass has uuids of its
    own, the same at every step, derived from original, place and pass. By them a row of the batch
    is known again.

    Attributes:
        lists: What the host is given, list by list.
        place: By uuid where a conditioning stands.
    """

    lists: Conds
    place: Mapping[uuid.UUID, Place]


def hold_alike(conds: Conds) -> bool:
    """Tells whether all frames, and all places in them, have the same prompts.

    Args:
        conds: Processed conditionings, list by list.

    Returns:
        False if one has a mask or a text for each frame.
    """
    entries = [entry for entries in conds for entry in entries or ()]
    texts = [
        entry["model_conds"]["c_crossattn"].cond
        for entry in entries
        if "c_crossattn" in entry["model_conds"]
    ]
    return not any("mask" in entry for entry in entries) and all(len(text) == 1 for text in texts)


def cut_conds(
    conds: Conds, frames: Tensor, total: int, name: str, encoded: Encoded | None = None
) -> PassConds:
    """Cuts processed conditionings down to the frames of one pass.

    Args:
        conds: Processed conditionings of all frames, list by list.
        frames: Frame numbers, (n,).
        total: Frames of the clip.
        name: The pass's name, a part of the uuids.
        encoded: Latents of controls' hints that other passes have encoded; is added to.

    Returns:
        The pass's.
    """
    controls = [entry.get("control") for entries in conds for entry in entries or ()]
    # The host batches cond and uncond only if they share a control.
    views = {
        id(control): control_view(control, frames, total, encoded)
        for control in controls
        if control is not None
    }

    def cut(entry: dict[str, Any], place: Place) -> dict[str, Any]:
        found = entry.copy()
        found["model_conds"] = {
            key: _cut_cond(cond, frames) for key, cond in entry["model_conds"].items()
        }
        if "mask" in entry:
            found["mask"] = rows_of(entry["mask"], frames)
        if (control := entry.get("control")) is not None:
            found["control"] = views[id(control)]
        found["uuid"] = uuid.uuid5(entry["uuid"], f"{place}{name}")
        return found

    lists: Conds = [
        None if entries is None else [cut(entry, (i, j)) for j, entry in enumerate(entries)]
        for i, entries in enumerate(conds)
    ]
    place = {
        entry["uuid"]: (i, j)
        for i, entries in enumerate(lists)
        for j, entry in enumerate(entries or ())
    }
    return PassConds(lists, place)


def _cut_cond(cond: Any, frames: Tensor) -> Any:
    value = cond.cond
    if isinstance(value, Tensor):
        return cond._copy_with(rows_of(value, frames))
    if isinstance(value, list) and all(isinstance(item, Tensor) for item in value):
        return cond._copy_with([rows_of(item, frames) for item in value])
    return cond
