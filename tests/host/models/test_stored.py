"""Save Inversion and Load Inversion: the same edit to the bit, refusals that say what does not
match, names that stay in their folders.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import folder_paths
import pytest
import torch
from comfy.cli_args import args
from comfy.controlnet import ControlBase
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tokenflow_pack.host.files.folders import SUFFIX, new_path, stored_names, stored_path
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.nodes import stored
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.stored import LoadInversion, SaveInversion
from tokenflow_pack.tokenflow_ops.storage.prompt import Prompt
from tokenflow_pack.tokenflow_ops.storage.stored import write_inversion

import nodes

from ..helpers import POSITIVE, SOURCE, built, call, edit, executor, invert, inverted, tiny_model
from ..once import once_a_module
from ..tiny_models import moving_clip

CLIP = 2, (8, 8)
FIRST = f"inversions/TokenFlow_00001_{SUFFIX} [output]"


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's folders, empty, beside one that is none of them."""
    for name in ("input", "output", "temp", "elsewhere"):
        (tmp_path / name).mkdir()
    for name in ("input", "output", "temp"):
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    return tmp_path


def save(prefix: str = "inversions/TokenFlow", **changes: Any) -> None:
    call(SaveInversion.execute, dataclasses.replace(inverted(*CLIP)[0], **changes), prefix)


def load(
    file: str = FIRST, model: Any = None, positive: Any = SOURCE, **inputs: Any
) -> tuple[Any, ...]:
    return call(LoadInversion.execute, file, model or tiny_model(), positive, **inputs)


def files(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()
    )


def refused(run: Callable[[], Any], node: str, socket: str, found: str) -> None:
    with pytest.raises(NodeError, match=found) as raised:
        run()
    assert (raised.value.node, raised.value.socket) == (node, socket)
    assert raised.value.remedy


# There and back


def test_what_is_loaded_is_what_the_inversion_gave() -> None:
    save()
    wanted, found = inverted(*CLIP), load(latents=moving_clip(CLIP[0], *CLIP[1]))
    assert torch.equal(found[0].latents, wanted[0].latents)
    assert torch.equal(found[1]["samples"], wanted[1]["samples"])
    assert torch.equal(found[2], wanted[2])
    assert found[0].conditioning is SOURCE
    for field in ("fingerprint", "steps", "scheduler"):
        assert getattr(found[0], field) == getattr(wanted[0], field)


def test_an_edit_from_a_file_is_the_edit_to_the_bit() -> None:
    save()

    def edited(inversion: Any) -> torch.Tensor:
        features = call(ExtractFeatures.execute, tiny_model(), inversion, storage="recompute")[0]
        return edit(correspondences=built(features))

    assert torch.equal(edited(load()[0]), edited(inverted(*CLIP)[0]))


def test_a_noise_mask_is_kept_unless_the_latents_bring_another() -> None:
    clip, (first, second) = moving_clip(CLIP[0], *CLIP[1]), torch.rand(2, 1, 64, 64)
    save(mask=first)
    assert torch.equal(load()[0].mask, first)
    assert torch.equal(load(latents=clip)[0].mask, first)
    found, noisy, _ = load(latents={**clip, "noise_mask": second, "batch_index": [3, 4]})
    assert torch.equal(found.mask, second)
    assert (set(noisy), noisy["batch_index"]) == ({"samples", "batch_index"}, [3, 4])


def test_the_graph_travels_with_the_file_as_with_the_hosts(
    monkeypatch: pytest.MonkeyPatch, folders: Path
) -> None:
    monkeypatch.setattr(
        SaveInversion,
        "hidden",
        SimpleNamespace(prompt={"1": {}}, extra_pnginfo={"workflow": {"nodes": []}}),
        raising=False,
    )
    save("with")
    monkeypatch.setattr(args, "disable_metadata", True)
    save("without")
    with safe_open(folders / "output" / f"with_00001_{SUFFIX}", framework="pt") as file:
        kept = file.metadata()
    assert (json.loads(kept["prompt"]), json.loads(kept["workflow"])) == ({"1": {}}, {"nodes": []})
    with safe_open(folders / "output" / f"without_00001_{SUFFIX}", framework="pt") as file:
        assert not {"prompt", "workflow"} & file.metadata().keys()
    assert torch.equal(
        load(f"with_00001_{SUFFIX} [output]")[0].latents,
        load(f"without_00001_{SUFFIX} [output]")[0].latents,
    )


