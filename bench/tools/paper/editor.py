"""A worker that edits in its own process what a task of the paper's table says.

It is run here, or by Ray as the batches' workers are: `start`, `run`, `stop`.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from cluster.workers.events import About, Done, Saved

SEED = 1  # of keyframes
CRF = 12  # of the clips that are shown: what is measured are the frames themselves


@dataclass(frozen=True)
class Task:
    """One edit, or what all edits of a clip are measured against.

    clip: a video, or a folder of frames. source: what it shows. edit: what is asked for, empty for
    the clip itself. row: of the table. files, judges, settings: fields of Files, Judges and
    Settings. width, height: in pixels. tuning: steps of Tune-A-Video's training.
    """

    clip: str
    source: str
    edit: str
    row: str
    files: Mapping[str, Any]
    judges: Mapping[str, Any]
    settings: Mapping[str, Any]
    width: int
    height: int
    tuning: int = 0

    def record(self) -> dict[str, Any]:
        return asdict(self)


class Editor:
    """comfyui: the folder, for machines without a COMFYUI_PATH of their own. threads: for the
    libraries that compute on the CPU, None for as many as they take.
    """

    def __init__(self, comfyui: Path, threads: int | None = None) -> None:
        self.comfyui = Path(os.environ.get("COMFYUI_PATH") or comfyui)
        self.threads = threads
        self.loaded: dict[str, Any] = {}  # by what it is of, the last one of each

    def start(self) -> About:
        """Brings ComfyUI and the pack into this process, unless they are there."""
        began = time.monotonic()
        if "tokenflow_pack" not in sys.modules:
            from launch.comfyui.inprocess import import_comfyui, import_pack

            import_comfyui(self.comfyui)
            import_pack()
        import torch

        if self.threads:
            torch.set_num_threads(self.threads)
        return About(platform.node(), *facts(), time.monotonic() - began)

    def stop(self) -> None:
        self.loaded.clear()

    def run(self, name: str, task: Any, files: Mapping[str, Any]) -> Iterator[Saved | Done]:
        """Does a task. name, files: of a batch's job, which this one does not need.

        Yields: the clips as mp4, then the figures.
        """
        import torch

        with torch.inference_mode():
            yield from self._run(Task(**task))

    def _run(self, task: Task) -> Iterator[Saved | Done]:
        began = time.perf_counter()
        clip = self._clip(task)
        if task.edit:
            made, figures = clip.edit_of(task)
            shown = {"edit.mp4": made}
        else:
            made = clip.case.world.decode(clip.case.latents)
            figures, shown = {}, {"source.mp4": clip.case.source, "autoencoder.mp4": made}
        figures |= clip.figures(made, task.edit)
        for file, frames in shown.items():
            yield Saved(file, encoded(frames, clip.rate))
        counts = {"nodes_run": 1, "nodes_cached": 0}  # of batches, which tell them
        yield Done({}, {"seconds": time.perf_counter() - began, **counts, **figures})

    def _clip(self, task: Task) -> Any:
        """The task's clip with what its edits share; that of another clip is dropped before."""
        from .clip import PaperClip
        from .models import Files, load_model

        studio = self._once("model", task.files, lambda: load_model(Files(**task.files)))
        of = replace(task, edit="", row="").record()
        if self.loaded.get("clip", (None,))[0] != of:
            self.loaded.pop("clip", None)
        scorers = self._once("judges", task.judges, lambda: PaperClip.judged(task, studio))
        return self._once("clip", of, lambda: PaperClip.of(task, studio, scorers))

    def _once(self, what: str, of: Any, make: Any) -> Any:
        known = self.loaded.get(what)
        if known is None or known[0] != of:
            self.loaded.pop(what, None)
            self.loaded[what] = of, make()
        return self.loaded[what][1]


def facts() -> tuple[str, dict[str, str]]:
    """The device, and versions of what computes."""
    import comfyui_version
    import torch
    from comfy import model_management

    from cluster.workers.worker import pack_version

    device = model_management.get_torch_device_name(model_management.get_torch_device())
    versions = {
        "tokenflow": pack_version(Path(comfyui_version.__file__).parent),
        "comfyui": comfyui_version.__version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }
    return device, versions


def encoded(frames: Any, rate: Fraction) -> bytes:
    """Frames (N, H, W, 3) in [0, 1] as an mp4 that browsers show."""
    from tokenflow_pack.host.video.writing import write_video

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
        write_video(str(path), even.float().cpu(), rate, None, CRF)
        return path.read_bytes()
