"""The clips that nodes compare: their inputs and what the user calls them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...host.measuring.cropping import common_size, describe_crop, in_words
from ...host.validation.errors import NodeError
from ...host.video.clips import Clip
from ..schema import clip_input, lines

# Inputs that grow as they are connected are half made on the oldest host, so there are enough for
# all modes and some more. By their ids, the first two of which are older than their names, what
# they are called on the node and where the user gives no names.
EDITS = {"edited": "edit_1", "reference": "edit_2"} | {
    f"edit_{i}": f"edit_{i}" for i in range(3, 13)
}

LONGEST_NAME = 200  # plots and captions are slow to find out that it has no place


def edit_inputs() -> list[Any]:
    """Makes a socket for each of `EDITS`, of which only the first must be connected."""
    (first, name), *more = EDITS.items()
    return [
        clip_input(
            first,
            name,
            tooltip="The edited frames: as many as the source's, and of the same size but for the "
            "margin that VAE Encode cuts off.",
        ),
        *(
            clip_input(socket, name, optional=True, tooltip="One more edit to compare with.")
            for socket, name in more
        ),
    ]


def names_input() -> Any:
    """Makes the input for the names of the edits."""
    return io.String.Input(
        "names",
        default="",
        multiline=True,
        optional=True,
        tooltip="What to call the edits, in their order, one per line or in one line with commas "
        "between. Empty: edit_1, edit_2 and so on.",
    )


def like_source(node: str, given: dict[str, Any]) -> tuple[dict[str, Clip], str]:
    """Returns the connected clips cut to one size, and what was cut in words.

    Args:
        node: What the node is called, for errors.
        given: IMAGEs and VIDEOs by socket, None for what is not connected. `source` must be.

    Returns:
        The connected clips by socket: source, reconstruction, edits in order, whatever the order
        they come in. All are of one size, without the margin that VAE Encode has cut off of some.
        Beside them what was cut, in words.

    Raises:
        NodeError: For another length than the source's, or a size that differs by more.
    """
    connected = {
        socket: Clip.of(node, EDITS.get(socket, socket), given[socket])
        for socket in ("source", "reconstruction", *EDITS)
        if given.get(socket) is not None
    }
    source = connected["source"]
    for clip in connected.values():
        if len(clip) != len(source):
            found = f"{len(clip)} frames, the source has {len(source)}."
            raise NodeError(node, clip.socket, found, "Connect clips of equal length.")
    size = common_size({socket: clip.size for socket, clip in connected.items()})
    if isinstance(size, str):
        theirs, sources = in_words(connected[size].size), in_words(source.size)
        found = f"frames of {theirs} pixels, the source's are {sources}."
        raise NodeError(
            node,
            EDITS.get(size, size),
            found,
            "Connect clips of equal size; as the source the frames that were encoded.",
        )
    words = lines(*(describe_crop(clip.socket, clip.size, size) for clip in connected.values()))
    return {socket: clip.cut(size) for socket, clip in connected.items()}, words


def called(node: str, clips: dict[str, Clip], names: str) -> dict[str, Clip]:
    """Returns the clips under the names that the user gave the edits, or their inputs'.

    Args:
        node: What the node is called, for errors.
        clips: The connected clips by socket.
        names: What the user typed: names of the edits in their order, one per line or in one line
            with commas between. Empty for none.

    Returns:
        The same clips in the same order, by name.

    Raises:
        NodeError: For names too many, too long, or twice the same.
    """
    edits = [socket for socket in EDITS if socket in clips]
    given = parsed(names)
    if len(given) > len(edits):
        raise NodeError(
            node,
            "names",
            f"{len(given)} names for {len(edits)} edits.",
            "Give as many names as edits are connected, or none.",
        )
    check_names(node, given)
    chosen = dict(zip(edits, given, strict=False))
    renamed = {
        chosen.get(socket) or EDITS.get(socket, socket): clip for socket, clip in clips.items()
    }
    if len(renamed) < len(clips):
        raise _twice(node, given)
    return renamed


def parsed(names: str) -> list[str]:
    """Splits what the user typed into names: one per line, or in one line with commas between."""
    lines = names.strip().splitlines()
    return [name.strip() for name in (lines if len(lines) != 1 else lines[0].split(","))]


def check_names(node: str, given: list[str]) -> None:
    """Checks what can be seen of names without the clips.

    Args:
        node: What the node is called, for errors.
        given: The names.

    Raises:
        NodeError: For a name too long, or twice the same.
    """
    if any(len(name) > LONGEST_NAME for name in given):
        raise NodeError(
            node, "names", f"a name of more than {LONGEST_NAME} signs.", "Use shorter names."
        )
    filled = [name for name in given if name]
    if len(set(filled)) < len(filled):
        raise _twice(node, given)


def _twice(node: str, given: list[str]) -> NodeError:
    return NodeError(
        node,
        "names",
        f"a name twice among {', '.join(given)}.",
        "Give every edit a name of its own, none of another input.",
    )