class Ready:
    """A node that gives what Save and Load Inversion take."""

    RETURN_TYPES = ("TOKENFLOW_INVERSION", "MODEL", "CONDITIONING")
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def give(self) -> tuple[Any, ...]:
        return inverted(*CLIP)[0], tiny_model(), SOURCE


def test_on_the_host_a_file_is_loaded_once_until_it_is_another(
    monkeypatch: pytest.MonkeyPatch, folders: Path
) -> None:
    for name, node in (("Ready", Ready), ("Save", SaveInversion), ("Load", LoadInversion)):
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, node)
    reads: list[Path] = []
    monkeypatch.setattr(
        stored, "_read", lambda path, read=stored._read: reads.append(path) or read(path)
    )
    sent: list[Any] = []
    queue = executor(lambda event, data, sid: sent.append((event, data)), "me")
    ready = {"class_type": "Ready", "inputs": {}}

    def run(file: str | None, prefix: str) -> None:
        load = {
            "class_type": "Load",
            "inputs": {"file": file, "model": ["ready", 1], "positive": ["ready", 2]},
        }
        save = {
            "class_type": "Save",
            "inputs": {"inversion": ["load" if file else "ready", 0], "filename_prefix": prefix},
        }
        prompt = {"ready": ready, "save": save, **({"load": load} if file else {})}
        queue.execute(
            prompt,
            "id",
            {"client_id": "me", "extra_pnginfo": {"workflow": {"of": prefix}}},
            ["save"],
        )
        assert queue.success, queue.status_messages

    run(None, "first")
    shown = next(data["output"] for event, data in sent if event == "executed")
    assert shown["inversions"] == [
        {"filename": f"first_00001_{SUFFIX}", "subfolder": "", "type": "output"}
    ]
    assert shown["text"][0].startswith(f"first_00001_{SUFFIX}: 2 frames")
    with safe_open(folders / "output" / f"first_00001_{SUFFIX}", framework="pt") as file:
        assert json.loads(file.metadata()["workflow"]) == {"of": "first"}
    name = f"first_00001_{SUFFIX} [output]"
    run(name, "second")
    run(name, "third")
    assert len(reads) == 1
    os.replace(
        folders / "output" / f"second_00001_{SUFFIX}", folders / "output" / f"first_00001_{SUFFIX}"
    )
    run(name, "fourth")
    assert len(reads) == 2


# What does not match


def test_another_model_prompt_or_clip_is_refused() -> None:
    save()
    refused(
        lambda: load(model=tiny_model(1)),
        "Load Inversion",
        "model",
        "not the one the source was inverted with",
    )
    refused(
        lambda: load(positive=POSITIVE),
        "Load Inversion",
        "positive",
        "not the one the source was inverted with",
    )
    refused(
        lambda: load(positive=controlled()),
        "Load Inversion",
        "positive",
        r"'control' \(ControlBase\)",
    )
    other = moving_clip(CLIP[0], *CLIP[1])
    other["samples"] = other["samples"].clone()
    other["samples"][1] += 0.3
    refused(lambda: load(latents=other), "Load Inversion", "latents", r"frames \[1\] are not those")
    refused(
        lambda: load(latents=moving_clip(3, 8, 8)),
        "Load Inversion",
        "latents",
        "3 frames here, 2 in the inversion",
    )
    refused(
        lambda: load(latents=moving_clip(2, 8, 16)),
        "Load Inversion",
        "latents",
        "16 x 8 here, 8 x 8",
    )


