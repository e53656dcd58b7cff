"""From the workflow that ComfyUI's editor saves to the prompt that its server runs.

The saved file lists widget values without names. The names and their order come from the server's
`/object_info`, as in the editor (`graphToPrompt` of ComfyUI_frontend), so that one file serves both
the user who opens it and the API.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypedDict

from .subgraphs import BYPASSED, MUTED, SET, RecursionInSubgraphs, unpacked

DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"  # a list of choices that bring inputs of their own
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC_COMBO}
CONTROL_VALUES = {"fixed", "increment", "decrement", "randomize", "increment-wrap"}
NOTES = {"Note", "MarkdownNote"}
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"  # they exist in the editor only
UNKNOWN = "is unknown to the server. Is the pack that brings it installed, and did it load?"

Json = dict[str, Any]


class PromptNode(TypedDict):
    """One node of an API prompt: an input is a constant or [node id, output index]."""

    class_type: str
    inputs: Json
    _meta: dict[str, str]


Prompt = dict[str, PromptNode]


class WorkflowError(ValueError):
    """The workflow cannot be turned into a prompt.

    The message has a line for each node that is wrong.
    """


def to_prompt(workflow: Json, object_info: Json) -> Prompt:
    """Converts a saved workflow with the node definitions of `/object_info`.

    Muted nodes and notes are left out, bypassed ones pass their inputs on by type, subgraphs are
    replaced by what is in them.

    Args:
        workflow: As the editor saves it, or an API prompt.
        object_info: The server's node definitions.

    Returns:
        The API prompt. One that was given is returned as it is.

    Raises:
        WorkflowError: For what is neither, or for nodes that the server cannot run.
    """
    if "nodes" not in workflow:
        if not workflow or not all(
            isinstance(node, dict) and "class_type" in node for node in workflow.values()
        ):
            raise WorkflowError(
                "the file is neither a workflow saved by the editor nor an API prompt"
            )
        unknown = [
            f"node {node} ({entry['class_type']})"
            for node, entry in workflow.items()
            if entry["class_type"] not in object_info
        ]
        if unknown:
            raise WorkflowError("\n".join(f"{name} {UNKNOWN}" for name in unknown))
        return workflow
    try:
        return Graph(unpacked(workflow), object_info).prompt()
    except RecursionInSubgraphs as error:
        raise WorkflowError(f"{error} holds itself") from error
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise WorkflowError(
            f"the file is no workflow as the editor saves it ({type(error).__name__}: {error})"
        ) from error


@dataclass(frozen=True)
class Primitive:
    """The value that a node of the editor's own writes into the widget it feeds."""

    value: Any


class Graph:
    """A saved workflow with its links resolved on demand."""

    def __init__(self, workflow: Json, object_info: Json) -> None:
        self.nodes: dict[Any, Json] = {node["id"]: node for node in workflow["nodes"]}
        self.links: dict[Any, list[Any]] = {link[0]: link for link in workflow.get("links", [])}
        self.object_info = object_info

    def prompt(self) -> Prompt:
        """Makes the API prompt of all nodes that run. Raises WorkflowError for all that cannot."""
        running = [
            n
            for n in self.nodes.values()
            if n.get("mode", 0) not in (MUTED, BYPASSED)
            and n["type"] not in (*NOTES, REROUTE, PRIMITIVE)
        ]
        found, wrong = {}, []
        for node in running:
            try:
                found[str(node["id"])] = self.prompt_node(node)
            except WorkflowError as error:
                wrong.append(str(error))
        if wrong:
            raise WorkflowError("\n".join(dict.fromkeys(wrong)))
        return found

    def prompt_node(self, node: Json) -> PromptNode:
        """Converts one node with its widgets' values and, stronger than these, its links."""
        definition = self.definition(node)
        inputs = dict(widget_inputs(node, definition)) | node.get(SET, {})
        for slot in node.get("inputs", []):
            source = self.source(slot.get("link"))
            if isinstance(source, Primitive):
                inputs[slot["name"]] = source.value
            elif source:
                inputs[slot["name"]] = source
        title = node.get("title") or definition.get("display_name") or node["type"]
        return {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}

    def definition(self, node: Json) -> Json:
        """Finds the server's definition of a node's type. Raises WorkflowError without one."""
        kind = node["type"]
        if kind not in self.object_info:
            raise WorkflowError(f"{label(node)} {UNKNOWN}")
        found: Json = self.object_info[kind]
        return found

    def source(self, link_id: Any) -> list[Any] | Primitive | None:
        """Finds what is at the other end of a link, through bypassed nodes and reroutes.

        Args:
            link_id: The link's id.

        Returns:
            [node id, output index], or a value; None where nothing comes.
        """
        if link_id is None or link_id not in self.links:
            return None
        _, origin_id, output = self.links[link_id][:3]
        origin = self.nodes[origin_id]
        mode = origin.get("mode", 0)
        if origin["type"] == REROUTE:
            return self.source(origin["inputs"][0].get("link"))
        if origin["type"] == PRIMITIVE:
            return Primitive(origin["widgets_values"][0])
        if mode == BYPASSED:
            return self.source(bypass_link(origin, output))
        if mode == MUTED:
            return None
        self.definition(origin)
        return [str(origin_id), output]


