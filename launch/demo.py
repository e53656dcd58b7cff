"""`run.py demo`: a workflow in a real, headless ComfyUI, on the embedded clip or the user's."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from pathlib import Path

from .comfyui.client import Progress, PromptError, Result, run_prompt
from .comfyui.server import Server, ServerError
from .comfyui.workflow import Prompt, WorkflowError, to_prompt
from .cutting import put_clip
from .environment import HOST, ROOT
from .wanted import Wanted, WantedError

OUTPUT = ROOT / "output"
MADE_UP = (
    "The embedded model knows a made-up world alone: stars, balls, boxes and hearts of gold, ice "
    "or marble. Give a --checkpoint for your clip's."
)
CLIP = ROOT / "demo" / "tokenflow_star.mp4"  # the pack itself puts it into the input folder


def run(comfyui: Path, wanted: Wanted, keep: bool = False) -> int:
    """Runs a workflow file and prints what it shows and saves.

    Args:
        comfyui: The folder of the ComfyUI.
        wanted: The file, as the editor saves it or as an API prompt, and what is changed in it.
        keep: Whether the server stays up, and its address is printed, until Ctrl-C.

    Returns:
        The exit code: 0, 1 after an error, 130 after Ctrl-C (0 with `keep`).
    """
    start = time.monotonic()
    try:
        saved = json.loads(wanted.workflow.read_text())
        work, log = HOST / "run", OUTPUT / "server.log"
        work.mkdir(parents=True, exist_ok=True)
        options = wanted.offered(work / "models")
        if wanted.clip:
            (work / "input").mkdir(exist_ok=True)
            wished = wanted.frames or wanted.length(saved)
            count = put_clip(wanted.clip, work / "input" / wanted.clip_name, wished)
            few = f"the first {wished} of " if 0 < wished < count else ""
            if wanted.made_up:
                print(MADE_UP)
            print(f"editing {few}{count or 'the'} frames of {wanted.clip.name}", flush=True)
        print("starting ComfyUI ...", flush=True)
        with Server(comfyui, work, OUTPUT, log, options=options) as server:
            # Its name in workflows that were saved before 0.2.
            shutil.copy(CLIP, server.input / "clip.mp4")
            device = server.get("/system_stats")["devices"][0]["name"]
            ready = f"ready on {device} after {time.monotonic() - start:.0f} s"
            print(f"{ready}; running {wanted.workflow.name}", flush=True)
            info = server.get("/object_info")
            prompt = wanted.filled(to_prompt(saved, info), info)
            # What is changed the editor opens from the prompt, which is saved in any case.
            embedded = saved if "nodes" in saved and not wanted.own else None
            report(run_prompt(server.address, prompt, Progress(prompt), embedded), prompt)
            print(f"total {time.monotonic() - start:.0f} s", flush=True)
            if keep:
                opened = "a saved video" if wanted.own else wanted.workflow
                print(
                    f"ComfyUI stays at {server.address} until Ctrl-C. Open {opened} there.",
                    flush=True,
                )
                threading.Event().wait()
    except (OSError, ValueError, WantedError, WorkflowError, PromptError, ServerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped")
        return 0 if keep else 130
    return 0


def report(result: Result, prompt: Prompt) -> None:
    """Prints every text output under its node's title, then the files.

    Args:
        result: What the prompt left behind.
        prompt: The prompt, for the titles.
    """
    for node, texts in result.texts().items():
        title = prompt[node]["_meta"]["title"] if node in prompt else node
        print(f"\n{title}", *texts, sep="\n")
    print("\nfiles", *(f"{OUTPUT.relative_to(ROOT)}/{name}" for name in result.files()), sep="\n  ")
