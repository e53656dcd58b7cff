"""Frames and sound of a VIDEO, a few at a time: all frames of a film fit no memory.

A video in a file is decoded as it is asked for. Any other VIDEO has its frames in memory already.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any

import av
import numpy as np
import torch
from av.audio.resampler import AudioResampler
from comfy_api.latest import InputImpl, Types
from torch import Tensor

from ..memory import is_oom
from ..validation.errors import NodeError

# How many frames are held at once, and how many pixels they have together at most.
FEW, MOST_PIXELS = 8, 1 << 24
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}  # of sound, by its channels, as mp4 takes it
SOUND_BLOCK = 1 << 14  # samples
# Formats of frames that every host reads as whole numbers.
EIGHT_BITS = {"yuvj420p", "yuvj422p", "yuvj444p", "rgb24", "rgba", "pal8"}


@dataclass(frozen=True)
class Facts:
    """What is known of a video before it is decoded.

    Attributes:
        rate: Frames a second.
        frames: How many there are by the file's own word, 0 if it does not say.
    """

    rate: Fraction
    frames: int


@dataclass(frozen=True)
class Sound:
    """A sound track.

    Attributes:
        rate: Samples a second.
        layout: FFmpeg's name of its channels' layout.
        blocks: Its samples, (channels, n) float32 each.
    """

    rate: int
    layout: str
    blocks: Iterator[np.ndarray]


def video_facts(node: str, socket: str, video: Any) -> Facts:
    """Reads frame rate and length of a video.

    Args:
        node: The node's name, for errors.
        socket: The input's name, for errors.
        video: The VIDEO.

    Returns:
        The facts.

    Raises:
        NodeError: If it cannot be read.
    """
    with _readable(node, socket):
        if not is_file(video):
            parts = video.get_components()
            return Facts(Fraction(parts.frame_rate), len(parts.images))
        start, length = _window(video)
        with av.open(_source(video)) as container:
            stream = _pictures(container)
            rate = Fraction(stream.average_rate or 1)
            seconds = (container.duration or 0) / av.time_base
            whole = stream.frames or round(seconds * rate)
        if not start and not length:
            return Facts(rate, whole)
        rest = max(0, whole - round(start * rate))
        return Facts(rate, min(rest, round(length * rate)) if length else rest)


def is_file(video: Any) -> bool:
    """Tells whether a VIDEO is decoded as it is asked for; others have their frames in memory."""
    return isinstance(video, InputImpl.VideoFromFile)


def held_pictures(video: Any) -> Tensor | None:
    """Returns the frames (N, H, W, C) of a VIDEO that has them in memory.

    Args:
        video: The VIDEO.

    Returns:
        The frames; None of a file, and of a VIDEO that cannot be read, which is told where it is.
    """
    if is_file(video):
        return None
    try:
        pictures = video.get_components().images
    except Exception:  # whatever a VIDEO of another pack does
        return None
    return pictures if isinstance(pictures, Tensor) else None


def count_frames(node: str, socket: str, video: Any) -> int:
    """Counts a video's frames without decoding them, where its file does not say.

    Args:
        node: The node's name, for errors.
        socket: The input's name, for errors.
        video: The VIDEO.

    Returns:
        How many there are; of a damaged file less may be read.

    Raises:
        NodeError: If it cannot be read.
    """
    with _readable(node, socket):
        if not is_file(video):
            return len(video.get_components().images)
        start, length = _window(video)
        with av.open(_source(video)) as container:
            stream = _pictures(container)
            if stream.frames and not start and not length:
                return int(stream.frames)
            first, last = (int(moment / stream.time_base) for moment in (start, start + length))
            return sum(
                packet.pts >= first and not (length and packet.pts >= last)
                for packet in container.demux(stream)
                if packet.pts is not None
            )


def read_frames(
    node: str,
    socket: str,
    video: Any,
    first: int = 0,
    count: int = 0,
    every: int = 1,
    chosen: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Reads frames one after another.

    Args:
        node: The node's name, for errors.
        socket: The input's name, for errors.
        video: The VIDEO.
        first: The first frame's number.
        count: How many, 0 for all to the end.
        every: 1 for each frame, n for each n-th one.
        chosen: Only frames of these numbers, ascending, in place of all that.

    Yields:
        A frame, (H, W, 3) float32 in [0, 1] on the CPU.

    Raises:
        NodeError: If the video cannot be read.
    """
    end = first + (count - 1) * every + 1 if count else None
    with _readable(node, socket):
        frames = (
            islice(_decoded(video), first, end, every)
            if chosen is None
            else _of_numbers(_decoded(video), chosen)
        )
        for frame in frames:
            yield frame if isinstance(frame, Tensor) else _pixels(frame)


