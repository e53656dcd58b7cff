"""The pack as the registry gives it to users: what pyproject.toml says, and what a release holds,
on a real server.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
import tomllib
from PIL import Image

from launch.comfyui.client import run_prompt
from launch.comfyui.server import Server
from launch.comfyui.workflow import to_prompt
from launch.environment import ROOT
from launch.needs import requirements
from launch.release import copy_files, notes, released_files

from ..conftest import COMFYUI

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TOP = {
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "__init__.py",
    "pyproject.toml",
    "requirements.txt",
}
TOP |= {
    "demo",
    "host",
    "locales",
    "modes",
    "nodes",
    "reporting",
    "subgraphs",
    "tokenflow_ops",
    "web",
    "workflows",
}
# Where the host's loaders look for the files that their inputs name.
MODELS = (
    "checkpoints",
    "clip_vision",
    "controlnet",
    "diffusion_models",
    "loras",
    "text_encoders",
    "vae",
)


def test_a_release_holds_what_users_need_and_nothing_else() -> None:
    files = released_files()
    assert {file.parts[0] for file in files} == TOP
    assert {file.name for file in files if file.parts[0] == "demo"} == {
        "README.md",
        "tokenflow_star.mp4",
        "model.safetensors",
        "transformer.safetensors",
        "few_steps.safetensors",
    }
    for folder in (
        "web",
        "locales",
        "subgraphs",
        "workflows",
        "host",
        "modes",
        "nodes",
        "reporting",
        "tokenflow_ops",
    ):
        here = {
            file.relative_to(ROOT)
            for file in (ROOT / folder).rglob("*")
            if file.is_file() and "__pycache__" not in file.parts
        }
        assert here == {file for file in files if file.parts[0] == folder}


def test_every_pattern_of_comfyignore_is_anchored() -> None:
    """A bare "docs" would take web/docs along."""
    lines = [
        line
        for line in (ROOT / ".comfyignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert lines
    assert all(line.startswith("/") for line in lines)


def test_the_project_says_what_the_registry_asks_for() -> None:
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    assert re.fullmatch(r"[a-z](?!.*[-_.]{2})[a-z0-9._-]{0,98}", project["name"])
    assert "comfy" not in project["name"]
    assert {"PublisherId", "DisplayName", "Icon", "Banner", "requires-comfyui"} <= set(comfy)
    for field, size in (("Icon", (400, 400)), ("Banner", (2100, 900))):
        with Image.open(ROOT / comfy[field]) as picture:
            assert picture.size == size


def test_versions_are_semantic_and_told_in_the_changelog() -> None:
    told = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert told[0] == PROJECT["project"]["version"]
    assert told == sorted(
        told, key=lambda version: [int(part) for part in version.split(".")], reverse=True
    )


def test_a_release_says_what_the_changelog_says_of_it() -> None:
    version = PROJECT["project"]["version"]
    told = notes(f"v{version}")
    assert told in (ROOT / "CHANGELOG.md").read_text()
    assert not re.search(r"^## ", told, re.MULTILINE)
    with pytest.raises(ValueError, match=rf"has version {re.escape(version)}, not 9.9.9"):
        notes("v9.9.9")


def test_publishing_checks_the_tag_first_and_has_its_key_from_the_repositorys_secrets() -> None:
    action = (ROOT / ".github" / "workflows" / "publish.yml").read_text()
    assert re.search(r"tags: \[\"v\*\"\]", action)
    assert action.index("launch.release") < action.index("publish-node-action")
    assert "secrets.REGISTRY_ACCESS_TOKEN" in action


def test_requirements_are_the_projects_and_loose() -> None:
    lines = [
        line.replace('"', "'")
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert lines == PROJECT["project"]["dependencies"]
    extra = [
        line
        for line in (ROOT / "requirements-cluster.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert extra == PROJECT["project"]["optional-dependencies"]["cluster"]
    assert not [line for line in lines if re.search("[<>=~!]", line.split(";")[0])]
    assert not {"torch", "torchvision", "torchaudio", "numpy"} & set(
        dict(requirements("\n".join(lines)))
    )


def test_no_literal_hides_a_payload() -> None:
    """What docs/registry.md answers to high entropy: text has blanks."""
    for file in released_files():
        for node in ast.walk(ast.parse((ROOT / file).read_text())) if file.suffix == ".py" else ():
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert max(map(len, node.value.split()), default=0) < 60, f"{file}:{node.lineno}"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ComfyUI as it comes, with a release as its only pack and models in name alone."""
    folder = tmp_path_factory.mktemp("installed") / "ComfyUI"
    shutil.copytree(COMFYUI, folder, ignore=leave_out)
    copy_files(released_files(), folder / "custom_nodes" / "tokenflow")
    for workflow in (ROOT / "workflows").glob("*.json"):
        for name in re.findall(r'"([^"\\]+\.(?:safetensors|pth))"', workflow.read_text()):
            for models in MODELS:
                file = folder / "models" / models / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
    with Server(folder, folder, folder / "output", folder / "server.log") as running:
        yield running


