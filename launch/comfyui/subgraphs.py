"""Subgraphs put in the place of the nodes that stand for them, as the editor does when it runs.

A node inside has the ids of all that it lies in before its own: 8:12.
"""

from __future__ import annotations

import copy
from typing import Any

Json = dict[str, Any]

INPUTS, OUTPUTS = -10, -20  # what the nodes at a subgraph's two ends are called
OWN = "-1"  # of a promoted widget: it is that of an input of the subgraph
MUTED, BYPASSED = 2, 4
DEEPEST = 32
SET = "values set from outside"  # what `unpacked` adds to a node: {widget: value}


class RecursionInSubgraphs(ValueError):
    """A subgraph holds itself."""


def unpacked(workflow: Json) -> Json:
    """Replaces all nodes that are subgraphs by what is in them.

    Bypassed ones stay, as they pass on what comes to them; the nodes of muted ones are muted.

    Args:
        workflow: As the editor saves it.

    Returns:
        The same workflow where there are none; else a copy, whose links are lists.

    Raises:
        RecursionInSubgraphs: If a subgraph holds itself.
    """
    definitions = workflow.get("definitions", {}).get("subgraphs", [])
    known = {definition["id"]: definition for definition in definitions}
    if not known:
        return workflow
    flat = {**workflow, "nodes": list(workflow["nodes"])}
    flat["links"] = [_as_list(link) for link in workflow.get("links", [])]
    while found := [
        node for node in flat["nodes"] if node["type"] in known and node.get("mode", 0) != BYPASSED
    ]:
        for node in found:
            if str(node["id"]).count(":") > DEEPEST:
                raise RecursionInSubgraphs(f"the subgraph {known[node['type']].get('name')}")
            _replace(flat, node, known[node["type"]])
    return flat


def _replace(flat: Json, node: Json, definition: Json) -> None:
    prefix = f"{node['id']}:"
    given = {slot["name"]: slot.get("link") for slot in node.get("inputs", [])}
    links = [_as_list(link) for link in definition["links"]]
    by_id = {link[0]: link for link in links}

    def outer(slot: int) -> Any:
        """The link that comes to an input of the subgraph."""
        return given.get(definition["inputs"][slot]["name"])

    inner: list[Json] = copy.deepcopy(definition["nodes"])
    for one in inner:
        if node.get("mode", 0) == MUTED:
            one["mode"] = MUTED
        for slot in one.get("inputs", []):
            link = by_id.get(slot.get("link"))
            if link is not None:
                slot["link"] = outer(link[2]) if link[1] == INPUTS else f"{prefix}{link[0]}"
    _set_values(node, definition, links, inner)
    for one in inner:
        one["id"] = f"{prefix}{one['id']}"
    made = [
        [f"{prefix}{link[0]}", f"{prefix}{link[1]}", link[2]]
        for link in links
        if link[1] != INPUTS and link[3] != OUTPUTS
    ]
    ends = {link[4]: link for link in links if link[3] == OUTPUTS}
    origins = {link[0]: link[1:3] for link in flat["links"]}
    for link in flat["links"]:
        if link[1] == node["id"]:
            end = ends.get(link[2])
            if end is None:
                link[1:3] = [None, 0]
            elif end[1] == INPUTS:  # straight through
                link[1:3] = origins.get(outer(end[2]), [None, 0])
            else:
                link[1:3] = [f"{prefix}{end[1]}", end[2]]
    flat["links"] = [link for link in flat["links"] if link[1] is not None] + made
    flat["nodes"] = [one for one in flat["nodes"] if one is not node] + inner


def _set_values(node: Json, definition: Json, links: list[list[Any]], inner: list[Json]) -> None:
    """Hands the values of widgets that are promoted to the subgraph's node to the nodes inside."""
    by_id = {str(one["id"]): one for one in inner}
    own = [slot["name"] for slot in node.get("inputs", []) if slot.get("widget")]
    promoted = node.get("properties", {}).get("proxyWidgets") or [[OWN, name] for name in own]
    for (target, name), value in zip(promoted, node.get("widgets_values") or [], strict=False):
        if str(target) == OWN:
            slots = [slot["name"] for slot in definition["inputs"]]
            ends = [
                (str(link[3]), by_id[str(link[3])]["inputs"][link[4]]["name"])
                for link in links
                if link[1] == INPUTS
                and name in slots
                and link[2] == slots.index(name)
                and str(link[3]) in by_id
            ]
        else:
            ends = [(str(target), name)]
        for one, widget in ends:
            if one in by_id:
                by_id[one].setdefault(SET, {})[widget] = value


def _as_list(link: Any) -> list[Any]:
    """A link in the form of a graph's own, whatever it is saved in: id, origin, slot, target."""
    if isinstance(link, dict):
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        return [link.get(name) for name in names]
    return list(link)