def controlled() -> Any:
    return [[SOURCE[0][0], {**SOURCE[0][1], "control": ControlBase()}]]


def test_a_prompt_with_a_controlnet_is_not_saved(folders: Path) -> None:
    refused(
        lambda: save(conditioning=controlled()),
        "Save Inversion",
        "inversion",
        r"'control' \(ControlBase\), which a file cannot hold",
    )
    assert files(folders) == []


def test_the_same_prompt_and_clip_of_another_precision_are_taken() -> None:
    save()
    rounded = [[SOURCE[0][0].bfloat16(), SOURCE[0][1]]]
    clip = moving_clip(CLIP[0], *CLIP[1])
    assert (
        load(positive=rounded, latents={"samples": clip["samples"].half().float()})[0].conditioning
        is rounded
    )


def test_what_this_host_cannot_use_is_refused(folders: Path) -> None:
    save("strange", scheduler="of another pack\0")
    refused(
        lambda: load(f"strange_00001_{SUFFIX} [output]"),
        "Load Inversion",
        "file",
        re.escape(r"'of another pack\x00', which this"),
    )
    save("wide", latents=torch.zeros(4, 2, 5, 8, 8))
    refused(
        lambda: load(f"wide_00001_{SUFFIX} [output]"),
        "Load Inversion",
        "file",
        "5 channels, the model takes 4",
    )
    (folders / "input" / f"empty{SUFFIX}").write_bytes(b"")
    refused(
        lambda: load(f"empty{SUFFIX}"), "Load Inversion", "file", "not a whole safetensors file"
    )


def test_a_full_disk_is_told_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, folders: Path
) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refused(
        save,
        "Save Inversion",
        "filename_prefix",
        r"could not be written \(No space left on device\)",
    )
    assert files(folders) == []


# Names


def test_files_of_both_folders_are_offered_by_names_that_load(folders: Path) -> None:
    save()
    save()
    save("deep/er/%year%/x")
    (folders / "input" / "mine").mkdir()
    os.link(
        folders / "output" / FIRST.removesuffix(" [output]"),
        folders / "input" / "mine" / f"copy{SUFFIX}",
    )
    (folders / "output" / "picture.png").write_bytes(b"")
    (folders / "output" / "lora.safetensors").write_bytes(b"")
    offered = LoadInversion.define_schema().inputs[0].options
    assert offered[0] == f"mine/copy{SUFFIX}"
    assert re.fullmatch(rf"deep/er/20\d\d/x_00001_{SUFFIX} \[output\]", offered[1])
    assert offered[2:] == [FIRST, FIRST.replace("00001", "00002")]
    for name in offered:
        assert LoadInversion.validate_inputs(name) is True
        assert torch.equal(load(name)[0].latents, inverted(*CLIP)[0].latents)
    assert LoadInversion.validate_inputs(None) is True  # linked


