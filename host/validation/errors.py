"""Errors a user can act on."""

from __future__ import annotations

from ...tokenflow_ops.libraries import LibraryError


class NodeError(ValueError):
    """Says which node, which input, if it is one's, what was found there and what to do about it."""

    def __init__(self, node: str, socket: str | None, found: str, remedy: str) -> None:
        super().__init__(f"{node}{f', input {socket!r}' if socket else ''}: {found} {remedy}")
        self.node, self.socket, self.found, self.remedy = node, socket, found, remedy


def library_error(
    node: str, error: LibraryError, socket: str | None = None, instead: str = ""
) -> NodeError:
    """The error of a node that cannot do without a library. instead: what else to choose at an
    input.
    """
    remedy = f"In ComfyUI's environment: {error.remedy}, and start ComfyUI again{f'; or choose {instead}' if instead else ''}."
    return NodeError(node, socket, f"{error}.", remedy)
