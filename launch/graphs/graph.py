"""Where things are in a prompt.

What leads to a node, what follows from it, whose text a conditioning is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ..comfyui.workflow import UNKNOWN, Json, Prompt, WorkflowError, widgets

INVERSIONS = ("TokenFlowInvertVideo", "TokenFlowLoadInversion")
# What is computed once per clip, whatever the edit.
STAGE_1 = (
    *INVERSIONS,
    "TokenFlowExtractFeatures",
    "TokenFlowBuildCorrespondences",
    "TokenFlowTuneAVideo",
)
SAMPLER, APPLY = "TokenFlowSampler", "TokenFlowApply"
CARRY = "TokenFlowCarryKeyframes"


def links(prompt: Prompt, node: str) -> Iterator[tuple[str, str, int]]:
    """Yields a node's linked inputs.

    Args:
        prompt: The API prompt.
        node: The node's id.

    Yields:
        (input, id of the node it comes from, index of that node's output).
    """
    for name, value in prompt[node]["inputs"].items():
        if is_link(prompt, value):
            yield name, str(value[0]), value[1]


def is_link(prompt: Prompt, value: Any) -> bool:
    """Tells whether an input's value is the output of a node.

    Args:
        prompt: The API prompt.
        value: Of the input.

    Returns:
        Whether it is [id of a node, index of its output].
    """
    return (
        isinstance(value, list)
        and len(value) == 2
        and str(value[0]) in prompt
        and isinstance(value[1], int)
    )


def of_types(prompt: Prompt, types: Iterable[str]) -> list[str]:
    """Lists the nodes of some types.

    Args:
        prompt: The API prompt.
        types: Types of nodes.

    Returns:
        Ids of the nodes.
    """
    return [node for node, entry in prompt.items() if entry["class_type"] in types]


def upstream(prompt: Prompt, nodes: Iterable[str]) -> set[str]:
    """Finds nodes and all that leads to them.

    Args:
        prompt: The API prompt.
        nodes: Ids of nodes.

    Returns:
        Their ids, and those of all nodes before them.
    """
    found: set[str] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [origin for _, origin, _ in links(prompt, node)]
    return found


def samplers(prompt: Prompt, info: Json) -> list[str]:
    """Finds all nodes that sample the edit.

    Args:
        prompt: The API prompt.
        info: The server's node definitions.

    Returns:
        Ids of TokenFlow Samplers, then of Apply TokenFlow and of what its model reaches: samplers
        of the host, guiders.
    """
    reached = of_types(prompt, (APPLY,))
    for node in reached:  # grows while it is walked
        for other in prompt:
            follows = any(
                origin == node and _output(prompt, info, node, at) in ("MODEL", "GUIDER")
                for _, origin, at in links(prompt, other)
            )
            if follows and other not in reached:
                reached.append(other)
    return of_types(prompt, (SAMPLER,)) + reached


def texts_behind(prompt: Prompt, info: Json, node: str, name: str) -> set[str]:
    """Finds the prompts that a node's conditioning comes from, before what was made of them.

    Args:
        prompt: The API prompt.
        info: The server's node definitions.
        node: The node's id.
        name: Its input that takes the conditioning.

    Returns:
        Ids of the nodes with a CLIP and no conditioning among their inputs.
    """
    found: set[str] = set()
    for link, origin, output in links(prompt, node):
        if link != name:
            continue
        inputs = {
            link: _output(prompt, info, other, at) for link, other, at in links(prompt, origin)
        }
        behind = [link for link, kind in inputs.items() if kind == "CONDITIONING"]
        # What has a positive and a negative side keeps them apart.
        side = _output(prompt, info, origin, output, "output_name")
        for link in [side] if side in behind else behind:
            found |= texts_behind(prompt, info, origin, link)
        if not behind and "CLIP" in inputs.values():
            found.add(origin)
    return found


def _output(prompt: Prompt, info: Json, node: str, output: int, what: str = "output") -> str:
    """The type of a node's output, or its "output_name".

    Nothing of a node that the server does not know.
    """
    found = info.get(prompt[node]["class_type"], {}).get(what, [])
    return str(found[output]) if output < len(found) else ""


def inputs_of(prompt: Prompt, info: Json, node: str) -> dict[str, tuple[str, Json]]:
    """Finds the inputs that a node has besides links.

    Args:
        prompt: The API prompt.
        info: The server's node definitions.
        node: The node's id.

    Returns:
        {input: (type, options)}.

    Raises:
        WorkflowError: For a node that the server does not know.
    """
    kind = prompt[node]["class_type"]
    if kind not in info:
        raise WorkflowError(f"{label(prompt, node)} {UNKNOWN}")
    found = widgets(info[kind]["input"], info[kind].get("input_order", {}))
    return {name: (type, options) for name, type, options in found}


def is_upload(options: Json) -> bool:
    """Tells whether an input's options say that it takes a file which the user gives."""
    return any(option.endswith("_upload") and on for option, on in options.items())


def title(prompt: Prompt, node: str) -> str:
    """Returns a node's title.

    Args:
        prompt: The API prompt.
        node: The node's id.

    Returns:
        The title, or the node's type where it has none.
    """
    return prompt[node].get("_meta", {}).get("title") or prompt[node]["class_type"]


def label(prompt: Prompt, node: str) -> str:
    """Names a node for messages.

    Args:
        prompt: The API prompt.
        node: The node's id.

    Returns:
        Id and title.
    """
    return f"node {node} ({title(prompt, node)})"