def leave_out(folder: str, names: list[str]) -> list[str]:
    """What users put into a ComfyUI, and what it need not have to run."""
    theirs = {
        "custom_nodes",
        "input",
        "models",
        "output",
        "temp",
        "user",
        "venv",
        "tests",
        "tests-unit",
    }
    return [
        name
        for name in names
        if name == "__pycache__"
        or (Path(folder) == COMFYUI and (name in theirs or name.startswith(".")))
    ]


def test_a_release_loads_with_all_that_belongs_to_it(installed: Server) -> None:
    known = installed.get("/object_info")
    ours = {
        name for name, node in known.items() if node["python_module"] == "custom_nodes.tokenflow"
    }
    assert ours == {page.stem for page in (ROOT / "web" / "docs").glob("*.md")}
    assert set(installed.get("/workflow_templates")["tokenflow"]) == {
        file.stem for file in (ROOT / "workflows").glob("*.json")
    }
    for language, texts in installed.get("/i18n").items():
        assert (ROOT / "locales" / language).is_dir()
        assert ours <= set(texts["nodeDefs"])
    for name in ours:
        with urllib.request.urlopen(
            f"{installed.address}/extensions/tokenflow/docs/{name}.md"
        ) as page:
            assert page.read() == (ROOT / "web" / "docs" / f"{name}.md").read_bytes()


def test_the_quickstart_runs_as_it_is_offered(installed: Server) -> None:
    """The template on its clip, in a ComfyUI that has nothing but the pack."""
    offered = to_prompt(
        installed.get("/api/workflow_templates/tokenflow/quickstart.json"),
        installed.get("/object_info"),
    )
    for entry in offered.values():
        entry["inputs"].update(
            {"ImageFromBatch": {"length": 3}, "TokenFlowInvertVideo": {"steps": 2}}.get(
                entry["class_type"], {}
            )
        )
    (video,) = run_prompt(installed.address, offered).files()
    with av.open(str(installed.output / video)) as opened:
        assert sum(1 for _ in opened.decode(video=0)) == 3


def test_the_embedded_model_of_a_release_draws(installed: Server) -> None:
    def node(kind: str, **inputs: Any) -> Any:
        return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}

    prompt = {
        "model": node("TokenFlowLoadDemoModel"),
        "grey": node("EmptyImage", width=32, height=32, batch_size=2, color=0x808080),
        "latents": node("VAEEncode", pixels=["grey", 0], vae=["model", 2]),
        "decoded": node("VAEDecode", samples=["latents", 0], vae=["model", 2]),
        "shown": node("PreviewImage", images=["decoded", 0]),
    }
    pictures = run_prompt(installed.address, prompt).outputs["shown"]["images"]
    with Image.open(installed.work / "temp" / pictures[0]["filename"]) as picture:
        assert picture.convert("RGB").getpixel((16, 16)) == pytest.approx((128, 128, 128), abs=16)


def test_comfy_lint_has_nothing_to_say_of_the_workflows(installed: Server, tmp_path: Path) -> None:
    known = installed.get("/object_info")
    for node in known.values():
        for inputs in node["input"].values():
            for kind in inputs.values():
                if isinstance(kind[0], str) and "," in kind[0]:
                    kind[0] = "*"  # comfy-lint does not know inputs of several types
    schema = tmp_path / "object_info.json"
    schema.write_text(json.dumps(known))
    for workflow in (ROOT / "workflows").glob("*.json"):
        prompt = to_prompt(json.loads(workflow.read_text()), known)
        for node in prompt.values():
            # Inputs that a choice brings, which comfy-lint does not know.
            node["inputs"] = {
                name: value for name, value in node["inputs"].items() if "." not in name
            }
        (tmp_path / workflow.name).write_text(json.dumps(prompt))
    files = [tmp_path / workflow.name for workflow in (ROOT / "workflows").glob("*.json")]
    command = [sys.executable, "-m", "comfy_lint.cli", "--strict", "--schema-cache", schema, *files]
    judged = subprocess.run(command, capture_output=True, text=True)
    assert judged.returncode == 0, judged.stdout + judged.stderr
    assert f"{len(files)} files clean" in judged.stdout