def _of_numbers(frames: Iterator[Any], chosen: Sequence[int]) -> Iterator[Any]:
    """Those frames whose numbers are chosen, without a look at what follows the last one."""
    if chosen:
        wanted = set(chosen)
        for number, frame in enumerate(islice(frames, max(chosen) + 1)):
            if number in wanted:
                yield frame


def few_of(size: tuple[int, int]) -> int:
    """Returns how many frames of a height and width are held at once."""
    return max(1, min(FEW, MOST_PIXELS // math.prod(size)))


def in_blocks(frames: Iterable[Tensor]) -> Iterator[Tensor]:
    """Puts frames together to as many as are held at once.

    Args:
        frames: Frames (H, W, C).

    Yields:
        (n, H, W, C).
    """
    block: list[Tensor] = []
    for frame in frames:
        block.append(frame)
        if len(block) >= few_of((frame.shape[0], frame.shape[1])):
            yield torch.stack(block)
            block = []
    if block:
        yield torch.stack(block)


def read_sound(node: str, socket: str, video: Any, start: float, seconds: float) -> Sound | None:
    """Opens a part of a video's sound.

    Args:
        node: The node's name, for errors.
        socket: The input's name, for errors.
        video: The VIDEO.
        start: Where the part begins, in seconds.
        seconds: How long it is.

    Returns:
        The sound, None if the video has none.

    Raises:
        NodeError: If the video cannot be read, also while the blocks are asked for.
    """
    with _readable(node, socket):
        if not is_file(video):
            return _held_sound(video.get_components().audio, start, seconds)
        start += _window(video)[0]
        with av.open(_source(video)) as container:
            stream = _last_sound(container)
            if stream is None:
                return None
            rate = stream.codec_context.sample_rate or 48000
            layout = LAYOUTS.get(stream.codec_context.channels, "stereo")
    blocks = _decoded_sound(node, socket, video, rate, layout, start)
    return Sound(rate, layout, _shortened(blocks, math.ceil(seconds * rate)))


@contextmanager
def _readable(node: str, socket: str) -> Iterator[None]:
    """Raises: NodeError in place of what goes wrong inside, whatever a VIDEO does."""
    try:
        yield
    except NodeError:
        raise
    except Exception as error:
        if is_oom(error):
            raise
        found = f"a video that cannot be read ({type(error).__name__}: {str(error)[:200]})."
        raise NodeError(node, socket, found, "Connect another one, or convert its file.") from error


def _source(video: Any) -> Any:
    """What is opened of a video: bytes in memory get a reader of their own, as others read them."""
    source = video.get_stream_source()
    return io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else source


def _window(video: Any) -> tuple[float, float]:
    """Where a video begins in its file and how long it is, in seconds; 0 to the end.

    Newer hosts cut videos without writing them anew.
    """
    trim = getattr(video, "get_active_trim_window", None)
    return trim() if trim else (0.0, 0.0)


def _pictures(container: Any) -> Any:
    if not container.streams.video:
        raise ValueError("there are no pictures in it")
    return container.streams.video[0]


def _decoded(video: Any) -> Iterator[Any]:
    """Tensors (H, W, 3), or frames as they come from a file."""
    if not is_file(video):
        yield from video.get_components().images[..., :3].float().cpu()
        return
    start, length = _window(video)
    with av.open(_source(video)) as container:
        stream = _pictures(container)
        first, last = (int(moment / stream.time_base) for moment in (start, start + length))
        if first:
            container.seek(first, stream=stream)
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError as error:
                logging.warning("TokenFlow: a damaged part of the video is left out (%s).", error)
                continue
            for frame in frames:
                if first and frame.pts < first:
                    continue
                if length and frame.pts >= last:
                    return
                yield frame


def _pixels(frame: Any) -> Tensor:
    """A decoded frame's pixels, upright, as the host's own nodes make them."""
    if hasattr(Types.VideoComponents, "alpha") and frame.format.name not in EIGHT_BITS:
        # Hosts since this attribute read floats: colours between those of 8 bits, and smooth ones
        # where films keep them at half of the size.
        pixels = _aligned(frame).to_ndarray(format="gbrpf32le")[: frame.height, : frame.width]
    else:
        pixels = frame.to_ndarray(format="rgb24") / np.float32(255)
    turned = getattr(frame, "rotation", 0)  # phones film sideways, and say so
    if turned:
        pixels = np.rot90(pixels, k=round(turned / 90))
    return torch.from_numpy(np.ascontiguousarray(pixels))


def _aligned(frame: Any) -> Any:
    """A frame with its border repeated to multiples of 32.

    FFmpeg's floats of other widths differ from time to time.
    """
    height, width = (-(-side // 32) * 32 for side in (frame.height, frame.width))
    if width == frame.width:
        return frame
    graph = av.filter.Graph()
    size = {"width": frame.width, "height": frame.height}
    nodes = (
        graph.add_buffer(**size, format=frame.format.name, time_base=Fraction(1, 1)),
        graph.add("pad", f"{width}:{height}:0:0"),
        graph.add(
            "fillborders",
            f"right={width - frame.width}:bottom={height - frame.height}:mode=smear",
        ),
        graph.add("buffersink"),
    )
    graph.link_nodes(*nodes).configure()
    graph.push(frame)
    return graph.pull()


def _last_sound(container: Any) -> Any:
    """The track that the host's own nodes take; those without a decoder crash FFmpeg."""
    tracks = [one for one in container.streams.audio if one.codec_context is not None]
    return tracks[-1] if tracks else None


def _decoded_sound(
    node: str, socket: str, video: Any, rate: int, layout: str, start: float
) -> Iterator[np.ndarray]:
    resampler = AudioResampler(format="fltp", layout=layout, rate=rate)
    skip: int | None = None
    with _readable(node, socket), av.open(_source(video)) as container:
        if start:
            container.seek(int(start * av.time_base))
        for packet in container.demux(_last_sound(container)):
            for frame in packet.decode():
                if skip is None:
                    skip = max(0, round((start - (frame.time or 0.0)) * rate))
                for part in resampler.resample(frame):
                    block = part.to_ndarray()
                    yield block[:, skip:]
                    skip = max(0, skip - block.shape[1])


def _held_sound(audio: Any, start: float, seconds: float) -> Sound | None:
    """Of an AUDIO: its waveform (1, channels, samples) in pieces."""
    if audio is None:
        return None
    rate = int(audio["sample_rate"])
    wave = audio["waveform"][0, :, round(start * rate) :]
    wave = wave[:, : math.ceil(seconds * rate)].float().cpu()
    layout = LAYOUTS.get(len(wave), "stereo")
    if len(wave) not in LAYOUTS:
        wave = wave[:2]
    return Sound(rate, layout, (part.numpy() for part in wave.split(SOUND_BLOCK, dim=1)))


def _shortened(blocks: Iterator[np.ndarray], most: int) -> Iterator[np.ndarray]:
    for block in blocks:
        yield block[:, :most]
        most -= block.shape[1]
        if most <= 0:
            return
