"""A user's clip as the server gets it: looked into, and no longer than it has to be."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

from .wanted import WantedError

# Bytes that a clip's frames may take in memory, as the workflow loads all of them: 12 a pixel.
MOST, PIXEL = 2 << 30, 12


def put_clip(clip: Path, target: Path, frames: int) -> int:
    """Copies a clip, without what comes far behind the frames that are edited if it is large.

    Args:
        clip: The video.
        target: The copy.
        frames: How many of the first frames are edited, 0 for all of them.

    Returns:
        How many frames the clip has by its own word, 0 if it does not say.

    Raises:
        WantedError: If it cannot be decoded.
    """
    import av

    try:
        with av.open(str(clip)) as source:
            stream = source.streams.video[0]
            first = next(source.decode(stream))
            rate = Fraction(stream.average_rate or 25)
            count = stream.frames or round((source.duration or 0) / av.time_base * rate)
        large = max(count, 1) * first.width * first.height * PIXEL > MOST
        if large and 0 < frames < count:
            _cut(clip, target, frames / rate)
        else:
            shutil.copy(clip, target)
    except (av.FFmpegError, IndexError, StopIteration) as error:
        told = f"{type(error).__name__}: {error}" if str(error) else "no frame in it"
        raise WantedError(f"--clip: {clip} cannot be decoded ({told}).") from error
    return count


def _cut(clip: Path, target: Path, seconds: Fraction) -> None:
    """Copies the packets up to a time and a second more, without decoding them."""
    import av

    with av.open(str(clip)) as source, av.open(str(target), "w") as made:
        kinds = [s for s in source.streams if s.type in ("video", "audio")][:2]
        streams = {stream.index: made.add_stream_from_template(stream) for stream in kinds}
        ended: set[int] = set()
        for packet in source.demux(kinds):
            if packet.dts is None:
                continue
            index = packet.stream.index
            if packet.dts * packet.time_base > seconds + 1:
                ended.add(index)
            if len(ended) == len(kinds):
                break
            if index not in ended:
                packet.stream = streams[index]
                made.mux(packet)
