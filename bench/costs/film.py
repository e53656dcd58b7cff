"""A film through a real server: memory and time by its length.

    python3 run.py bench film [--frames 400 1000 10000] [--size 128] [--steps 2] [--interval 8]

The embedded clip's scene led to and fro, drawn into a video as it goes. For each length a headless
ComfyUI loads it, encodes, inverts, matches, edits, decodes and saves it, and measures the edit
against it, of which never more than a few pictures are in memory (Load Video, Encode Video, DDIM
Invert Video, Extract SA Features, Build NN Correspondences, TokenFlow Sampler, Decode to Video,
Video Consistency Metrics). A short clip runs first, so that loading counts for no length.

Prints a table: seconds of the clock and, without a GPU, of the server's processors, these also a
frame and as a multiple of the shortest film's; the most memory that the server held; files in its
temp folder. Then seconds of each node a frame, and what the edits measure. --output FOLDER keeps
table and figures (film.md, film.json).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import make_clip
from scenes import demo_clip

from bench.tools.markdown import figure, table
from launch.comfyui.client import run_prompt
from launch.comfyui.server import Server, has_accelerator
from launch.comfyui.workflow import Prompt

WARM_UP = 16  # frames of the clip that runs first
EVERY = 0.25  # seconds between two looks at the server
GIB = 2**20  # of KiB


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[400, 1000, 10000])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--interval", type=int, default=8)
    parser.add_argument("--refinement", help="of DDIM Invert Video, its default if not given")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    films = []
    for frames in sorted(set(options.frames)):
        films.append(made(frames, options))
        print(f"{frames} frames: {films[-1].seconds:.0f} s", file=sys.stderr, flush=True)
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        report(films, options)
    print(text.getvalue(), end="")
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "film.md").write_text(text.getvalue(), encoding="utf-8")
        figures = json.dumps([asdict(film) for film in films], indent=1)
        (options.output / "film.json").write_text(figures + "\n", encoding="utf-8")


@dataclass
class Film:
    """What a film took. Memory is resident, in GiB; `temp` are GiB of files.

    work: processor seconds, or those of the clock with a GPU. before: what the server held when it
    began. peak: the most of it. own: the most of what is the server's alone, without pages of
    files, which the system may drop. nodes: seconds by kind.
    """

    frames: int
    seconds: float = 0.0
    work: float = 0.0
    before: float = 0.0
    peak: float = 0.0
    own: float = 0.0
    temp: float = 0.0
    nodes: dict[str, float] = field(default_factory=dict)
    measured: str = ""


def made(frames: int, options: argparse.Namespace) -> Film:
    """An edit of a film on a server of its own."""
    film = Film(frames)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with Server(
            Path(os.environ["COMFYUI_PATH"]), work, work / "output", work / "server.log"
        ) as server:
            edit(server, Film(WARM_UP), options)
            edit(server, film, options)
    return film


def edit(server: Server, film: Film, options: argparse.Namespace) -> None:
    """Edits a film on a running server, and fills in what it took."""
    scene, times = demo_clip()
    shown = [times[to_and_fro(len(times), i)] for i in range(film.frames)]
    make_clip.write(server.input / f"{film.frames}.mp4", scene, shown, options.size, "veryfast")
    prompt = completed(graph(film.frames, options), server.get("/object_info"))
    assert server.process is not None
    process = server.process.pid
    with watched(process, server.work / "temp", film):
        start, busy = time.perf_counter(), processor_seconds(process)
        result = run_prompt(server.address, prompt, Clock(film, prompt))
        film.seconds = time.perf_counter() - start
        film.work = film.seconds if has_accelerator() else processor_seconds(process) - busy
    film.measured = result.texts()["measure"][0]
    (saved,) = server.output.glob(f"{film.frames}_*.mp4")
    if not saved.stat().st_size:
        raise SystemExit("nothing was saved")


def to_and_fro(length: int, number: int) -> int:
    """Which frame of a clip of `length` stands at a place of one that has no end."""
    return length - 1 - abs(number % (2 * length - 2) - (length - 1))


class Clock:
    """A listener that adds up the seconds of every kind of node."""

    def __init__(self, film: Film, prompt: Prompt) -> None:
        self.film, self.prompt = film, prompt
        self.node, self.start = "", time.perf_counter()

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        if kind in ("executing", "execution_success"):
            now = time.perf_counter()
            if self.node:
                kind, seconds = self.prompt[self.node]["class_type"], self.film.nodes
                seconds[kind] = seconds.get(kind, 0.0) + now - self.start
            self.node, self.start = data.get("node") or "", now


@contextlib.contextmanager
def watched(process: int, temp: Path, film: Film) -> Any:
    """Looks at a process until the block ends."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(EVERY):
            film.own = max(film.own, held(process, "RssAnon"))
            film.temp = max(film.temp, size_of(temp))

    Path(f"/proc/{process}/clear_refs").write_text("5")  # the high-water mark begins anew
    film.before = held(process, "VmRSS")
    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        # The kernel counts both in passing, not to the page.
        film.peak = max(film.before, held(process, "VmHWM"))


