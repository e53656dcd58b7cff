"""What a command asks a user's Python for: what it uses, and nothing is installed into it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from launch.needs import NEEDS, REQUIREMENTS, NeedsError, needed, require, requirements

from ..conftest import COMFYUI, ROOT

HERE = Path(sys.executable)
DEVELOPMENT, CLUSTER = (ROOT / f"requirements-{name}.txt" for name in ("dev", "cluster"))
LISTED = [name for path in REQUIREMENTS.values() for name, _ in requirements(path.read_text())]


def lines(*words: str) -> list[str]:
    return [line for found in needed(words).values() for line in found]


def test_every_command_says_what_it_needs() -> None:
    benches = {f"bench {path.stem}" for path in (ROOT / "bench").glob("[!t]*/*.py")}
    assert {" ".join(key.split()[:2]) for key in NEEDS} == benches | {"demo", "test", "batch"}
    assert {name for names in NEEDS.values() for name in names} - {"*"} <= set(LISTED)


def test_a_command_asks_for_what_it_uses() -> None:
    assert lines("bench", "cost", "--model", "sdxl") == []
    assert lines("bench", "shards") == []
    assert (
        lines("bench", "shards", "--measure=24")
        == lines("batch", "a.json", "test", "demo")
        == ["ray[default]"]
    )
    assert lines("demo", "--keep") == ["kornia", "matplotlib", "opencv-python-headless"]
    everything = [
        line
        for path in REQUIREMENTS.values()
        for _, line in requirements(path.read_text())
        if not line.startswith("faiss")
    ]
    assert lines("test", "tests/ops") == everything
    assert {"ruff", "ray[default]", "diffusers"} <= set(everything)


def test_requirements_are_read_as_pip_reads_them() -> None:
    text = "# why\ntorch\n\nfaiss-gpu>=1; sys_platform == 'linux'\nuvicorn[x]~=2 # y\n"
    assert requirements(text) == [
        ("torch", "torch"),
        ("faiss-gpu", "faiss-gpu>=1; sys_platform == 'linux'"),
        ("uvicorn", "uvicorn[x]~=2"),
    ]


@pytest.mark.parametrize(
    "met",
    [
        ["pytest-xdist", "PyYAML", "pyyaml", "opencv-python-headless", "ray[default]"],
        ["no-such-package; sys_platform == 'win32'", "no-such-package; python_version < '3'"],
        ["opencv-python-headless; python_version > '3'", "torch>=1,<99"],
    ],
)
def test_packages_are_looked_for_by_their_names_where_their_markers_hold(met: list[str]) -> None:
    require(HERE, "this", met)


@pytest.mark.parametrize(
    "wanted", ["no-such-package>=3", "no_such_package; python_version > '3'", "torch<1"]
)
def test_what_is_missing_is_named_alone_with_another_python_before_the_command(wanted: str) -> None:
    with pytest.raises(NeedsError) as raised:
        require(HERE, "where it is from", ["pytest", wanted])
    taken, another, _, command = str(raised.value).splitlines()
    assert taken == f"{HERE} (where it is from) lacks {wanted}."
    assert "COMFYUI_PYTHON=/path/to/python" in another
    assert command.split(" install ")[0].strip() == f"{HERE} -m pip"
    assert "pytest" not in command


def environment(folder: Path, lacking: set[str]) -> Path:
    """The Python of an environment with all packages of this one but these."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = Path(str(distribution("torch").locate_file("")))
    left_out = {file.parts[0] for name in lacking for file in distribution(name).files or ()}
    (place,) = folder.glob("lib/python*/site-packages")
    for path in packages.iterdir():
        if path.name not in left_out:
            (place / path.name).symlink_to(path)
    return folder / "bin" / "python"


def typed(python: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`run.py` with a ComfyUI of the user's and the Python that runs it."""
    variables = {**os.environ, "COMFYUI_PATH": str(COMFYUI), "COMFYUI_PYTHON": str(python)}
    return subprocess.run(
        [sys.executable, "run.py", *words], cwd=ROOT, env=variables, capture_output=True, text=True
    )


def test_a_python_that_runs_no_comfyui_is_told_so_and_nobody_is_sent_to_install_into_it(
    tmp_path: Path,
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    said = typed(tmp_path / "bin" / "python", "bench", "cost")
    assert said.returncode == 1
    assert (
        "(COMFYUI_PYTHON) is not the Python of a ComfyUI: it lacks torch, "
        "transformers, aiohttp, packaging." in said.stderr
    )
    assert "COMFYUI_PYTHON=/path/to/python" in said.stderr
    assert "install" not in said.stderr
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such interpreter >&2\nexit 3\n")
    broken.chmod(0o755)
    said = typed(broken, "demo")
    assert "(COMFYUI_PYTHON) does not run: no such interpreter" in said.stderr
    assert "COMFYUI_PYTHON=/path/to/python" in said.stderr


def test_commands_run_where_what_they_do_not_use_is_missing(tmp_path: Path) -> None:
    present = {name for name in LISTED if name not in ("safetensors", "faiss-cpu", "faiss-gpu")}
    python = environment(tmp_path, present)
    said = typed(python, "bench", "cost", "--help")
    assert said.returncode == 0, said.stderr
    assert "usage: cost" in said.stdout
    for words, lacking in {
        ("demo",): ["kornia", "matplotlib", "opencv-python-headless"],
        ("bench", "choices"): ["kornia", "opencv-python-headless"],
        ("batch", "a.json", "a.csv"): ["ray[default]"],
        ("test", "tests/ops/test_keyframes.py"): lines("test"),
    }.items():
        said = typed(python, *words)
        assert said.returncode == 1
        assert (
            f"lacks {', '.join(line for line in lacking if line != 'safetensors')}.\n"
            in said.stderr
        )


def test_tests_run_in_a_comfyui_of_the_users() -> None:
    """Where the packages are: those of the tests that run now."""
    require(HERE, "this", lines("test"))


def test_the_environment_variables_are_explained() -> None:
    said = subprocess.run(
        [sys.executable, "run.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {"COMFYUI_PATH", "COMFYUI_PYTHON"} <= set(said.split())
