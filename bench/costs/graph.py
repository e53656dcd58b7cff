"""A long clip through the whole graph of a real server.

    python3 run.py bench graph [--frames 1000] [--steps 6] [--interval 8]

The embedded clip's scene led to and fro until it is so many frames long, written as a video,
loaded, encoded, inverted, matched, edited, decoded and saved by the quickstart's nodes (without its
edit frame by frame) in a headless ComfyUI. Prints what the nodes say, the seconds of the whole, the
most memory that the server held, and what is in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import av

from bench.tools.case import ROOT, demo_clip, make_clip
from bench.tools.models import to_and_fro
from launch.comfyui.client import Progress, run_prompt
from launch.comfyui.server import Server
from launch.comfyui.workflow import to_prompt

CLIP, EDIT = "long.mp4", "tokenflow/long"
SOURCE, INVERT, BUILD, SAVE = (
    "LoadVideo",
    "TokenFlowInvertVideo",
    "TokenFlowBuildCorrespondences",
    "Save the TokenFlow edit",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--interval", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with Server(
            Path(os.environ["COMFYUI_PATH"]), work, work / "output", work / "server.log"
        ) as server:
            scene, times = demo_clip()
            make_clip.write(
                server.input / CLIP,
                scene,
                [times[i] for i in to_and_fro(len(times), options.frames).tolist()],
            )
            prompt = edit_alone(
                to_prompt(
                    json.loads((ROOT / "workflows" / "quickstart.json").read_text()),
                    server.get("/object_info"),
                ),
                options,
            )
            start = time.perf_counter()
            result = run_prompt(server.address, prompt, Progress(prompt))
            seconds = time.perf_counter() - start
            assert server.process is not None
            peak = next(
                line
                for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
                if line.startswith("VmHWM")
            )
        for texts in result.texts().values():
            print(*texts, sep="\n")
        (saved,) = work.glob(f"output/{EDIT}*.mp4")
        with av.open(str(saved)) as file:
            count = sum(1 for _ in file.decode(video=0))
    most = int(peak.split()[1]) / 2**20
    took = f"{seconds:.0f} s, {most:.1f} GiB at most"
    print(f"{options.frames} frames, {options.steps} steps: {took}; {count} frames saved")


def edit_alone(prompt: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """What the node that saves the edit needs of the quickstart, on our clip."""
    titled = {node["_meta"]["title"]: name for name, node in prompt.items()}
    wanted, left = {}, [titled[SAVE]]
    while left:
        name = left.pop()
        wanted[name] = prompt[name]
        left += [value[0] for value in prompt[name]["inputs"].values() if isinstance(value, list)]
    of_class = {node["class_type"]: node["inputs"] for node in wanted.values()}
    of_class[SOURCE]["file"] = CLIP
    of_class[INVERT]["steps"] = options.steps
    of_class[BUILD]["keyframe_interval"] = options.interval
    wanted[titled[SAVE]]["inputs"]["filename_prefix"] = EDIT
    return wanted


if __name__ == "__main__":
    main()
