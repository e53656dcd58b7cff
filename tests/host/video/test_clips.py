"""Inputs that take IMAGE or VIDEO: the same frames give the same, a few of a film at a time."""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from comfy_api.latest import InputImpl
from comfy_api.latest import io as nodes_io
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.host.video import clips, reading, writing
from tokenflow_pack.nodes.looking.comparison import CompareClips
from tokenflow_pack.nodes.looking.metrics import Metrics
from torch import Tensor

from bench.tools.memory import peak_memory

from ..helpers import call, video
from ..inputs.bad_input import CARRY, COMPARE, GOOD, NODES, run

ROOT = Path(__file__).resolve().parents[3]
CLIP = ROOT / "demo" / "tokenflow_star.mp4"  # 24 frames of 128 x 128, 12 a second


def sockets(node: str) -> list[str]:
    """A node's inputs that take both."""
    inputs = NODES[node].define_schema().inputs
    return [one.id for one in inputs if isinstance(one, nodes_io.MultiType.Input)]


LOOKING = [node for node in NODES if sockets(node)]


def written(path: Path, frames: Iterable[Tensor]) -> Any:
    writing.write_video(str(path), frames, Fraction(8), None, 0)
    return InputImpl.VideoFromFile(str(path))


def images(given: Any) -> Tensor:
    """All frames at once, of files as the pack reads them: newer hosts have no steps of 1/255."""
    if isinstance(given, InputImpl.VideoFromFile):
        return torch.stack(list(reading.read_frames("node", "socket", given)))
    return given if isinstance(given, Tensor) else given.get_components().images


def test_whatever_looks_at_a_clip_takes_both() -> None:
    """But for what is made of the pictures themselves: a clip, and the motion of a comparison."""
    left = {
        (node, one.id)
        for node in NODES
        for one in NODES[node].define_schema().inputs
        if str(one.get_io_type()) == "IMAGE"
    }
    assert {(node, name) for node, name in left if name != "keyframes"} == {
        (CARRY, "frames"),
        ("TokenFlow Sampler", "frames"),
        ("Apply TokenFlow", "frames"),
    }
    assert len(LOOKING) == 8


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("node", LOOKING)
def test_a_video_gives_what_its_frames_give(node: str, held: bool, tmp_path: Path) -> None:
    given = {name: GOOD[node]().get(name) for name in sockets(node)}
    # Where the frames may be left out they are given too.
    given |= {"frames": torch.rand(2, 64, 64, 3)} if "frames" in given else {}
    videos = {
        name: video(clip) if held else written(tmp_path / f"{name}.mp4", clip)
        for name, clip in given.items()
        if clip is not None
    }
    wanted = run(node, **{name: images(one) for name, one in videos.items()})
    found = run(node, **videos)
    assert len(wanted) == len(found)
    for one, other in zip(found, wanted, strict=True):
        if isinstance(other, Tensor):
            assert torch.equal(one, other)
        elif isinstance(other, str):
            assert one == other
    if node == COMPARE:  # what is written as it goes loses as little as a codec does
        error = (images(found[1]) - images(wanted[1])).abs().mean()
        assert images(found[1]).shape == wanted[0].shape
        assert float(error) < 0.03


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells")
@pytest.mark.parametrize("node", [Metrics, CompareClips])
def test_memory_does_not_grow_with_the_frames(node: Any, tmp_path: Path) -> None:
    side, more = 128, []
    ramp = torch.linspace(0, 1, side).expand(side, side)[..., None].expand(-1, -1, 3)
    for count in (80, 80, 560):  # the first time much is loaded once and for all
        frames = (ramp.roll(2 * i, 1) for i in range(count))
        film = written(tmp_path / f"{count}.mp4", frames)
        with peak_memory() as peak:
            out = call(node.execute, source=film, edited=film)
        assert peak.process is not None
        more.append(peak.process.more)
    whole = 480 * side * side * 3 * 4 / 2**20  # 90 MiB of each clip
    assert more[2] - more[1] < whole / 2
    if node is CompareClips:
        assert len(out[0]) == 64
        assert len(images(out[1])) == count
        assert out[1].get_components().frame_rate == 8


def test_frames_are_counted_where_the_file_does_not_say(tmp_path: Path) -> None:
    """As Matroska does not. The same bytes in memory may be both source and edit."""
    with av.open(str(CLIP)) as given, av.open(str(tmp_path / "clip.mkv"), "w") as copy:
        (stream,) = given.streams.video
        target = copy.add_stream_from_template(stream)
        for packet in given.demux(stream):
            if packet.dts is not None:
                packet.stream = target
                copy.mux(packet)
    file = InputImpl.VideoFromFile(str(tmp_path / "clip.mkv"))
    assert reading.count_frames("node", "socket", file) == 24
    buffer = InputImpl.VideoFromFile(io.BytesIO((tmp_path / "clip.mkv").read_bytes()))
    whole = images(file)
    _, plot, figures, _ = call(Metrics.execute, whole, whole)
    found = call(Metrics.execute, buffer, buffer)
    assert torch.equal(found[1], plot)
    assert found[2] == figures


def test_some_frames_come_in_the_order_that_is_asked_for() -> None:
    clip = clips.Clip.of("node", "socket", InputImpl.VideoFromFile(str(CLIP)))
    numbers = torch.tensor([23, 0, 7, 0])
    assert torch.equal(clip[numbers], images(clip.given)[numbers])


def test_clips_of_other_lengths_and_damaged_files_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    film = InputImpl.VideoFromFile(str(CLIP))
    with pytest.raises(NodeError, match=r"'edit_1': 24 frames, the source has 10.*equal length"):
        call(Metrics.execute, images(film)[:10], film)
    monkeypatch.setattr(clips, "count_frames", lambda *_: 30)
    for node in (Metrics, CompareClips):
        with pytest.raises(NodeError, match=r"'source': a video that ends before frame 24 of 30"):
            call(node.execute, film, film)


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (torch.full((2, 16, 16, 3), torch.nan), "without NaN"),
        (torch.zeros(2, 16, 16), "pictures of shape"),
        (torch.zeros(0, 16, 16, 3), "at least one frame"),
    ],
)
def test_pictures_in_a_video_are_looked_at_as_others_are(frames: Tensor, words: str) -> None:
    with pytest.raises(NodeError, match=f"'source': .*{words}"):
        call(Metrics.execute, video(frames), torch.rand(2, 16, 16, 3))
