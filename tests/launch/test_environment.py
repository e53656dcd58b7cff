"""Stamps, the link and the user's own ComfyUI, without installing anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launch import environment
from launch.environment import ROOT, Host, SetupError, Stamps, link_pack, own_comfyui, require, requirement_names


@pytest.fixture
def comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a ComfyUI, named by COMFYUI_PATH."""
    tmp_path.joinpath("main.py").touch()
    tmp_path.joinpath("custom_nodes").mkdir()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.delenv("COMFYUI_PYTHON", raising=False)
    return tmp_path


def test_the_pack_is_linked_once(comfyui: Path) -> None:
    link_pack(comfyui)
    link_pack(comfyui)
    assert [path.resolve() for path in comfyui.joinpath("custom_nodes").iterdir()] == [ROOT]


def test_a_pack_that_lies_there_already_is_found_under_any_name(comfyui: Path) -> None:
    comfyui.joinpath("custom_nodes", "mine").symlink_to(ROOT)
    link_pack(comfyui)
    assert len(list(comfyui.joinpath("custom_nodes").iterdir())) == 1


def test_another_copy_is_not_replaced_and_a_dangling_link_is(comfyui: Path) -> None:
    link = comfyui / "custom_nodes" / "ComfyUI-TokenFlow"
    link.symlink_to(comfyui / "gone")
    link_pack(comfyui)
    assert link.resolve() == ROOT
    link.unlink()
    link.mkdir()
    with pytest.raises(SetupError, match="another copy"):
        link_pack(comfyui)


def test_the_link_inside_the_checkout_is_relative() -> None:
    links = [path for path in (ROOT / ".host/ComfyUI/custom_nodes").glob("*") if path.is_symlink() and path.resolve() == ROOT]
    if not links:
        pytest.skip("no ComfyUI under .host")
    assert not links[0].readlink().is_absolute()


def test_the_users_comfyui_and_its_python_are_used_as_named(comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_comfyui() == Host(comfyui, Path(sys.executable))
    inside = comfyui / ".venv" / "bin" / "python"
    inside.parent.mkdir(parents=True)
    inside.touch()
    assert own_comfyui().python == inside
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    assert own_comfyui().python == Path(sys.executable)
    monkeypatch.setenv("COMFYUI_PYTHON", "/no/such/python")
    with pytest.raises(SetupError, match="COMFYUI_PYTHON"):
        own_comfyui()
    monkeypatch.setenv("COMFYUI_PATH", "/no/such/folder")
    with pytest.raises(SetupError, match=r"no main\.py"):
        own_comfyui()


def test_missing_packages_are_named_with_the_command_and_not_installed(
    comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = tmp_path / "requirements.txt"
    lacking.write_text("pytest\nno-such-package>=3  # why\nno_such_package\nopencv-python-headless; python_version > '3'\n")
    monkeypatch.setitem(environment.REQUIREMENTS, "the pack's packages", lacking)
    host, said = Host(comfyui, Path(sys.executable)), rf"lacks no-such-package or no_such_package\. .*\n.*-m pip install -r {lacking}"
    with pytest.raises(SetupError, match=said):
        require(host)
    lacking.write_text("pytest\n")
    require(host)
    monkeypatch.setitem(environment.REQUIREMENTS, "the cluster's packages", tmp_path / "cluster.txt")
    (tmp_path / "cluster.txt").write_text("no-such-package[default]\n")
    require(host)
    with pytest.raises(SetupError, match=r"lacks no-such-package\. .*\n.*-m pip install -r .*cluster\.txt"):
        require(host, ("the cluster's packages",))


def test_requirement_names() -> None:
    assert requirement_names("# why\ntorch\n\nfaiss-gpu>=1; sys_platform == 'linux'\nuvicorn[x]~=2 # y\n") == [
        "torch",
        "faiss-gpu",
        "uvicorn",
    ]


def test_stamps_survive_and_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "made" / "stamps.json"
    Stamps(path).set("venv", "3.11")
    assert Stamps(path).get("venv") == "3.11"
    path.write_text("{half")
    assert Stamps(path).get("venv") is None
