"""Command line of `run.py`.

Makes the environment, then hands over to `python -m launch` or `python -m cluster` in it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from .environment import COMFYUI, ROOT, SetupError, prepare
from .wanted import Wanted, WantedError

ENVIRONMENT = """\
environment variables:
  COMFYUI_PATH    the folder of a ComfyUI of yours, to run the commands with
                  instead of one of their own in .host/
  COMFYUI_PYTHON  the Python that runs it; if not given that of a venv or .venv in its folder,
                  or else the one that runs this command
                  (nothing is installed into it: what it lacks for a command is named).
                  A checkout that has none gets an environment under .host/checkouts/
"""


def parser() -> argparse.ArgumentParser:
    """Makes the parser of the commands with their options.

    What `test` does not know goes to pytest, what `bench` does not know to the benchmark.
    """
    top = argparse.ArgumentParser(
        prog="run.py",
        description="TokenFlow for ComfyUI: show it, test it, run many jobs.",
        epilog=ENVIRONMENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True)
    _add_demo(commands)
    bench = commands.add_parser(
        "bench", help="a benchmark of bench/; further arguments go to it", add_help=False
    )
    bench.add_argument("name", choices=sorted(benchmarks()))
    batch = commands.add_parser(
        "batch", help="run a workflow with every row of a table, on Ray: docs/cluster.md"
    )
    batch.add_argument(
        "workflow", type=Path, help="a workflow saved by the editor, or an API prompt"
    )
    batch.add_argument("jobs", type=Path, help="a table of jobs, .csv or .jsonl")
    batch.add_argument(
        "--output",
        type=Path,
        default=ROOT / "output" / "batch",
        help="where results and the manifest go (%(default)s)",
    )
    batch.add_argument(
        "--address",
        help="a Ray cluster that runs, as ray.init takes it; without one Ray "
        "is started on this machine",
    )
    batch.add_argument(
        "--workers",
        type=positive,
        help="how many ComfyUIs; one per GPU, or one per --cores where there is none",
    )
    batch.add_argument(
        "--cores", type=positive, help="CPU cores of a worker (4, or all where a machine has fewer)"
    )
    batch.add_argument(
        "--share",
        type=positive,
        default=1,
        help="how many ComfyUIs share every clip, for long ones (%(default)s)",
    )
    batch.add_argument(
        "--retries",
        type=natural,
        default=2,
        help="how often a job that failed is tried again (%(default)s)",
    )
    commands.add_parser(
        "test",
        help="run the linter, the type checker and all tests; further arguments go to pytest",
        add_help=False,
    )
    return top


def _add_demo(commands: Any) -> None:
    """Adds `demo` to the commands."""
    demo = commands.add_parser(
        "demo", help="edit a clip in a real ComfyUI, the embedded one or yours; results in output/"
    )
    demo.add_argument("--clip", type=Path, help="a video of yours; needs both prompts")
    demo.add_argument("--prompt", help="what the edit is to show")
    demo.add_argument("--source-prompt", help="what the clip shows")
    demo.add_argument(
        "--checkpoint",
        type=Path,
        help="a checkpoint of yours: a file, or its name in ComfyUI's models/checkpoints. "
        "Without one the embedded model of a made-up world edits",
    )
    demo.add_argument(
        "--frames", type=positive, help="how many of the clip's first frames are edited"
    )
    demo.add_argument(
        "--keep",
        action="store_true",
        help="leave the server running afterwards, to open the graph in a browser",
    )
    demo.add_argument(
        "--workflow",
        type=Path,
        help="another workflow file; without one the quickstart, or the template that fits the "
        "checkpoint",
    )


def benchmarks() -> dict[str, str]:
    """Finds the benchmarks by name, each with its module below bench/."""
    files = (path for path in (ROOT / "bench").glob("*/*.py") if path.parent.name != "tools")
    return {path.stem: f"bench.{path.parent.name}.{path.stem}" for path in files}


def own_folder() -> Path:
    """Returns the folder of the ComfyUI that the commands run, which need not be there yet."""
    return Path(os.environ.get("COMFYUI_PATH") or COMFYUI).expanduser().absolute()


def natural(text: str, least: int = 0) -> int:
    """Reads a whole number from the command line.

    Args:
        text: What was typed.
        least: The least number that is taken.

    Returns:
        The number.

    Raises:
        ValueError: For anything else than a whole number, or one below `least`.
    """
    if int(text) < least:
        raise ValueError(text)
    return int(text)


def positive(text: str) -> int:
    """Reads a number of workers or cores, at least 1. Raises ValueError."""
    return natural(text, 1)


def main(argv: list[str]) -> int:
    """Runs one command and returns its exit code."""
    options, rest = parser().parse_known_args(argv)
    if rest and options.command in ("demo", "batch"):
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        wanted = Wanted.read(options, own_folder()) if options.command == "demo" else None
        host = prepare(
            [options.command, *([options.name] if options.command == "bench" else []), *rest]
        )
    except (SetupError, WantedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if wanted:
        rest = [*wanted.words(), *(["--keep"] if options.keep else [])]
    if options.command == "bench":
        rest = [options.name, *rest]
    if options.command == "batch":
        rest = [
            str(options.workflow.absolute()),
            str(options.jobs.absolute()),
            "--output",
            str(options.output.absolute()),
        ]
        given = {
            name: getattr(options, name)
            for name in ("address", "workers", "cores", "share", "retries")
        }
        rest += [
            word
            for name, value in given.items()
            if value is not None
            for word in (f"--{name}", str(value))
        ]
    module = "cluster" if options.command == "batch" else "launch"
    command = [str(host.python), "-m", module, options.command, *rest]
    environment = {**os.environ, "COMFYUI_PATH": str(host.comfyui)}
    os.chdir(ROOT)
    if os.name == "posix":
        sys.stdout.flush()
        os.execve(host.python, command, environment)
    # Elsewhere exec would return to the prompt at once.
    return subprocess.call(command, env=environment)
