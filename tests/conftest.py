"""What all tests share: where ComfyUI is, and one running server for those that ask for it.

Nothing here imports ComfyUI: tests/ops runs without it.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".host" / "ComfyUI")
LOOPBACK = ROOT / "tests" / "loopback"
# What takes two minutes and finds most mistakes; all else is marked slow.
QUICK = (
    "tests/ops",
    "tests/host/golden",
    "tests/host/models/test_families.py",
    "tests/host/running/test_internals.py",
    "tests/host/looking/test_help.py",
)
# Files that take minutes, longest first: a process that comes to one of them at the end would run
# on alone.
LONGEST = (
    "tests/host/inputs/test_fuzz.py",
    "tests/cluster/test_sharded.py",
    "tests/cluster/test_command.py",
    "tests/host/whole/test_workflows.py",
    "tests/host/faults/test_interrupts.py",
    "tests/host/looking/test_bench.py",
    "tests/cluster/test_batch.py",
    "tests/host/whole/test_quickstart.py",
    "tests/host/faults/test_killed_server.py",
    "tests/host/looking/test_paper.py",
    "tests/cluster/workers/test_checkpoints.py",
    "tests/launch/test_wanted.py",
)

# Nothing that the tests run may use the network, this process, its workers and all servers alike.
if "NETWORK_LOG" not in os.environ:
    os.environ["NETWORK_LOG"] = os.path.join(tempfile.mkdtemp(), "network.log")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(LOOPBACK), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
runpy.run_path(str(LOOPBACK / "sitecustomize.py"))
# Dozens of servers and workers import all of torch, which takes three times as long without
# bytecode. Where none is to lie beside the sources it lies in a folder of its own.
if sys.dont_write_bytecode:
    sys.dont_write_bytecode, sys.pycache_prefix = False, str(ROOT / ".host" / "bytecode")
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": sys.pycache_prefix}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is not quick, and puts first what takes longest."""
    for item in items:
        if not _place(item).startswith(QUICK):
            item.add_marker(pytest.mark.slow)
    order = {place: number for number, place in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(_place(item), len(order)))


def _place(item: pytest.Item) -> str:
    return item.path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="session", autouse=True)
def _network() -> Iterator[None]:
    """Fails at the end if anything tried to."""
    yield
    log = Path(os.environ["NETWORK_LOG"])
    assert not log.exists(), log.read_text()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real ComfyUI server with the pack linked in: `launch.comfyui.server.Server`."""
    from launch.comfyui.server import Server
    from launch.environment import link_pack

    link_pack(COMFYUI)
    folder = tmp_path_factory.mktemp("server")
    more = folder / "more.yaml"
    more.write_text(f"tests:\n    custom_nodes: {ROOT / 'tests' / 'server_nodes'}\n")
    options = ("--extra-model-paths-config", str(more))
    with Server(
        COMFYUI, folder, folder / "output", folder / "server.log", options=options
    ) as running:
        yield running


WRITE_SD1 = """
import sys
from pathlib import Path
sys.path[:0] = [".", "tests/host"]
from launch.comfyui.inprocess import import_comfyui
import_comfyui(Path(sys.argv[1]))
from checkpoint_files import write_sd1
write_sd1(Path(sys.argv[2]))
"""


@pytest.fixture(scope="session")
def tiny_sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint that the host's loader takes, written by another process: ComfyUI is not
    in this one.
    """
    path = tmp_path_factory.mktemp("checkpoint") / "sd1.safetensors"
    subprocess.run([sys.executable, "-c", WRITE_SD1, COMFYUI, path], cwd=ROOT, check=True)
    return path


@pytest.fixture(scope="session")
def queue(server: Any) -> Callable[..., Any]:
    """Runs an API prompt on the server: `queue(prompt) -> launch.comfyui.client.Result`; raises
    `launch.comfyui.client.PromptError`.
    """
    from launch.comfyui.client import run_prompt

    return lambda prompt, *rest: run_prompt(server.address, prompt, *rest)


@pytest.fixture
def stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str | None], None]]:
    """`stand_in(module, code)`: what is imported as a library from now on, for this test.

    None: it is not installed.
    """
    folder = tmp_path / "libraries"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    kept: dict[str, Any] = {}

    def forget(module: str) -> dict[str, Any]:
        for known in [name for name in sys.modules if name.endswith("tokenflow_ops.libraries")]:
            sys.modules[known]._found.cache_clear()
        return {
            name: sys.modules.pop(name)
            for name in list(sys.modules)
            if name.split(".")[0] == module
        }

    def put(module: str, code: str | None) -> None:
        kept[module] = forget(module)
        if code is None:
            monkeypatch.setitem(sys.modules, module, None)
        else:
            (folder / f"{module}.py").write_text(code)

    yield put
    monkeypatch.undo()
    for module, before in kept.items():
        forget(module)
        sys.modules.update(before)
