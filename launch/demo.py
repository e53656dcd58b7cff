"""`run.py demo`: a workflow on the embedded clip in a real, headless ComfyUI."""

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
from .environment import HOST, ROOT

OUTPUT = ROOT / "output"
CLIP = ROOT / "demo" / "tokenflow_star.mp4"  # the pack itself puts it into the input folder


def run(comfyui: Path, workflow: Path, keep: bool = False) -> int:
    """Runs a workflow file and prints what it shows and saves.

    Args:
        comfyui: The folder of the ComfyUI.
        workflow: The file, as the editor saves it or as an API prompt.
        keep: Whether the server stays up, and its address is printed, until Ctrl-C.

    Returns:
        The exit code: 0, 1 after an error, 130 after Ctrl-C (0 with `keep`).
    """
    start = time.monotonic()
    try:
        saved = json.loads(workflow.read_text())
        print("starting ComfyUI ...", flush=True)
        with Server(comfyui, HOST / "run", OUTPUT, OUTPUT / "server.log") as server:
            # Its name in workflows that were saved before 0.2.
            shutil.copy(CLIP, server.input / "clip.mp4")
            device = server.get("/system_stats")["devices"][0]["name"]
            ready = f"ready on {device} after {time.monotonic() - start:.0f} s"
            print(f"{ready}; running {workflow.name}", flush=True)
            prompt = to_prompt(saved, server.get("/object_info"))
            embedded = saved if "nodes" in saved else None
            report(run_prompt(server.address, prompt, Progress(prompt), embedded), prompt)
            print(f"total {time.monotonic() - start:.0f} s", flush=True)
            if keep:
                print(
                    f"ComfyUI stays at {server.address} until Ctrl-C. Open {workflow} there.",
                    flush=True,
                )
                threading.Event().wait()
    except (OSError, ValueError, WorkflowError, PromptError, ServerError) as error:
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
