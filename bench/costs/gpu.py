"""What a GPU does with the pack, in one command and under eight minutes.

    python3 run.py bench gpu [--out output/gpu] [--only SECTION ...] [--minutes 8] [--rehearse]

Every section measures one thing and is a table of OUT/gpu.md, and a list of OUT/gpu.json. One that
fails is reported with its error, and the next one runs; one that has no time left is left out. Both
files are written after each section. Published layouts have random weights. Seconds are of the
clock, after a run that is not timed.

--rehearse does the same with narrow layouts and tiny clips, in minutes on a CPU: that every section
runs is all it tells. It is what happens where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfyui_version
import torch

from bench.tools.gpu import editing, room, searching, training
from bench.tools.gpu.sizes import FULL, REHEARSAL, Lines, Sizes, device, forget
from bench.tools.markdown import figure


def machine(sizes: Sizes) -> Lines:
    """What it ran on."""
    about = {"device": str(device()), "Python": platform.python_version()}
    about |= {"torch": torch.__version__, "ComfyUI": comfyui_version.__version__}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(device())
        about |= {"name": properties.name, "GiB": f"{properties.total_memory / 2**30:.0f}"}
    return [{"what": what, "is": found} for what, found in about.items()]


# By name, in the order they run: what is asked for most comes first.
SECTIONS: Mapping[str, Callable[[Sizes], Lines]] = {
    "machine": machine,
    "edit sd15": editing.edit("sd15"),
    "search": searching.search,
    "estimates": room.estimates,
    "halving": room.halving,
    "offload": room.offload,
    "copies": room.copies,
    "trace": editing.trace,
    "length": room.length,
    "edit sdxl": editing.edit("sdxl"),
    "edit sd3": editing.edit("sd3"),
    "training": training.training,
    "compiled": editing.compiled,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("output/gpu"))
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--minutes", type=float, default=8, help="for all sections together")
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    rehearsal = options.rehearse or not torch.cuda.is_available()
    begin, sections = time.monotonic(), {name: SECTIONS[name] for name in options.only}
    with torch.inference_mode():
        found = run(sections, REHEARSAL if rehearsal else FULL, options.minutes * 60, options.out)
    failed = [name for name, part in found.items() if "error" in part]
    told = f"failed or left out: {', '.join(failed)}" if failed else "all of it ran"
    print(f"{options.out}/gpu.md: {told}, {time.monotonic() - begin:.0f} s", flush=True)


def run(
    sections: Mapping[str, Callable[[Sizes], Lines]], sizes: Sizes, seconds: float, out: Path
) -> dict[str, Any]:
    """Runs sections for as long as there is time, and writes the report after each.

    Returns: by section its seconds and its lines, or its error.
    """
    found: dict[str, Any] = {}
    end = time.monotonic() + seconds
    for name, section in sections.items():
        start = time.monotonic()
        try:
            with limited(end - start):
                found[name] = {"lines": section(sizes)}
        except Exception as error:
            # All of it: what never ran on a GPU may fail in any way there.
            told = "".join(traceback.format_exception_only(error)).strip()
            found[name] = {"error": told, "where": traceback.format_exc(limit=-3)}
        found[name]["seconds"] = time.monotonic() - start
        print(f"{name}: {found[name].get('error', 'done')}, {found[name]['seconds']:.0f} s")
        forget()
        write(out, found, rehearsed=sizes is REHEARSAL)
    return found


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in what takes longer. Where the system has no such alarm, it does not."""

    def stop(*_: Any) -> None:
        raise TimeoutError("no time left")

    if seconds <= 0:
        stop()
    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def write(out: Path, found: Mapping[str, Any], rehearsed: bool) -> None:
    """gpu.md and gpu.json."""
    out.mkdir(parents=True, exist_ok=True)
    text = ["# bench gpu", ""]
    text += ["A rehearsal: the figures mean nothing.", ""] if rehearsed else []
    for name, part in found.items():
        section = SECTIONS.get(name)
        about = " ".join((section.__doc__ or "").split()) if section else ""
        text += [f"## {name}, {part['seconds']:.0f} s", "", *([about, ""] if about else [])]
        text += _table(part["lines"]) if "lines" in part else [f"```\n{part['where']}```"]
        text.append("")
    (out / "gpu.md").write_text("\n".join(text))
    (out / "gpu.json").write_text(
        json.dumps({"rehearsal": rehearsed, "sections": found}, indent=1) + "\n"
    )


def _table(lines: Lines) -> list[str]:
    columns = list(dict.fromkeys(column for line in lines for column in line))
    rows = [[_cell(line.get(column, "")) for column in columns] for line in lines]
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return figure(value) if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
