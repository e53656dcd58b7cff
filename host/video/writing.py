"""A video written frame by frame, with its sound beside it."""

from __future__ import annotations

import contextlib
import os
import uuid
import weakref
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import folder_paths
import numpy as np
from comfy_api.latest import InputImpl, Types
from torch import Tensor

from ..validation.errors import NodeError
from .reading import Sound

USUAL_RATE = 30  # frames a second, as Create Video has it
BT709, SRGB, LIMITED = 1, 13, 1  # FFmpeg's numbers of colours, as they are told to players


class TemporaryFile(str):
    """The path of a file in the host's temp folder, removed when nobody knows the path any more."""

    def __new__(cls, suffix: str) -> TemporaryFile:
        """Names a file that is to be made; the folder is made.

        Args:
            suffix: How its name ends.

        Returns:
            The path.
        """
        folder = Path(folder_paths.get_temp_directory())
        folder.mkdir(parents=True, exist_ok=True)
        path = str(folder / f"tokenflow-{uuid.uuid4().hex}{suffix}")
        made = super().__new__(cls, path)
        weakref.finalize(made, _remove, path)
        return made


def _remove(path: str) -> None:
    # Windows keeps what is open; the host empties the folder when it starts.
    with contextlib.suppress(OSError):
        os.unlink(path)


def written_video(
    node: str, frames: Iterable[Tensor], rate: Fraction, sound: Sound | None = None, crf: int = 18
) -> Any:
    """Makes a VIDEO of frames as they come, in a file that goes with it.

    Args:
        node: The node's name, for errors.
        frames: Frames (H, W, 3) in [0, 1] of even height and width.
        rate: Frames a second.
        sound: The sound, or None.
        crf: H.264's constant rate factor: 0 without loss, 51 the worst.

    Returns:
        The VIDEO.

    Raises:
        NodeError: If the disk has no room.
    """
    path = TemporaryFile(".mp4")
    try:
        write_video(path, frames, rate, sound, crf)
    except OSError as error:
        found = f"the video could not be written ({error})."
        remedy = "Make room on the disk of ComfyUI's temp folder."
        raise NodeError(node, None, found, remedy) from error
    return InputImpl.VideoFromFile(path)


def held_video(pictures: Tensor, rate: Fraction) -> Any:
    """Makes a VIDEO of pictures that are in memory anyway.

    Args:
        pictures: (N, H, W, 3) in [0, 1].
        rate: Frames a second.

    Returns:
        The VIDEO.
    """
    parts = Types.VideoComponents(images=pictures, audio=None, frame_rate=rate)
    return InputImpl.VideoFromComponents(parts)


def write_video(
    path: str, frames: Iterable[Tensor], rate: Fraction, sound: Sound | None, crf: int
) -> int:
    """Writes H.264 and AAC into an mp4 file, as the host's own nodes do, but frame by frame.

    Args:
        path: The file.
        frames: Frames (H, W, 3) in [0, 1] of even height and width.
        rate: Frames a second.
        sound: The sound, written as far as the frames have come, or None.
        crf: H.264's constant rate factor: 0 without loss, 51 the worst.

    Returns:
        How many frames were written.

    Raises:
        OSError: If the disk has no room.
    """
    written = 0
    with av.open(path, "w", format="mp4", options={"movflags": "use_metadata_tags"}) as output:
        stream: Any = output.add_stream("h264", rate=rate, options={"crf": str(crf)})
        track = _Track(output, sound) if sound else None
        for frame in frames:
            if not written:
                stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], "yuv420p"
                context = stream.codec_context
                context.colorspace, context.color_primaries = BT709, BT709
                context.color_trc, context.color_range = SRGB, LIMITED
            output.mux(stream.encode(_picture(frame)))
            written += 1
            if track:
                track.write_until(written / rate)
        output.mux(stream.encode(None))
        if track:
            track.end()
    return written


def _picture(frame: Tensor) -> Any:
    pixels = (frame * 255).clamp(0, 255).byte().cpu().numpy()
    return av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
        format="yuv420p", dst_colorspace=BT709
    )


class _Track:
    """The sound on its way into a file."""

    def __init__(self, output: Any, sound: Sound) -> None:
        self._output, self._sound, self._samples = output, sound, 0
        self._stream = output.add_stream("aac", rate=sound.rate, layout=sound.layout)
        self._blocks: Iterator[np.ndarray] = sound.blocks

    def write_until(self, seconds: Fraction) -> None:
        """Writes blocks until the track is as long as the pictures: a file is played as it lies."""
        while self._samples < seconds * self._sound.rate:
            block = next(self._blocks, None)
            if block is None:
                return
            if block.shape[1]:
                self._write(block)

    def _write(self, block: np.ndarray) -> None:
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(block, np.float32), format="fltp", layout=self._sound.layout
        )
        frame.sample_rate, frame.pts = self._sound.rate, self._samples
        self._samples += block.shape[1]
        self._output.mux(self._stream.encode(frame))

    def end(self) -> None:
        """Writes what is left in the encoder."""
        self._output.mux(self._stream.encode(None))
