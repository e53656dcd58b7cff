"""Encode Video and Decode to Video: what the host's own nodes give, a few frames at a time."""

from __future__ import annotations

import errno
import gc
import io
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from comfy_api.latest import InputImpl
from comfy_extras.nodes_video import CreateVideo
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.host.video import reading, writing
from tokenflow_pack.nodes.video.decoding import DecodeToVideo
from tokenflow_pack.nodes.video.encoding import EncodeVideo
from torch import Tensor

import nodes

from ..helpers import Coder, call, interrupt_after, interrupted, video
from ..once import once_a_module

ROOT = Path(__file__).resolve().parents[3]
CLIP = ROOT / "demo" / "tokenflow_star.mp4"  # 24 frames of 128 x 128, 12 a second


def on_disk(path: Path = CLIP) -> Any:
    return InputImpl.VideoFromFile(str(path))


@once_a_module
def sound() -> Tensor:
    """Two channels of two seconds, the second one quieter."""
    tone = torch.sin(torch.arange(16000) * 0.2) * 0.4
    return torch.stack([tone, tone / 2])


@once_a_module
def latents(frames: int = 20) -> Tensor:
    small = torch.rand(frames, 3, 3, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(small - 0.5, scale_factor=2, mode="bilinear") * 20


def shown_by_the_host(path: Path, rate: float, samples: Tensor) -> Tensor:
    """VAE Decode, Create Video, and the frames of the file it writes."""
    pictures = call(nodes.VAEDecode().decode, Coder(), {"samples": samples})[0]
    call(CreateVideo.execute, pictures, rate)[0].save_to(str(path))
    return on_disk(path).get_components().images


@pytest.mark.parametrize("kind", ["file", "buffer", "frames"])
def test_latents_are_those_of_the_hosts_own_nodes(kind: str) -> None:
    parts = on_disk().get_components()
    given = {
        "file": on_disk,
        "buffer": lambda: InputImpl.VideoFromFile(io.BytesIO(CLIP.read_bytes())),
        "frames": lambda: video(parts.images, 12),
    }[kind]()
    taken = parts.images[3:21:2]
    scaled = call(nodes.ImageScale().upscale, taken, "lanczos", 96, 72, "center")[0]
    wanted = call(nodes.VAEEncode().encode, Coder(), scaled)[0]["samples"]
    found, rate, start = call(EncodeVideo.execute, given, Coder(), 3, 9, 2, 96, 72)
    assert torch.equal(found["samples"], wanted)
    assert (rate, start) == (6.0, 0.25)
    whole = call(EncodeVideo.execute, given, Coder())[0]["samples"]
    assert torch.equal(whole, Coder().encode(parts.images))


@pytest.mark.parametrize(("height", "width"), [(50, 90), (64, 34), (34, 64)])
def test_frames_of_any_size_are_read_as_by_the_host(
    height: int, width: int, tmp_path: Path
) -> None:
    film = video(torch.rand(3, height, width, 3, generator=torch.Generator().manual_seed(0)), 12)
    film.save_to(str(tmp_path / "film.mp4"))
    given = InputImpl.VideoFromFile(str(tmp_path / "film.mp4"))
    wanted = given.get_components().images
    for _ in range(2):
        read = list(reading.read_frames("A node", "video", given))
        assert torch.equal(torch.stack(read), wanted)


def test_sides_that_are_no_multiples_are_rounded_or_told() -> None:
    given = video(torch.rand(2, 50, 90, 3))
    assert call(EncodeVideo.execute, given, Coder(), width=64)[0]["samples"].shape[2:] == (4, 8)
    with torch.inference_mode():
        out = EncodeVideo.execute(given, Coder())
    assert out.args[0]["samples"].shape[2:] == (6, 11)
    assert "video: the middle 88 x 48 of 90 x 50 pixels" in out.ui.as_dict()["text"][0]


def test_only_a_few_frames_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more frames are decoded than those that were encoded and a block."""
    read, encoded, most = 0, 0, 0
    decoded = reading._decoded

    def counting(given: Any) -> Iterator[Any]:
        nonlocal read, most
        for frame in decoded(given):
            read += 1
            most = max(most, read - encoded)
            yield frame

    class Counting(Coder):
        def encode(self, frames: Tensor) -> Tensor:
            nonlocal encoded
            encoded += len(frames)
            return super().encode(frames)

    monkeypatch.setattr(reading, "_decoded", counting)
    call(EncodeVideo.execute, on_disk(), Counting())
    assert (read, encoded) == (24, 24)
    assert most <= reading.FEW


def test_a_file_may_have_more_frames_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tokenflow_pack.nodes.video.encoding.video_facts",
        lambda *_: reading.Facts(Fraction(12), 2),
    )
    found = call(EncodeVideo.execute, on_disk(), Coder())[0]["samples"]
    assert torch.equal(found, Coder().encode(on_disk().get_components().images))


def test_the_video_is_that_of_vae_decode_and_create_video(tmp_path: Path) -> None:
    wanted = shown_by_the_host(tmp_path / "wanted.mp4", 8, latents())
    made = call(DecodeToVideo.execute, {"samples": latents()}, Coder(), frame_rate=8.0)[0]
    parts = made.get_components()
    assert parts.frame_rate == 8
    assert parts.images.shape == wanted.shape
    assert float((parts.images - wanted).abs().mean()) < 0.015
    exact = call(nodes.VAEDecode().decode, Coder(), {"samples": latents()})[0]
    theirs, ours = ((one - exact.clamp(0, 1)).abs().mean() for one in (wanted, parts.images))
    assert float(ours) <= float(theirs)


@pytest.mark.parametrize("kind", ["frames", "file"])
def test_sound_and_frame_rate_are_the_sources(kind: str, tmp_path: Path) -> None:
    source = video(torch.rand(16, 32, 32, 3), 8, sound())
    if kind == "file":
        source.save_to(str(tmp_path / "source.mp4"))
        source = on_disk(tmp_path / "source.mp4")
    samples = {"samples": latents(8)}
    parts = call(DecodeToVideo.execute, samples, Coder(), source, start_time=0.5)[0]
    parts = parts.get_components()
    assert (parts.frame_rate, parts.audio["sample_rate"]) == (8, 8000)
    heard = parts.audio["waveform"][0]
    assert abs(heard.shape[1] - 8000) <= 1024  # a second, and AAC's frames
    wanted = sound()[:, 4000:12000]
    error = (heard[:, 1500:6500] - wanted[:, 1500:6500]).abs().mean(1) / wanted.abs().mean(1)
    assert bool((error < 0.15).all()), error


def test_without_a_source_there_is_no_sound_and_create_videos_rate() -> None:
    parts = call(DecodeToVideo.execute, {"samples": latents(2)}, Coder())[0].get_components()
    assert (parts.frame_rate, parts.audio, len(parts.images)) == (30, None, 2)


def written() -> list[Path]:
    return sorted(Path(folder_paths.get_temp_directory()).glob("tokenflow-*.mp4"))


def test_the_file_goes_with_the_last_video_that_knows_it() -> None:
    before = written()
    made = call(DecodeToVideo.execute, {"samples": latents(2)}, Coder())[0]
    (file,) = set(written()) - set(before)
    copied = InputImpl.VideoFromFile(made.get_stream_source())  # as hosts trim videos
    del made
    gc.collect()
    assert len(copied.get_components().images) == 2
    assert file.exists()
    del copied
    gc.collect()
    assert not file.exists()


def test_an_interrupt_ends_both_and_leaves_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    before = written()
    for total, run in (
        (24, lambda: call(EncodeVideo.execute, on_disk(), Coder())),
        (20, lambda: call(DecodeToVideo.execute, {"samples": latents()}, Coder())),
    ):
        with monkeypatch.context() as patched, interrupted():
            counted = interrupt_after(2, total, patched)
            run()
        assert counted == [8, 16]
    gc.collect()
    assert written() == before


def test_a_full_disk_is_told_and_leaves_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    before = written()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing, "_picture", full)
    with pytest.raises(NodeError, match=r"could not be written.*Make room on the disk"):
        call(DecodeToVideo.execute, {"samples": latents(2)}, Coder())
    gc.collect()
    assert written() == before


def test_files_that_are_no_videos_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(CLIP.read_bytes()[:400])
    for path in (tmp_path / "text.mp4", cut, tmp_path / "none.mp4"):
        with pytest.raises(NodeError, match=r"input 'video': a video that cannot be read"):
            call(EncodeVideo.execute, on_disk(path), Coder())
        with pytest.raises(NodeError, match=r"input 'source': a video that cannot be read"):
            call(DecodeToVideo.execute, {"samples": latents(2)}, Coder(), on_disk(path))
