"""What each command asks of the Python that runs ComfyUI, beside ComfyUI's own packages.

Nothing is installed into it.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACK = "the pack's packages"
REQUIREMENTS = {
    PACK: ROOT / "requirements.txt",
    "development packages": ROOT / "requirements-dev.txt",
    "the cluster's packages": ROOT / "requirements-cluster.txt",
}
# Nothing asks for them: without FAISS the search runs in torch.
OPTIONAL = ("faiss-gpu", "faiss-cpu")
FIGURES = ("kornia", "opencv-python-headless")
ALL = "*"
# By the words of a command that ask for it; a command needs what all of its words do.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "demo": (*FIGURES, "matplotlib"),
    "test": (ALL,),
    "batch": ("ray",),
    "bench choices": FIGURES,
    "bench confidence": FIGURES,
    "bench cost": (),
    "bench cuts": (),
    "bench film": (*FIGURES, "matplotlib"),
    "bench fit": (),
    "bench gpu": (),
    "bench graph": (*FIGURES, "matplotlib"),
    "bench inversion": FIGURES,
    "bench keyframes": FIGURES,
    "bench layout": FIGURES,
    "bench length": (),
    "bench masks": FIGURES,
    "bench paper": (*FIGURES, "matplotlib"),
    "bench paper --workers": ("ray",),
    "bench search": (),
    "bench shards": (),
    "bench shards --measure": ("ray",),
    "bench soak": (*FIGURES, "matplotlib"),
    "bench speed": (),
    "bench table": (*FIGURES, "matplotlib"),
    "bench transformers": (),
    "bench truth": (*FIGURES, "matplotlib"),
    "bench windows": FIGURES,
}
# Of these a Python that runs ComfyUI lacks none; the last one reads requirements.
HOSTS = ("torch", "transformers", "aiohttp", "packaging")


class NeedsError(RuntimeError):
    """A Python lacks what a command needs.

    The message says how to name another one, and how to give it what it lacks.
    """


def needed(words: Iterable[str]) -> dict[str, list[str]]:
    """Finds {one of REQUIREMENTS: those of its lines that a command needs}.

    `words` are the command's name and arguments.
    """
    command, *arguments = words
    given = {command, *(word.partition("=")[0] for word in arguments)}
    asking = [key for key in NEEDS if key.split()[0] == command and given.issuperset(key.split())]
    names = {name for key in asking for name in NEEDS[key]}
    chosen = {
        what: [
            line
            for name, line in requirements(path.read_text())
            if name in names or (ALL in names and name not in OPTIONAL)
        ]
        for what, path in REQUIREMENTS.items()
    }
    return {what: lines for what, lines in chosen.items() if lines}


def requirements(text: str) -> list[tuple[str, str]]:
    """Reads (name, line without its comment) of the packages that a requirements file lists."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return [(re.split(r"[\s;<>=!~\[]", line)[0], line) for line in lines if line]


def runs_comfyui(python: Path) -> bool:
    """Tells whether a Python has what every ComfyUI needs."""
    question = json.dumps({"hosts": HOSTS, "lines": []})
    answer = subprocess.run(
        [python, str(ROOT / "launch" / "probe.py")], input=question, capture_output=True, text=True
    )
    return not answer.returncode and not json.loads(answer.stdout)["hosts"]


def require(python: Path, origin: str, lines: Iterable[str]) -> None:
    """Checks that a Python runs ComfyUI and has these packages.

    Args:
        python: The executable.
        origin: How it came to be this one, in words.
        lines: What is required, as lines of a requirements file.

    Raises:
        NeedsError: If it does not run, is not ComfyUI's, is older than 3.11 or lacks a package.
    """
    question = json.dumps({"hosts": HOSTS, "lines": list(lines)})
    answer = subprocess.run(
        [python, str(ROOT / "launch" / "probe.py")], input=question, capture_output=True, text=True
    )
    taken = f"{python} ({origin})"
    if answer.returncode:
        raise NeedsError(f"{taken} does not run: {answer.stderr.strip()[-500:]}\n{ANOTHER}")
    found = json.loads(answer.stdout)
    if found["hosts"]:
        lacks = ", ".join(found["hosts"])
        raise NeedsError(f"{taken} is not the Python of a ComfyUI: it lacks {lacks}.\n{ANOTHER}")
    if found["old"]:
        raise NeedsError(
            f"{taken} is Python {found['old']}; the commands need 3.11 or newer.\n{ANOTHER}"
        )
    if found["lines"]:
        install = shlex.join([str(python), "-m", "pip", "install", *found["lines"]])
        raise NeedsError(
            f"{taken} lacks {', '.join(found['lines'])}.\n{ANOTHER}\n"
            f"If it is this one, install what it lacks:\n    {install}"
        )


ANOTHER = (
    "If another Python runs your ComfyUI, name it: "
    "COMFYUI_PYTHON=/path/to/python before the command, beside COMFYUI_PATH."
)
