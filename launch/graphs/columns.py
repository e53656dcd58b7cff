"""Which inputs of which nodes a name sets: the columns of a table of jobs."""

from __future__ import annotations

from dataclasses import dataclass

from ..comfyui.workflow import Json, Prompt, WorkflowError
from .graph import (
    CARRY,
    INVERSIONS,
    inputs_of,
    is_link,
    is_upload,
    label,
    links,
    of_types,
    samplers,
    texts_behind,
    title,
    upstream,
)

KEYFRAMES = "keyframes"
# Columns that are known by themselves.
HEADS = ("name", "clip", "source", "prompt", "seed", KEYFRAMES)
SEEDS = ("seed", "noise_seed")
BY_NAME = (
    "Name the column as the node's title, type or id, a dot and the input, e.g. 'Load Video.file'"
)


class ColumnError(ValueError):
    """A column that sets nothing, or it is not clear what.

    The message is what was found, `remedy` what to do.
    """

    def __init__(self, found: str, remedy: str = BY_NAME) -> None:
        super().__init__(found)
        self.remedy = remedy


@dataclass(frozen=True)
class Place:
    """An input of a node that is a value, no link.

    Attributes:
        node: The node's id.
        input: The input's name.
        kind: Its type: INT, FLOAT, STRING, BOOLEAN or COMBO.
        options: Its options in the server's node definitions.
    """

    node: str
    input: str
    kind: str
    options: Json


class Columns:
    """The columns that a prompt has, with the server's node definitions."""

    def __init__(self, prompt: Prompt, info: Json) -> None:
        self.prompt, self.info = prompt, info

    def places(self, column: str) -> list[Place]:
        """Finds what a column sets: `clip`, `source`, `prompt`, `seed`, or an input by its name.

        Raises ColumnError.
        """
        special = {
            "clip": self._clip,
            "source": self._source,
            "prompt": self._prompt,
            "seed": self._seeds,
        }
        try:
            return special[column]() if column in special else [self._named(column)]
        except WorkflowError as error:
            raise ColumnError(
                str(error).rstrip("."), "Install the pack on every machine and start again"
            ) from error

    def _clip(self) -> list[Place]:
        """The file of what loads the clip that is inverted or, without a model, carried to."""
        reaching = upstream(
            self.prompt, of_types(self.prompt, INVERSIONS) or of_types(self.prompt, (CARRY,))
        )
        found = [
            place
            for node in sorted(reaching)
            for place in self._values(node)
            if place.options.get("video_upload")
        ]
        return [self._only(found, "node that loads a video and reaches the inversion")]

    def _source(self) -> list[Place]:
        """The text of what the clip shows."""
        return [self._text(of_types(self.prompt, INVERSIONS), "the inversion")]

    def _prompt(self) -> list[Place]:
        """The text of the edit.

        One node for both texts is no mistake as long as both columns say the same.
        """
        return [self._text(samplers(self.prompt, self.info), "the samplers of TokenFlow")]

    def _seeds(self) -> list[Place]:
        """Seeds of all samplers of the edit, their own or of the noise they are given."""
        found = []
        for node in samplers(self.prompt, self.info):
            noises = [origin for link, origin, _ in links(self.prompt, node) if link == "noise"]
            found += [
                place
                for maker in (node, *noises)
                for place in self._values(maker)
                if place.input in SEEDS
            ]
        if not found:
            raise ColumnError("no sampler of TokenFlow has a seed of its own")
        return list({(place.node, place.input): place for place in found}.values())

    def _text(self, nodes: list[str], what: str) -> Place:
        texts = set().union(
            *(texts_behind(self.prompt, self.info, node, "positive") for node in nodes)
        )
        found = [self._named(f"{node}.text") for node in sorted(texts)]
        return self._only(found, f"text behind positive of {what}")

    def _only(self, found: list[Place], what: str) -> Place:
        if len(found) == 1:
            return found[0]
        several = ", ".join(label(self.prompt, place.node) for place in found)
        raise ColumnError(
            f"{len(found)} places to set, {several}: more than one {what}"
            if found
            else f"no {what}"
        )

    def _named(self, column: str) -> Place:
        """The place that a column names by a node's id, title or type."""
        name, dot, input = column.rpartition(".")
        if not dot:
            raise ColumnError("no such column", f"Known are {', '.join(HEADS)}. {BY_NAME}")
        kinds = [node for node, entry in self.prompt.items() if entry["class_type"] == name]
        titles = [node for node in self.prompt if title(self.prompt, node) == name]
        nodes = [name] if name in self.prompt else titles or kinds
        if len(nodes) != 1:
            listed = ", ".join(label(self.prompt, node) for node in nodes)
            several = f"{len(nodes)} nodes of that name, {listed}"
            raise ColumnError(
                several if nodes else f"no node {name!r} in the workflow",
                "Give the node's id or another title",
            )
        (node,) = nodes
        for link, origin, _ in links(self.prompt, node):
            if link == input:
                raise ColumnError(
                    f"{label(self.prompt, node)} gets {input} from {label(self.prompt, origin)}",
                    "Set that node's input",
                )
        for place in self._values(node):
            if place.input == input:
                return place
        known = ", ".join(place.input for place in self._values(node)) or "none"
        raise ColumnError(
            f"{label(self.prompt, node)} has no value {input!r}", f"Its values are: {known}"
        )

    def _values(self, node: str) -> list[Place]:
        """Inputs of a node that are values in this prompt."""
        values = self.prompt[node]["inputs"]
        found = inputs_of(self.prompt, self.info, node).items()
        return [
            Place(node, name, kind, options)
            for name, (kind, options) in found
            if not is_link(self.prompt, values.get(name))
        ]

    def uploads(self) -> list[Place]:
        """Lists all inputs that take a file which the user gives."""
        return [
            place
            for node in self.prompt
            for place in self._values(node)
            if is_upload(place.options)
        ]
