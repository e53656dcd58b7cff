"""Stamps, the link and the user's own ComfyUI, without installing anything."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from launch import environment
from launch.environment import ROOT, SetupError, Stamps, link_pack, make_venv, own_comfyui
from launch.needs import PACK


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
    links = [
        path
        for path in (ROOT / ".host/ComfyUI/custom_nodes").glob("*")
        if path.is_symlink() and path.resolve() == ROOT
    ]
    if not links:
        pytest.skip("no ComfyUI under .host")
    assert not links[0].readlink().is_absolute()


def test_the_users_comfyui_and_its_python_are_used_as_named(
    comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = own_comfyui()
    assert (host.comfyui, host.python) == (comfyui, Path(sys.executable))
    assert "runs this command" in host.origin
    inside = comfyui / ".venv" / "bin" / "python"
    inside.parent.mkdir(parents=True)
    inside.touch()
    assert own_comfyui().python == inside
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    assert own_comfyui().python == Path(sys.executable)
    assert own_comfyui().origin == "COMFYUI_PYTHON"
    monkeypatch.setenv("COMFYUI_PYTHON", "/no/such/python")
    with pytest.raises(SetupError, match="COMFYUI_PYTHON"):
        own_comfyui()
    monkeypatch.setenv("COMFYUI_PATH", "/no/such/folder")
    with pytest.raises(SetupError, match=r"no main\.py"):
        own_comfyui()


def test_stamps_survive_and_a_damaged_file_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "made" / "stamps.json"
    Stamps(path).set("venv", "3.11")
    assert Stamps(path).get("venv") == "3.11"
    path.write_text("{half")
    assert Stamps(path).get("venv") is None


def wheel(folder: Path, version: str) -> Path:
    """A package of one module that says its version, as pip installs it without any index."""
    info = f"only_here-{version}.dist-info"
    path = folder / f"only_here-{version}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: only_here\nVersion: {version}\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("only_here.py", f"VERSION = '{version}'\n")
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_a_bare_checkout_gets_an_environment_of_what_it_lists(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer ComfyUIs list packages that the oldest one does not know. What changes is installed."""
    folder = tmp_path_factory.mktemp("environments")
    nothing, bare = folder / "nothing.txt", folder / "bare"
    nothing.touch()
    make_venv(bare)
    monkeypatch.setattr(environment, "HOST", folder)
    monkeypatch.setitem(environment.REQUIREMENTS, PACK, nothing)
    monkeypatch.setattr(sys, "executable", str(bare / "bin" / "python"))
    with pytest.raises(SetupError, match=r"no requirements\.txt"):
        own_comfyui()
    for version in ("1.0", "2.0", "2.0"):
        comfyui.joinpath("requirements.txt").write_text(f"{wheel(comfyui, version)}\n")
        host = own_comfyui()
        assert host.python.is_relative_to(folder / "checkouts")
        said = subprocess.run(
            # Without bytecode: both versions' files may have the same time and size.
            [host.python, "-B", "-c", "import only_here; print(only_here.VERSION)"],
            capture_output=True,
            text=True,
        )
        assert said.stdout.strip() == version
    monkeypatch.setattr(environment, "pip", None)  # all is there
    assert own_comfyui() == host
