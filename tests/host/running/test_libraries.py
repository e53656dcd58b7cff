"""A library that is missing or broken takes away what needs it,
says how to mend it, and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenflow_pack.host.files.timings import StoredTimings
from tokenflow_pack.host.measuring.optical_flow import RAFT_FILES
from tokenflow_pack.host.runs.model_call import ModelCall
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.nodes import correspondences
from tokenflow_pack.nodes.looking import metrics
from tokenflow_pack.tokenflow_ops import libraries

from launch.comfyui.client import PromptError, run_prompt
from launch.comfyui.server import Server
from launch.environment import link_pack

from ...cluster import made
from ...conftest import COMFYUI, ROOT
from ..helpers import call, extracted
from ..inputs.bad_input import (
    APPLY,
    BUILD,
    CARRY,
    CHECK,
    COMPARE,
    CORRESPONDENCES,
    FIND_MASK,
    GOOD,
    METRICS,
    NODES,
    SAMPLER,
    frames,
    run,
    told,
)
from ..patches.test_citizenship import loaded

# What an import may come to: the library's code, None where there is none,
# and what the error has to say.
BREAKS: dict[str, tuple[str | None, str]] = {
    "not installed": (None, "is not installed"),
    "an attribute of another library": (
        "import numpy; numpy.no_name",
        "AttributeError: module 'numpy' has no attribute 'no_name'",
    ),
    "a file of the system": (
        "raise OSError('libgomp.so.1: cannot open shared object file')",
        r"OSError: libgomp\.so\.1: cannot open",
    ),
    "an initialisation": (
        "raise RuntimeError('no CUDA here,\\ntry again')",
        "RuntimeError: no CUDA here, try again",
    ),
    "a package that it needs": (
        "import no_such_dependency",
        "ModuleNotFoundError: No module named 'no_such_dependency'",
    ),
    "its syntax": ("def", "SyntaxError: "),
    "nothing in it": ("", "has no attribute|No module named"),
}
# Without torchvision the host itself does not start.
OPTIONAL = ("faiss", "cv2", "kornia", "matplotlib")
RERENDER = {"consistency": "rerender", "frames": frames()}
StandIn = Callable[[str, str | None], None]


@pytest.fixture
def timings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoredTimings:
    """What Build NN Correspondences has measured: nothing."""
    found = StoredTimings.read(tmp_path / "timings.json")
    monkeypatch.setattr(correspondences, "search_timings", lambda: found)
    return found


def test_the_table_holds_what_can_be_done_without() -> None:
    assert {*OPTIONAL, "torchvision"} == set(libraries.LIBRARIES)


@pytest.mark.parametrize("broken", BREAKS)
def test_the_pack_loads_whatever_its_libraries_do(broken: str, stand_in: StandIn) -> None:
    for module in OPTIONAL:
        stand_in(module, BREAKS[broken][0])
    with loaded(ROOT) as pack:
        nodes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
        assert {node.define_schema().display_name for node in nodes} == set(NODES)


def matched_by(backend: str) -> str:
    """What Build NN Correspondences says of its search."""
    with torch.inference_mode():
        (text,) = NODES[BUILD].execute(extracted(2, (8, 8)), backend=backend).ui.as_dict()["text"]
    return str(text).partition("matched by ")[2]


@pytest.mark.parametrize("broken", BREAKS)
def test_without_faiss_auto_takes_torch_and_says_why_and_faiss_is_an_error(
    broken: str, stand_in: StandIn, timings: StoredTimings
) -> None:
    code, said = BREAKS[broken]
    stand_in("faiss", code)
    assert re.fullmatch(f"torch, FAISS .*({said}).*", matched_by("auto"))
    assert not timings
    assert matched_by("torch") == "torch"
    with pytest.raises(NodeError, match=said) as raised:
        run(BUILD, backend="faiss")
    assert (raised.value.node, raised.value.socket) == (BUILD, "backend")
    assert re.search(r"pip install .*faiss.*; or choose auto or torch\.", raised.value.remedy)
    told(raised.value)


FAISS = """
__version__ = "1.0"
class IndexFlatIP:
    def __init__(self, width): pass
    def add(self, rows): pass
    def search(self, rows, count):
