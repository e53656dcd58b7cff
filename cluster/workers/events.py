"""What workers tell of themselves and of the job that they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class About:
    """What a worker is: its machine, the device that its ComfyUI uses, versions, and the seconds
    that it took to start.
    """

    machine: str
    device: str
    versions: dict[str, str]
    seconds: float


@dataclass(frozen=True)
class Step:
    """A node has done `value` of `most` steps."""

    node: str
    value: float
    most: float


@dataclass(frozen=True)
class Saved:
    """A file that the job saved, by its name below the job's folder."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Done:
    """The job's last event: {title: texts that nodes show}, and figures for the manifest."""

    texts: dict[str, list[str]]
    figures: dict[str, Any]
