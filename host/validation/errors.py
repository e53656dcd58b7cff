"""Errors a user can act on."""

from __future__ import annotations

from ...tokenflow_ops.libraries import LibraryError


class NodeError(ValueError):
    """Says which node, which input, what was found there and what to do about it.

    Args:
        node: The node's name.
        socket: The input's name, or None if it is not about an input.
        found: What was found.
        remedy: What to do.
    """

    def __init__(self, node: str, socket: str | None, found: str, remedy: str) -> None:
        super().__init__(f"{node}{f', input {socket!r}' if socket else ''}: {found} {remedy}")
        self.node, self.socket, self.found, self.remedy = node, socket, found, remedy


# The host puts an error's module before its words, which for a pack is a path of folders.
NodeError.__module__ = "builtins"


def library_error(
    node: str, error: LibraryError, socket: str | None = None, instead: str = ""
) -> NodeError:
    """Makes the error of a node that cannot do without a library.

    Args:
        node: The node's name.
        error: What the library said.
        socket: The input that asks for the library, or None.
        instead: What else to choose at that input.

    Returns:
        The error.
    """
    other = f"; or choose {instead}" if instead else ""
    remedy = f"In ComfyUI's environment: {error.remedy}, and start ComfyUI again{other}."
    return NodeError(node, socket, f"{error}.", remedy)
