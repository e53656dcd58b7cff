"""The list of what the pack uses of the host is whole,
and a host that lacks some of it is told of in words.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import comfyui_version
import pytest
from tokenflow_pack.host.internals import NEWER, OLDEST, TRAINING, USES, Use, check_host

ROOT = Path(__file__).resolve().parents[3]
HOSTS = {
    "comfy",
    "comfy_api",
    "comfy_extras",
    "comfy_execution",
    "folder_paths",
    "latent_preview",
    "execution",
    "server",
    "node_helpers",
}
LISTED = {
    f"{use.module}.{name.partition('(')[0]}" for use in (*USES, *TRAINING) for name in use.names
} | NEWER.keys()


def used(path: Path) -> Iterator[str]:
    """Dotted names of the host's that a file uses, as far as its text tells."""
    names: dict[str, str] = {}
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                alias.name.split(".")[0]: alias.name.split(".")[0]
                for alias in node.names
                if alias.name.split(".")[0] in HOSTS
            }
        elif (
            isinstance(node, ast.ImportFrom)
            and node.level == 0
            and node.module
            and node.module.split(".")[0] in HOSTS
        ):
            names |= {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for node in ast.walk(tree):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in names:
            yield ".".join([names[node.id], *parts])


def test_all_that_is_used_is_listed_and_all_that_is_listed_is_used() -> None:
    found = {
        name
        for package in ("host", "modes", "nodes")
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in used(path)
    }
    assert len(found) > 80
    modules = {use.module for use in (*USES, *TRAINING)}
    # What is listed, something inside it, or what contains it.
    missing = [
        name
        for name in found
        if name not in modules
        and not any(
            name == one or name.startswith(f"{one}.") or one.startswith(f"{name}.")
            for one in LISTED
        )
    ]
    assert not missing
    # Methods are called on objects, which the text does not tell.
    unused = {
        one
        for one in LISTED - NEWER.keys()
        if not one.startswith("comfy.model_patcher.ModelPatcher.")
    } - found
    assert not [one for one in unused if not any(name.startswith(f"{one}.") for name in found)]


def test_this_host_has_it_all() -> None:
    check_host()
    check_host(TRAINING)


CALLS = [
    "process_conds(model)",
    "process_conds(model, noise, conds, device, latents, other=)",
    "SAMPLER_NAMES()",
]
OLD, NEW = (
    f"TokenFlow needs ComfyUI {OLDEST} or newer, and this is 0.3.64",
    "TokenFlow does not know this ComfyUI, 99.1",
)


@pytest.mark.parametrize("name", ["gone", "KSampler.gone", *CALLS])
@pytest.mark.parametrize(("version", "said"), [("0.3.64", OLD), ("99.1", NEW)])
def test_what_a_host_lacks_is_named_with_the_version_that_is_needed(
    name: str, version: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comfyui_version, "__version__", version)
    with pytest.raises(ImportError) as raised:
        check_host((Use("comfy.samplers", (name,), "a test"),))
    assert str(raised.value).startswith(said)
    assert f"comfy.samplers.{name} (a test)" in str(raised.value)


def test_a_whole_list_of_what_is_missing_is_cut() -> None:
    with pytest.raises(ImportError, match=r"It lacks no\.such\.a \(b\); .*; and 2 more"):
        check_host((Use("no.such", tuple("acdef"), "b"),))