ESCAPES = [
    "..",
    "../x",
    "a/../../x",
    "./x",
    "/etc/x",
    "//x",
    "",
    " ",
    "a//b",
    "a/",
    "a\\..\\..\\x",
    "C:\\x",
    "C:x",
    "x\0y",
    "x\ny",
    "\ud800",
    "x" * 300,
    "ä" * 120,
    "a/" * 600 + "x",
    "way out/x",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_lead_elsewhere_are_refused(folders: Path, name: str) -> None:
    for folder in ("input", "output"):
        (folders / folder / "way out").symlink_to(folders / "elsewhere")
    write(folders / "elsewhere" / f"x{SUFFIX}")
    write(folders / f"x{SUFFIX}")
    before = files(folders)
    refused(lambda: save(name), "Save Inversion", "filename_prefix", "is no name|characters|link")
    for annotation in ("", " [input]", " [output]"):
        refused(
            lambda end=annotation: load(f"{name}{SUFFIX}{end}"),
            "Load Inversion",
            "file",
            "is no name|characters|link|shorter|not there",
        )
    assert files(folders) == before


def write(path: Path) -> None:
    write_inversion(path, inverted(*CLIP)[0], Prompt.of(SOURCE), {})


def test_only_inversions_of_the_two_folders_are_read(folders: Path) -> None:
    write(folders / "temp" / f"x{SUFFIX}")
    refused(
        lambda: load(f"x{SUFFIX} [temp]"),
        "Load Inversion",
        "file",
        "neither in the input nor in the output",
    )
    write(folders / "input" / "x.safetensors")
    refused(lambda: load("x.safetensors"), "Load Inversion", "file", "does not end in")
    write(folders / "elsewhere" / f"x{SUFFIX}")
    (folders / "input" / f"link{SUFFIX}").symlink_to(folders / "elsewhere" / f"x{SUFFIX}")
    refused(lambda: load(f"link{SUFFIX}"), "Load Inversion", "file", "through a link")
    os.mkfifo(folders / "input" / f"pipe{SUFFIX}")
    refused(lambda: load(f"pipe{SUFFIX}"), "Load Inversion", "file", "is not there")
    (folders / "input" / f"folder{SUFFIX}").mkdir()
    refused(lambda: load(f"folder{SUFFIX}"), "Load Inversion", "file", "is not there")
    for wrong in ("missing", 5, {"a": 1}, ["a"], ""):
        assert "Load Inversion, input 'file'" in str(LoadInversion.validate_inputs(wrong))


def test_a_prefix_whose_folder_cannot_be_made_is_refused(folders: Path) -> None:
    (folders / "output" / "taken").write_text("")
    refused(lambda: save("taken/x"), "Save Inversion", "filename_prefix", "cannot be made")


@once_a_module
def signs() -> st.SearchStrategy[str]:
    """What file names are made of, and what they should not be made of."""
    part = st.one_of(
        st.sampled_from(["..", ".", "", " ", "~", "%year%", "a", "ä", "CON", "[output]", "out"]),
        st.text(max_size=5),
    )
    return st.lists(part, min_size=1, max_size=5).flatmap(
        lambda parts: st.sampled_from(["/", "\\", ""]).map(lambda by: by.join(parts))
    )


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=signs())
def test_any_name_stays_inside_or_is_refused(folders: Path, name: str) -> None:
    link = folders / "output" / "out"
    if not link.is_symlink():
        link.symlink_to(folders / "elsewhere")
    path = unless_refused(new_path, name)
    if path is not None:
        assert Path(os.path.realpath(path)).is_relative_to(folders / "output")
        path.touch()
        found = f"{path.relative_to(folders / 'output').as_posix()} [output]"
        assert unless_refused(stored_path, found) == path
        assert found in stored_names()
    unless_refused(stored_path, f"{name}{SUFFIX}")
    assert all(file.startswith("output/") for file in files(folders))


def unless_refused(find: Callable[[str, str, str], Path], name: str) -> Path | None:
    with suppress(NodeError):
        return find("node", "socket", name)
    return None


def test_every_refusal_of_a_name_ends_in_words_that_can_be_printed() -> None:
    for name in ESCAPES:
        with pytest.raises(NodeError) as raised:
            new_path("node", "socket", name + "/..")
        assert str(raised.value).isprintable()
        assert len(str(raised.value)) < 300


def test_inversions_of_several_prompts_are_kept(folders: Path) -> None:
    prompts = [
        *SOURCE,
        [POSITIVE[0][0], {**POSITIVE[0][1], "strength": 0.5, "mask": torch.ones(1, 8, 8)}],
    ]
    inversion = invert(
        tiny_model(), moving_clip(1, 8, 8), positive=prompts, steps=1, check_reconstruction=False
    )[0]
    call(SaveInversion.execute, inversion, "several")
    name = f"several_00001_{SUFFIX} [output]"
    assert torch.equal(load(name, positive=prompts)[0].latents, inversion.latents)
    refused(lambda: load(name, positive=prompts[:1]), "Load Inversion", "positive", "not the one")