def bypass_link(node: Json, output: int) -> Any:
    """Finds the link that a bypassed node passes on to an output.

    Args:
        node: The bypassed node.
        output: Index of the output.

    Returns:
        The link of the input in the same place, else of the first of the same type, or None.
    """
    inputs: list[Json] = node.get("inputs", [])
    wanted = node["outputs"][output]["type"]
    same_place = inputs[output : output + 1]
    for slot in [*same_place, *inputs]:
        if slot["type"] == wanted or (slot in same_place and "*" in (slot["type"], wanted)):
            return slot.get("link")
    return None


def widget_inputs(node: Json, definition: Json) -> Iterator[tuple[str, Any]]:
    """Yields the values of a node's widgets.

    Values missing at the end are the definition's defaults; the editor's own extras are ignored.

    Args:
        node: The node of a saved workflow.
        definition: The server's definition of its type.

    Yields:
        (name, value) of each widget.
    """
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        yield from values.items()
        return
    position = 0
    waiting = list(widgets(definition["input"], definition.get("input_order", {})))
    while waiting:
        name, kind, options = waiting.pop(0)
        if position < len(values):
            value = values[position]
            position += 1
        elif "default" in options or kind == DYNAMIC_COMBO:
            value = options["default"] if "default" in options else options["options"][0]["key"]
        else:
            continue
        yield name, {"__value__": value} if isinstance(value, list) else value
        if kind == DYNAMIC_COMBO:  # what the choice brings comes next, named after it
            brought: list[Json] = [
                option["inputs"] for option in options["options"] if option["key"] == value
            ]
            waiting[:0] = [
                (f"{name}.{inner}", kind, more)
                for inputs in brought
                for inner, kind, more in widgets(inputs, {})
            ]
        asked = options.get("control_after_generate")
        has_control = (
            asked if asked is not None else kind == "INT" and name in ("seed", "noise_seed")
        )
        if has_control and position < len(values) and values[position] in CONTROL_VALUES:
            position += 1
            if kind == "COMBO":  # the editor adds a filter for the list as well
                position += 1
        if any(option.endswith("_upload") and on for option, on in options.items()):
            position += 1  # the upload button


def widgets(inputs: Json, order: Json) -> Iterator[tuple[str, str, Json]]:
    """Yields the inputs that the editor shows as widgets, in its order.

    Args:
        inputs: The inputs of a definition, by group: required, optional.
        order: Names of the inputs by group; a group without any has them as they stand in `inputs`.

    Yields:
        (name, type, options) of each.
    """
    for group in ("required", "optional"):
        specs: Json = inputs.get(group, {})
        for name in order.get(group, specs):
            kind, options = specs[name][0], dict(specs[name][1]) if len(specs[name]) > 1 else {}
            if isinstance(kind, list):
                kind, options["options"] = "COMBO", kind
            if options.get("widgetType", kind) in WIDGET_TYPES and not options.get("forceInput"):
                yield name, kind, options


def label(node: Json) -> str:
    """Names a node for messages."""
    return f"node {node['id']} ({node.get('title') or node['type']})"
