"""Command line of `run.py`: makes the environment, then hands over to `python -m launch` inside it."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from .environment import ROOT, SetupError, prepare


def parser() -> argparse.ArgumentParser:
    """The commands with their options; what `test` does not know goes to pytest, what `bench` does not know to the benchmark."""
    top = argparse.ArgumentParser(prog="run.py", description="TokenFlow for ComfyUI: show it, test it.")
    commands = top.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="edit the embedded clip in a real ComfyUI and show the result in output/")
    demo.add_argument("--keep", action="store_true", help="leave the server running afterwards, to open the graph in a browser")
    demo.add_argument("--workflow", type=Path, default=ROOT / "workflows" / "quickstart.json", help="another workflow file")
    bench = commands.add_parser("bench", help="a benchmark of bench/; further arguments go to it", add_help=False)
    bench.add_argument("name", choices=sorted(path.stem for path in (ROOT / "bench").glob("[!_]*.py")))
    commands.add_parser("test", help="run the linter, the type checker and all tests; further arguments go to pytest", add_help=False)
    return top


def main(argv: list[str]) -> int:
    """Runs one command and returns its exit code."""
    options, rest = parser().parse_known_args(argv)
    if rest and options.command == "demo":
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        host = prepare(development=options.command != "demo")
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.command == "demo":
        rest = ["--workflow", str(options.workflow.absolute()), *(["--keep"] if options.keep else [])]
    if options.command == "bench":
        rest = [options.name, *rest]
    command = [str(host.python), "-m", "launch", options.command, *rest]
    environment = {**os.environ, "COMFYUI_PATH": str(host.comfyui)}
    os.chdir(ROOT)
    if os.name == "posix":
        sys.stdout.flush()
        os.execve(host.python, command, environment)
    return subprocess.call(command, env=environment)  # elsewhere exec would return to the prompt at once
