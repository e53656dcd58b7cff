"""Whether a clip on several hosts pays.

    python3 run.py bench shards [--model sd15 --frames 400 --tflops 30 --start 60] [--measure 24]

By arithmetic, as `bench cost` counts. First table: of an edit's operations, what the busiest host
is left with; what the first one sends and another one receives. Second: from how many frames on it
takes less time than one host, by the link between hosts; `--tflops` is what a host computes,
`--start` the seconds until the others are ready (ComfyUI and the model), a call costs `--latency`
milliseconds beside.

`--measure` runs so many frames of the embedded clip, in 6 steps, on one ComfyUI and on two that
share it, a core each, on a Ray of this machine: seconds of every stage, and what was to be expected
of two by those of one. It wants a machine with two idle cores.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenflow_pack.nodes.inversion import EXTRAPOLATED
from tokenflow_pack.nodes.presets import BALANCED, PRESETS

from bench.costs.cost import (
    FULL,
    HALF,
    SIZES,
    Edit,
    count,
    left_by_a_keyframe,
    made_unet,
    sampling_of,
)
from bench.tools.costs.steps import asked, levels_of
from bench.tools.markdown import figure, table
from bench.tools.mixed import INTERVAL, Clip, clip_name, write_clips
from bench.tools.models import MODELS
from cluster.jobs import make_jobs
from cluster.jobs.table import read_table
from cluster.local import connected
from cluster.manifest import opened

NODES = {
    "inversion": "TokenFlowInvertVideo",
    "features": "TokenFlowExtractFeatures",
    "matches": "TokenFlowBuildCorrespondences",
    "sampling": "TokenFlowSampler",
}
HOSTS, LINKS = (2, 4, 8), (1, 10, 100)  # links in Gbit/s


@dataclass(frozen=True)
class Shared:
    """An edit on several hosts.

    tokens: numbers that a keyframe leaves for the frames, one prompt.
    """

    edit: Edit
    hosts: int
    tokens: int

    @property
    def work(self) -> dict[str, float]:
        """Operations one after the other.

        Keyframes are the first host's, and the others wait for what they leave.
        """
        stages, hosts = self.edit.stages(), self.hosts
        frames = self.edit.of_frames(PRESETS[BALANCED])
        sampling = stages["sampling with Plug-and-Play"]
        return {
            "inversion": stages["inversion"] / hosts,
            "features": stages["features"] / hosts,
            "matches": stages["matches"],
            "sampling": sampling - frames + frames / hosts,
        }

    @property
    def calls(self) -> int:
        """Times that hosts wait for each other."""
        return asked(self.edit.steps, EXTRAPOLATED) + 2 + 2 * self.edit.steps

    @property
    def sent(self) -> float:
        """Bytes that the first host sends to all others together: keyframes' tokens of the prompt
        and all that it has denoised, of both prompts.
        """
        edit, steps = self.edit, self.edit.steps_of(PRESETS[BALANCED])
        latents = 2 * edit.latents * FULL
        keyframes = edit.keyframes * (
            steps.keyframes * latents + steps.between * self.tokens * HALF
        )
        return (self.hosts - 1) * (keyframes + self._exchanged / self.hosts)

    @property
    def received(self) -> float:
        """Bytes that another host receives from the first one and from the rest."""
        return self.sent / (self.hosts - 1) + self._exchanged * (self.hosts - 2) / self.hosts

    @property
    def _exchanged(self) -> float:
        """Bytes of what each host makes of its own frames for all: the denoised ones of inversion
        and edit, and features.
        """
        edit, steps = self.edit, self.edit.steps_of(PRESETS[BALANCED])
        features = (
            sum(rows * width for rows, width in dict(edit.parts.tokens.values()).items()) * HALF
        )
        edited = steps.between * (edit.frames - edit.keyframes) + steps.again * edit.frames
        inverted = edit.frames * asked(edit.steps, EXTRAPOLATED)
        return edit.latents * FULL * (inverted + 2 * edited) + edit.frames * features

    def seconds(self, rate: float, link: float, latency: float) -> float:
        """rate: operations a second. link: bytes a second. latency: seconds of a call.

        Nothing is sent while something is computed.
        """
        return (
            sum(self.work.values()) / rate
            + max(self.sent, self.received) / link
            + self.calls * latency
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="sd15")
    parser.add_argument("--size", type=int, help="pixels")
    for name, default in (("frames", 400), ("steps", 50), ("interval", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--measure", type=int, help="frames")
    for name, value in (("tflops", 30.0), ("start", 60.0), ("latency", 10.0)):
        parser.add_argument(f"--{name}", type=float, default=value)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, steps=6)
        return
    size = options.size or SIZES[options.model]
    unet, side = made_unet(options.model), size // (4 if options.model == "embedded" else 8)
    edit = Edit(
        options.frames,
        options.interval,
        count(unet, side),
        unet.in_channels * side**2,
        levels_of(sampling_of(options.model), options.steps),
    )
    left = left_by_a_keyframe(unet, edit)
    schedule = f"{edit.frames} frames, {edit.steps} steps, interval {edit.interval}"
    print(f"\n{options.model}, {size} x {size} pixels, {schedule}\n")
    report(edit, left, options.tflops * 1e12, options.start, options.latency / 1000)


def measure(frames: int, steps: int) -> None:
    """Measures one host and two, each with a clip that they have not seen.

    Before it comes one for which everything is loaded.
    """
    unet = made_unet("embedded")
    side = SIZES["embedded"] // 4
    latents = unet.in_channels * side**2
    levels = levels_of(sampling_of("embedded"), steps)
    edit = Edit(frames, INTERVAL, count(unet, side), latents, levels)
    with tempfile.TemporaryDirectory() as folder:
        one, two = (job_figures(Path(folder), edit, share) for share in (1, 2))
    shared = Shared(edit, 2, left_by_a_keyframe(unet, edit))
    work, stages = shared.work, edit.stages()
    stages["sampling"] = stages["sampling with Plug-and-Play"]
    expected = {
        kind: one["seconds_by_node_type"][kind] * work[stage] / stages[stage]
        for stage, kind in NODES.items()
    }
    columns = one["seconds_by_node_type"], expected, two["seconds_by_node_type"]
    rows = [
        [stage, *(figure(seconds[kind]) for seconds in columns)] for stage, kind in NODES.items()
    ]
    rows.append(
        ["edit", *(figure(sum(seconds[kind] for kind in NODES.values())) for seconds in columns)]
    )
    print(f"\nembedded model, {frames} frames, {steps} steps, interval {INTERVAL}, seconds\n")
    table(["stage", "one host", "two, expected", "two"], rows)
    sent = {host: found["sent"] / 2**20 for host, found in two["shared"].items()}
    by_each = f"{sent['0']:.0f} MiB by the first host, {sent['1']:.0f} MiB by the other"
    print(f"\nsent: {by_each}, in {two['shared']['0']['calls']} calls")


def job_figures(folder: Path, edit: Edit, share: int) -> dict[str, Any]:
    """What the manifest says of a job on so many hosts."""
    jobs = folder / "jobs.csv"
    short = min(5, edit.frames - 1)
    jobs.write_text(f"name,clip\nwarm,{clip_name(short)}\nmeasured,{clip_name(edit.frames)}\n")
    write_clips(folder, (short, edit.frames))
    clip = Clip.of(edit.frames)
    workflow = clip.save_latents(clip.edit(clip.match(clip.invert(edit.steps)(0), 0), "gold", 0))
    with connected(None, num_cpus=2, num_gpus=0, include_dashboard=False):
        from cluster.batch import Batch
        from cluster.progress import Progress
        from cluster.workers.pool import Pool

        with closing(
            Pool.start(Path(os.environ["COMFYUI_PATH"]), workers=1, cores=1, share=share)
        ) as pool:
            made = make_jobs(jobs, read_table(jobs), workflow, pool.object_info(), folder)
            with opened(folder / f"{share} hosts") as results:
                if not Batch(pool, results, Progress(sys.stderr)).run(made):
                    raise SystemExit("a job has failed")
                found: dict[str, Any] = results.records["measured"]["figures"]
    return found


def report(edit: Edit, left: int, rate: float, start: float, latency: float) -> None:
    """Prints the tables."""
    stages = edit.stages()
    alone = sum(
        stages[name] for name in ("inversion", "features", "matches", "sampling with Plug-and-Play")
    )
    rows = []
    for hosts in HOSTS:
        shared = Shared(edit, hosts, left)
        shares = [
            figure(part / alone) for part in (sum(shared.work.values()), *shared.work.values())
        ]
        rows.append(
            [str(hosts), *shares, figure(shared.sent / 2**30), figure(shared.received / 2**30)]
        )
    table(
        [
            "hosts",
            "edit",
            "inversion",
            "features",
            "matches",
            "sampling",
            "first sends GiB",
            "another receives GiB",
        ],
        rows,
    )
    print()
    rows = []
    for hosts in HOSTS:
        shared = Shared(edit, hosts, left)
        gains = [
            (alone / rate - shared.seconds(rate, link * 1e9 / 8, 0)) / edit.frames for link in LINKS
        ]
        fixed = start + shared.calls * latency
        rows.append(
            [str(hosts), *(str(math.ceil(fixed / gain)) if gain > 0 else "never" for gain in gains)]
        )
    table(["hosts", *(f"{link} Gbit/s" for link in LINKS)], rows)


if __name__ == "__main__":
    main()
