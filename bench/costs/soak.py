"""Hours of mixed edits on one server, with a plot of memory and time.

    python3 run.py bench soak [--hours 2] [--seed 0] [--plot soak.png]

Edits of the embedded model's world are drawn at random: clips of 1 to 24 frames, all modes, presets
and ways to keep features, stored inversions, masks, tuned models, the host's samplers, edits that
our nodes refuse. One in eight is interrupted at a random moment.

After every ten the host is told to free its memory, and what it still holds is measured. Then the
same edit as every time runs, and the host's own KSampler without our nodes: their latents have to
be those of the first time, bit by bit. Seconds are the server's processor time. Anything that does
not end as it should is printed, and ends in exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from safetensors.numpy import load_file

from bench.tools.markdown import figure, table
from bench.tools.mixed import MIX, plain_sampling, reference_edit, write_clips
from launch.comfyui.client import PromptError, run_prompt
from launch.comfyui.server import Server
from launch.comfyui.workflow import Prompt

ROUND = 10  # edits between two looks
INTERRUPTED, LATEST = 1 / 8, 8.0  # share of the edits, and after how many seconds at most
SETTLED = 12.0  # seconds until the host has freed its memory: it collects garbage every ten
REFERENCE, PLAIN = "the same edit", "KSampler alone"


@dataclass(frozen=True)
class Held:
    """What the server has. memory: resident MiB, without pages of files, which the system may drop.
    files: descriptors that are open.

    kept: files in its temp folder.
    """

    memory: float
    files: int
    threads: int
    kept: int


@dataclass
class Record:
    """What was seen. Hours are since the beginning.

    after: hours and MiB after every edit. rested: hours and what is held once the host freed its
    memory. took: processor seconds of REFERENCE and PLAIN, by their names. latents: theirs of the
    first time. ends: how many edits of a kind ended how.
    """

    after: list[tuple[float, float]] = field(default_factory=list)
    rested: list[tuple[float, Held]] = field(default_factory=list)
    took: dict[str, list[float]] = field(default_factory=lambda: {REFERENCE: [], PLAIN: []})
    latents: dict[str, np.ndarray] = field(default_factory=dict)
    ends: dict[tuple[str, str], int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def count(self, kind: str, end: str) -> None:
        self.ends[kind, end] = self.ends.get((kind, end), 0) + 1


class Soak:
    """Edits on a running server."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server, self.draw, self.record = server, random.Random(seed), Record()
        self.start = time.monotonic()

    @property
    def hours(self) -> float:
        return (time.monotonic() - self.start) / 3600

    def run(self, hours: float) -> None:
        self.look()
        while self.hours < hours:
            for _ in range(ROUND):
                self.edit(self.draw.choice(list(MIX)))
            self.look()
            print(self.summary(), file=sys.stderr, flush=True)

    def edit(self, kind: str) -> None:
        """One of the mix; its prompts end well, unless they are to be refused or interrupted."""
        wanted = "refused" if kind == "refused" else "done"
        end = "done"
        timer = (
            threading.Timer(self.draw.uniform(0, LATEST), self.post, ("/interrupt",))
            if self.draw.random() < INTERRUPTED
            else None
        )
        prompts = MIX[kind](self.draw)
        if timer:
            timer.start()
        try:
            for prompt in prompts:
                run_prompt(self.server.address, prompt)
        except PromptError as error:
            end = (
                "interrupted"
                if str(error).endswith("interrupted")
                else "refused"
                if "NodeError" in str(error)
                else "failed"
            )
            if end not in ("interrupted" if timer else wanted, wanted):
                self.record.wrong.append(f"{kind}: {error}")
        else:
            if wanted == "refused":
                self.record.wrong.append(f"{kind}: was not refused")
        finally:
            if timer:
                timer.cancel()
                timer.join()
        self.record.count(kind, end)
        self.record.after.append((self.hours, self.held().memory))
        self.forget()

    def look(self) -> None:
        """What is held at rest, and whether edits are what they were."""
        self.post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(SETTLED)
        self.record.rested.append((self.hours, self.held()))
        for name, prompt in ((REFERENCE, reference_edit()), (PLAIN, plain_sampling())):
            before = self.seconds()
            latents = self.latents(prompt)
            self.record.took[name].append(self.seconds() - before)
            if not np.array_equal(latents, self.record.latents.setdefault(name, latents)):
                self.record.wrong.append(
                    f"{name}: other latents than the first time, after {self.hours:.2f} hours"
                )
        self.forget()

    def latents(self, prompt: Prompt) -> np.ndarray:
        (file,) = run_prompt(self.server.address, prompt).files()
        return load_file(self.server.output / file)["latent_tensor"]

    def forget(self) -> None:
        """What was saved would fill the disk."""
        for path in [path for path in self.server.output.rglob("*") if path.is_file()]:
            path.unlink()

    def post(self, path: str, body: object = None) -> None:
        request = urllib.request.Request(
            self.server.address + path,
            json.dumps(body or {}).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=60).close()

    @property
    def process(self) -> Path:
        assert self.server.process is not None
        return Path(f"/proc/{self.server.process.pid}")

    def held(self) -> Held:
        status = dict(
            line.split(":", 1) for line in (self.process / "status").read_text().splitlines()
        )
        files = len(os.listdir(self.process / "fd"))
        kept = sum(1 for path in (self.server.work / "temp").rglob("*") if path.is_file())
        return Held(int(status["RssAnon"].split()[0]) / 1024, files, int(status["Threads"]), kept)

    def seconds(self) -> float:
        """Processor time of the server until now."""
        after_name = (self.process / "stat").read_text().rsplit(")", 1)[1].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")

    def summary(self) -> str:
        _, held = self.record.rested[-1]
        seconds = ", ".join(f"{name} {took[-1]:.1f} s" for name, took in self.record.took.items())
        return (
            f"{self.hours:.2f} h, {len(self.record.after)} edits: {held.memory:.0f} MiB at rest, "
            f"{seconds}, {len(self.record.wrong)} wrong"
        )