"""


@pytest.mark.parametrize("error", ["AttributeError", "OSError", "RuntimeError", "TypeError"])
def test_a_faiss_that_fails_when_it_searches_is_one_that_is_broken(
    error: str, stand_in: StandIn, timings: StoredTimings
) -> None:
    stand_in("faiss", f"{FAISS}        raise {error}('no kernel')")
    assert matched_by("auto") == f"torch, FAISS is installed and does not work ({error}: no kernel)"
    assert not timings
    with pytest.raises(NodeError, match=rf"does not work \({error}: no kernel\)") as raised:
        run(BUILD, backend="faiss")
    assert raised.value.socket == "backend"


# What each library takes away: the nodes' calls, and the input that the error names.
TAKEN: dict[str, list[tuple[str, str | None, dict[str, Any]]]] = {
    "cv2": [
        (METRICS, "flow", {}),
        (FIND_MASK, None, {}),
        (CARRY, None, {}),
        (SAMPLER, "consistency", RERENDER),
        (APPLY, "consistency", RERENDER),
    ],
    "kornia": [
        (METRICS, None, {}),
        (CORRESPONDENCES, None, {}),
        (SAMPLER, "consistency", RERENDER),
        (APPLY, "consistency", RERENDER),
    ],
    "matplotlib": [
        (METRICS, None, {}),
        (COMPARE, None, {}),
        (CHECK, None, {}),
        (CORRESPONDENCES, None, {}),
    ],
}


@pytest.mark.parametrize("broken", ["not installed", "a file of the system", "nothing in it"])
@pytest.mark.parametrize("module", TAKEN)
def test_what_needs_a_library_says_so_before_it_begins(
    module: str, broken: str, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [(node, socket, {**GOOD[node](), **changes}) for node, socket, changes in TAKEN[module]]
    code, said = BREAKS[broken]
    stand_in(module, code)
    monkeypatch.setattr(ModelCall, "run", None)  # no model is called
    name, package = libraries.LIBRARIES[module].name, libraries.LIBRARIES[module].package
    for node, socket, inputs in good:
        with pytest.raises(NodeError, match=f"{name} .*({said})") as raised:
            call(NODES[node].execute, **inputs)
        assert (raised.value.node, raised.value.socket) == (node, socket)
        assert raised.value.remedy.startswith("In ComfyUI's environment: pip install ")
        assert package.split("-")[0] in raised.value.remedy
        told(raised.value)


def test_all_else_works_without_any_of_them(stand_in: StandIn) -> None:
    for module in OPTIONAL:
        stand_in(module, BREAKS["a file of the system"][0])
    for node in set(NODES) - {
        node for rows in TAKEN.values() for node, _, changes in rows if not changes
    }:
        run(node)


def test_metrics_go_by_raft_where_there_is_no_opencv(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = torch.zeros(2, 64, 64)
    monkeypatch.setattr(
        metrics, "load_flow", lambda node, socket, choice: lambda first, second: still
    )
    stand_in("cv2", None)
    assert run(METRICS, flow=RAFT_FILES[0])[0]


@pytest.mark.parametrize("broken", BREAKS)
def test_raft_without_torchvision_is_another_error_than_wrong_weights(
    broken: str, stand_in: StandIn
) -> None:
    stand_in("torchvision", BREAKS[broken][0])
    with pytest.raises(NodeError, match="torchvision is ") as raised:
        run(METRICS, flow=RAFT_FILES[0])
    assert raised.value.socket == "flow"
    assert raised.value.remedy.endswith("or choose DIS.")
    assert run(METRICS)[0]


def test_a_server_with_all_of_them_broken_edits_and_says_what_is_missing_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that the host's own nodes need: some of these are missing then."""
    folder = tmp_path / "libraries"
    folder.mkdir()
    # A ComfyUI with SAM 3 imports OpenCV when it starts.
    own = {"cv2"} if (COMFYUI / "comfy" / "ldm" / "sam3").is_dir() else set()
    for module in {*OPTIONAL} - own:
        (folder / f"{module}.py").write_text("import numpy; numpy.no_name")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ["PYTHONPATH"]]))
    link_pack(COMFYUI)
    with Server(COMFYUI, tmp_path, tmp_path / "output", tmp_path / "server.log") as server:
        shutil.copy(made.write_clip(tmp_path / "grey.mp4", 80), server.input / made.CLIP)
        prompt = made.prompt()
        prompt["build"]["inputs"]["backend"] = "auto"
        prompt["compare"] = made.node(
            "TokenFlowCompareClips", source=["parts", 0], edited=["parts", 0]
        )
        prompt["look"] = made.node("PreviewImage", images=["compare", 0])
        with pytest.raises(
            PromptError,
            match="Compare Clips: matplotlib is installed and does not work "
            r"\(AttributeError: module 'numpy'",
        ):
            run_prompt(server.address, prompt)
        del prompt["compare"], prompt["look"]
        result = run_prompt(server.address, prompt)
    assert (
        "torch, FAISS is installed and does not work (AttributeError" in result.texts()["build"][0]
    )
    assert list((tmp_path / "output" / "edits").iterdir())