def held(process: int, name: str) -> float:
    """A line of Linux's status of a process, in GiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name + ":")).split()[1]) / GIB


def processor_seconds(process: int) -> float:
    """Of all of a process's threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def size_of(folder: Path) -> float:
    """GiB of all files; some go while they are counted."""
    total = 0
    for path in folder.glob("**/*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total / 2**30


def graph(frames: int, options: argparse.Namespace) -> Prompt:
    """The prompt for a film in the input folder."""
    caption, surface = demo_clip()[0].caption(), demo_clip()[0].surface

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    model, film, source, edit = ["model", 0], ["film", 0], ["source", 0], ["edit", 0]
    negative, vae = ["negative", 0], ["model", 2]

    def text(words: str) -> dict[str, Any]:
        return node("CLIPTextEncode", clip=["model", 1], text=words)

    return {
        "model": node("TokenFlowLoadDemoModel"),
        "source": text(caption),
        "edit": text(caption.replace(surface, "gold")),
        "negative": text(""),
        "film": node("LoadVideo", file=f"{frames}.mp4"),
        "encode": node("TokenFlowEncodeVideo", video=film, vae=vae),
        "invert": node(
            "TokenFlowInvertVideo",
            model=model,
            latents=["encode", 0],
            positive=source,
            steps=options.steps,
            check_reconstruction=False,
            **({} if options.refinement is None else {"refinement": options.refinement}),
        ),
        "extract": node(
            "TokenFlowExtractFeatures", model=model, inversion=["invert", 0], storage="disk"
        ),
        "match": node(
            "TokenFlowBuildCorrespondences",
            features=["extract", 0],
            keyframe_interval=options.interval,
        ),
        "sample": node(
            "TokenFlowSampler",
            model=model,
            correspondences=["match", 0],
            positive=edit,
            negative=negative,
        ),
        "decode": node("TokenFlowDecodeToVideo", samples=["sample", 0], vae=vae, source=film),
        "save": node(
            "SaveVideo",
            video=["decode", 0],
            filename_prefix=str(frames),
            format="auto",
            codec="auto",
        ),
        "measure": node("TokenFlowMetrics", source=film, edited=["decode", 0]),
        "show": node("PreviewImage", images=["measure", 1]),
    }


def completed(prompt: Prompt, known: dict[str, Any]) -> Prompt:
    """Gives nodes the defaults of what the prompt leaves out, as the editor does."""
    for node in prompt.values():
        for name, (kind, *more) in known[node["class_type"]]["input"].get("required", {}).items():
            settings = more[0] if more else {}
            options = kind if isinstance(kind, list) else settings.get("options", [None])
            value = settings.get("default", options[0])
            if value is not None:
                node["inputs"].setdefault(name, value)
    return prompt


def report(films: list[Film], options: argparse.Namespace) -> None:
    """Prints the tables."""
    print(
        f"embedded model, {options.size} x {options.size} pixels, {options.steps} steps, "
        f"interval {options.interval}\n"
    )
    first = films[0]
    table(
        [
            "frames",
            "seconds",
            "work, seconds",
            "a frame",
            f"to {first.frames} frames",
            "before GiB",
            "peak GiB",
            "without files",
            "temp GiB",
        ],
        (
            [
                str(film.frames),
                f"{film.seconds:.0f}",
                f"{film.work:.0f}",
                figure(film.work / film.frames),
                f"{film.work / film.frames / (first.work / first.frames):.2f}",
                *(f"{value:.2f}" for value in (film.before, film.peak, film.own, film.temp)),
            ]
            for film in films
        ),
    )
    print("\nmilliseconds a frame\n")
    kinds = [kind for kind in first.nodes if max(film.nodes[kind] for film in films) > 1]
    table(
        ["frames", *(kind.removeprefix("TokenFlow") for kind in kinds)],
        (
            [str(film.frames), *(figure(film.nodes[kind] / film.frames * 1e3) for kind in kinds)]
            for film in films
        ),
    )
    for film in films:
        print(f"\n{film.frames} frames\n{film.measured}")


if __name__ == "__main__":
    main()