def report(record: Record) -> None:
    """Prints the tables.

    The first look comes before any edit, when nothing is loaded yet; quarters are of the others.
    """
    rested = [held for _, held in record.rested[1:]]
    rows = {f"{name}, processor seconds": took[1:] for name, took in record.took.items()}
    rows |= {
        "memory at rest, MiB": [held.memory for held in rested],
        "open files at rest": [held.files for held in rested],
        "threads at rest": [held.threads for held in rested],
        "files in the temp folder": [held.kept for held in rested],
    }
    table(
        ["", "first quarter", "last quarter", "lowest", "highest"],
        [[name, *_quarters(values)] for name, values in rows.items()],
    )
    print(f"\nmost after an edit: {max(memory for _, memory in record.after):.0f} MiB\n")
    ends = ("done", "interrupted", "refused", "failed")
    table(
        ["edits", *ends],
        [[kind, *(str(record.ends.get((kind, end), 0)) for end in ends)] for kind in MIX],
    )
    for line in record.wrong:
        print("wrong:", line)


def _quarters(values: list[float]) -> list[str]:
    """Medians of the first and the last quarter, lowest and highest."""
    few = max(1, len(values) // 4)
    return [
        figure(value)
        for value in (median(values[:few]), median(values[-few:]), min(values), max(values))
    ]


def plot(record: Record, path: Path) -> None:
    """Memory above, seconds of what is always the same below."""
    picture = Figure(figsize=(8, 6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(picture)
    memory, seconds = picture.subplots(2, sharex=True)
    memory.scatter(*zip(*record.after, strict=True), s=6, alpha=0.5, label="after an edit")
    hours = [hour for hour, _ in record.rested]
    memory.plot(
        hours,
        [held.memory for _, held in record.rested],
        color="tab:red",
        marker=".",
        label="at rest, models unloaded",
    )
    memory.set(ylabel="resident memory of the server, MiB", ylim=(0, None))
    for name, took in record.took.items():
        seconds.plot(hours, took, marker=".", label=name)
    seconds.set(xlabel="hours", ylabel="processor seconds", ylim=(0, None))
    for axes in (memory, seconds):
        axes.legend(loc="lower right")
        axes.grid(alpha=0.3)
    canvas.print_png(str(path))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, default=Path("soak.png"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with Server(
            Path(os.environ["COMFYUI_PATH"]), work, work / "output", work / "server.log"
        ) as server:
            write_clips(server.input)
            soak = Soak(server, options.seed)
            soak.run(options.hours)
    print(f"{soak.hours:.2f} hours, {len(soak.record.after)} edits, seed {options.seed}\n")
    report(soak.record)
    plot(soak.record, options.plot)
    print(f"\nplot: {options.plot}")
    return 1 if soak.record.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
