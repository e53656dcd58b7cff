"""What workers tell of themselves and of the job that they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class About:
    """What a worker is.

    Attributes:
        machine: Its name.
        device: The device that its ComfyUI uses.
        versions: Of the pack, ComfyUI, torch, Ray and Python.
        seconds: That it took to start.
    """

    machine: str
    device: str
    versions: dict[str, str]
    seconds: float


@dataclass(frozen=True)
class Step:
    """A node has done some of its steps.

    Attributes:
        node: The node's title.
        value: Steps done.
        most: Steps of the node.
    """

    node: str
    value: float
    most: float


@dataclass(frozen=True)
class Saved:
    """A file that the job saved.

    Attributes:
        name: Below the job's folder.
        content: The file's bytes.
    """

    name: str
    content: bytes


@dataclass(frozen=True)
class Done:
    """The job's last event.

    Attributes:
        texts: {title: texts that nodes show}.
        figures: For the manifest.
    """

    texts: dict[str, list[str]]
    figures: dict[str, Any]
