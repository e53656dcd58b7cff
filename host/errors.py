"""Errors a user can act on."""

from __future__ import annotations


class NodeError(ValueError):
    """Says which node, which input, what was found there and what to do about it."""

    def __init__(self, node: str, socket: str, found: str, remedy: str) -> None:
        super().__init__(f"{node}, input '{socket}': {found} {remedy}")
        self.node, self.socket, self.found, self.remedy = node, socket, found, remedy
