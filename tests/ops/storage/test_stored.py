"""Stored inversions: read back to the bit, whole or absent, and refused when they are anything but
whole and sensible.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import resource
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tokenflow_ops import Inversion
from tokenflow_ops.storage import stored
from tokenflow_ops.storage.prompt import Prompt
from tokenflow_ops.storage.stored import (
    CHECKSUM,
    RECORD,
    StoredInversionError,
    read_inversion,
    write_inversion,
)

ROOMY = 2**30
PROMPT = [
    [
        torch.randn(1, 40, 4, generator=torch.Generator().manual_seed(1)),
        {"pooled_output": None, "strength": 0.5, "area": (1, "a")},
    ]
]


def inversion(steps: int = 2) -> Inversion:
    latents = torch.randn(steps + 1, 2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    sigmas = torch.linspace(3, 0, steps + 1)
    return Inversion(sigmas, latents, PROMPT, "f" * 64, 50, "normal")


def write(path: Path, **changes: Any) -> Path:
    write_inversion(
        path,
        dataclasses.replace(inversion(), **changes),
        Prompt.of(PROMPT),
        {"workflow": '{"nodes": []}'},
    )
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "one.safetensors")


def forge(
    path: Path,
    change: Callable[[dict[str, Any]], Any] = lambda record: record,
    **tensors: torch.Tensor | None,
) -> Path:
    """A file by somebody who knows the format: checksums fit, whatever it says.

    `change` may return another record, or its text.
    """
    kept: dict[str, Any] = {
        "sigmas": inversion().sigmas,
        "latents": inversion().latents,
        "prompt0": PROMPT[0][0],
        **tensors,
    }
    kept = {name: tensor.contiguous() for name, tensor in kept.items() if tensor is not None}
    sums = {
        name: hashlib.sha256(
            str(tuple(tensor.shape)).encode()
            + tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for name, tensor in kept.items()
    }
    record = {
        "version": 1,
        "fingerprint": "f" * 64,
        "steps": 50,
        "scheduler": "normal",
        "prompt": Prompt.of(PROMPT).plain,
        "tensors": sums,
    }
    changed = change(record)
    text = changed if isinstance(changed, str) else json.dumps(changed)
    save_file(kept, path, {RECORD: text, CHECKSUM: hashlib.sha256(text.encode()).hexdigest()})
    return path


def refused(path: Path, found: str, most_bytes: int = ROOMY) -> None:
    with pytest.raises(StoredInversionError, match=found) as raised:
        read_inversion(path, most_bytes)
    assert raised.value.remedy
    assert len(str(raised.value)) < 500


def test_what_is_read_is_what_was_written(path: Path) -> None:
    found, prompt = read_inversion(path, ROOMY)
    wanted = inversion()
    assert torch.equal(found.sigmas, wanted.sigmas)
    assert torch.equal(found.latents, wanted.latents)
    assert (found.fingerprint, found.steps, found.scheduler, found.conditioning) == (
        wanted.fingerprint,
        50,
        "normal",
        None,
    )
    assert prompt.is_same(Prompt.of(PROMPT))
    assert os.listdir(path.parent) == [path.name]


def test_a_mask_is_kept(tmp_path: Path) -> None:
    mask = torch.rand(2, 24, 40)
    found, prompt = read_inversion(write(tmp_path / "x", mask=mask), ROOMY)
    assert found.mask is not None
    assert torch.equal(found.mask, mask)
    assert prompt.is_same(Prompt.of(PROMPT))
    assert read_inversion(forge(tmp_path / "y"), ROOMY)[0].mask is None


def test_a_forger_who_changes_nothing_is_let_in(tmp_path: Path) -> None:
    """The other forgeries are refused for what they change."""
    found, _ = read_inversion(forge(tmp_path / "x"), ROOMY)
    assert torch.equal(found.latents, inversion().latents)


def test_those_who_may_read_other_files_may_read_it(path: Path) -> None:
    other = path.with_name("other")
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


def test_what_was_read_outlives_its_file(path: Path) -> None:
    found, _ = read_inversion(path, ROOMY)
    path.write_bytes(b"")
    assert torch.equal(found.latents, inversion().latents)


# The prompt


def test_prompts_are_compared_in_all_they_hold_but_for_rounding() -> None:
    words, options = PROMPT[0]
    wanted = Prompt.of(PROMPT)
    assert wanted.is_same(Prompt.of([[words.half(), dict(reversed(options.items()))]]))
    another_word = words.clone()
    another_word[0, 1] *= 1.2  # 3 % of the whole prompt
    for other in (
        [[another_word, options]],
        [[words[:, :2], options]],
        [[words, {**options, "strength": 1.0}]],
        [[words, {**options, "mask": torch.ones(1)}]],
        [[words, {**options, "pooled_output": torch.ones(1, 4)}]],
        [*PROMPT, *PROMPT],
        [[torch.full_like(words, torch.nan), options]],
    ):
        assert not wanted.is_same(Prompt.of(other))
        assert not Prompt.of(other).is_same(wanted)


@pytest.mark.parametrize("value", [object(), {1: 2}, [(set(),)], {"deeper": print}])
def test_what_no_file_can_hold_is_named(value: Any) -> None:
    with pytest.raises(TypeError, match=r"'(control|deeper)' \(\w+\)"):
        Prompt.of([[torch.zeros(1), {"control": value}]])


def test_one_tensor_in_two_places_is_stored(tmp_path: Path) -> None:
    words = torch.ones(1, 2, 3)
    prompt = Prompt.of([[words, {"pooled_output": words}]])
    write_inversion(tmp_path / "x", inversion(), prompt, {})
    assert read_inversion(tmp_path / "x", ROOMY)[1].is_same(prompt)


# Whole or absent


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What the system does when a disk is full: part of the data is written, then an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_what_was_there(path: Path) -> None:
    before = path.read_bytes()
    with files_of_at_most(1000), pytest.raises(OSError, match="File too large"):
        write(path, steps=60)
    assert os.listdir(path.parent) == [path.name]
    assert path.read_bytes() == before


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_stop_before_the_name_is_given_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    def stop(*_: Any) -> None:
        raise error

    monkeypatch.setattr(os, call, stop)
    with pytest.raises(type(error)):
        write(tmp_path / "one")
    assert os.listdir(tmp_path) == []


def test_a_link_in_the_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "link").symlink_to(mine)
    write(tmp_path / "link")
    assert mine.read_text() == "mine"
    assert not (tmp_path / "link").is_symlink()


# Damaged files


def test_a_changed_byte_is_refused_or_harmless(path: Path) -> None:
    whole = path.read_bytes()
    harmless = 0
    for position in {*range(0, len(whole), len(whole) // 200), *range(12)}:
        for change in (0x01, 0x80):
            damaged = bytearray(whole)
            damaged[position] ^= change
            path.write_bytes(damaged)
            try:
                found, prompt = read_inversion(path, ROOMY)
            except StoredInversionError:
                continue
            harmless += 1
            wanted = inversion()
            assert torch.equal(found.latents, wanted.latents)
            assert torch.equal(found.sigmas, wanted.sigmas)
            assert (found.fingerprint, found.steps, found.scheduler) == (
                wanted.fingerprint,
                wanted.steps,
                wanted.scheduler,
            )
            assert prompt.is_same(Prompt.of(PROMPT))
    assert harmless < 10  # in the workflow beside the record


def test_a_part_of_a_file_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 97), 7, 8, 9, len(whole) - 1}:
        path.write_bytes(whole[:length])
        refused(path, "not a whole safetensors file")
    path.write_bytes(whole + b"\0")
    refused(path, "not a whole safetensors file")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "missing", "not a whole")
    refused(tmp_path, "not a whole")
    save_file({"weights": torch.zeros(3)}, tmp_path / "lora")
    refused(tmp_path / "lora", "without an inversion")


# Hostile files


def header(entries: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    "content",
    [
        header(b"{}", length=2**63),
        header(b"{}", length=2**40),
        header(b"{" * 10_000),
        header(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        header(b"[" * 100_000 + b"]" * 100_000),
        header({"sigmas": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]}}, b"0000"),
        header({"sigmas": {"dtype": "F32", "shape": [2**31, 2**33], "data_offsets": [0, 0]}}),
        header({"sigmas": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"0000"),
        header({"sigmas": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"0000"),
        header({"sigmas": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**63]}}, b"0000"),
        header(
            {
                name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
                for name in ("sigmas", "latents")
            },
            b"0000",
        ),
        header({"sigmas": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}}, b"0000"),
        header({"__metadata__": {RECORD: 5}}),
        header({"__metadata__": [RECORD]}),
        header(b"\xff\xfe"),
        b"PK\x03\x04" + bytes(100),
        b"\x80\x04cos\nsystem\n",
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    refused(tmp_path / "x", "not a whole safetensors file")


def changed(**entries: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda record: {**record, **entries}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (changed(version=3), "format 3"),
        (changed(version=10**30), "format 1000"),
        (changed(version=0), "wrong entries"),
        (changed(version=True), "wrong entries"),
        (changed(version="1"), "wrong entries"),
        (changed(more=1), "wrong entries"),
        (
            lambda record: {name: value for name, value in record.items() if name != "scheduler"},
            "wrong entries",
        ),
        (lambda record: [record], "wrong entries"),
        (lambda record: "no JSON", "no JSON"),
        (lambda record: "[" * 100_000, "no JSON"),
        (lambda record: "9" * 100_000, "no JSON"),
        (lambda record: " " * (stored.LONGEST_RECORD + 1), "damaged record"),
        (changed(fingerprint=5), "wrong entries"),
        (changed(fingerprint="f" * 2**17), "absurd length"),
        (changed(scheduler="x" * 1000), "absurd length"),
        (changed(scheduler=["normal"]), "wrong entries"),
        (changed(steps=10**9), "schedule of 1000000000"),
        (changed(steps=1), "2 steps of a schedule of 1"),
        (changed(steps=-1), "schedule of -1"),
        (changed(steps=50.0), "wrong entries"),
        (changed(prompt={}), "wrong entries"),
        (changed(tensors={}), "other tensors"),
        (
            changed(tensors={"sigmas": 1, "latents": 2, "prompt0": [3]}),
            "damaged latents, prompt0, sigmas",
        ),
    ],
)
def test_records_that_lie_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], found: str
) -> None:
    refused(forge(tmp_path / "x", change), found)


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ({"sigmas": None}, "other tensors"),
        ({"latents": None}, "other tensors"),
        ({"prompt0": None, "prompt1": torch.zeros(1)}, "other tensors"),
        ({"__class__": torch.zeros(1)}, "other tensors"),
        ({"latents": inversion().latents.half()}, "type F16"),
        ({"sigmas": torch.tensor([3, 1, 0])}, "type I64"),
        ({"latents": inversion().latents[0]}, "of shape"),
        ({"latents": inversion().latents[:, :0]}, "of shape"),
        ({"latents": inversion().latents[:2]}, "no path to noise"),
        ({"sigmas": torch.tensor([[3.0, 1.0, 0.0]])}, "of shape"),
        ({"sigmas": torch.zeros(0)}, "no path to noise"),
        ({"sigmas": torch.arange(20_000.0).flip(0)}, "of shape"),
        ({"sigmas": torch.tensor([1.0, 3.0, 0.0])}, "no path to noise"),
        ({"sigmas": torch.tensor([torch.nan, 1.0, 0.0])}, "no path to noise"),
        ({"sigmas": torch.tensor([torch.inf, 1.0, 0.0])}, "absurd values in sigmas"),
        ({"latents": inversion().latents * torch.nan}, "absurd values in latents"),
        ({"latents": inversion().latents * 1e30}, "absurd values in latents"),
        ({"mask": torch.ones(3, 4)}, "no path to noise: need one mask"),
        ({"mask": torch.ones(3, 3, 4)}, "no path to noise: need one mask"),
        ({"mask": torch.ones(2, 0, 4)}, "a mask of shape"),
        ({"mask": torch.ones(1, 3, 4) * torch.nan}, "a mask with values"),
        ({"mask": torch.ones(1, 3, 4) * 2}, "a mask with values"),
        ({"mask1": torch.ones(1, 3, 4)}, "other tensors"),
    ],
)
def test_tensors_that_are_no_inversion_are_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor | None], found: str
) -> None:
    refused(forge(tmp_path / "x", **tensors), found)


def test_more_than_the_memory_is_refused_before_it_is_asked_for(tmp_path: Path) -> None:
    """A file of holes: a terabyte to its header, nothing on the disk."""
    file = forge(tmp_path / "x")
    length = struct.unpack("<Q", file.read_bytes()[:8])[0]
    entries = json.loads(file.read_bytes()[8 : 8 + length])
    size = 4 * 3 * 2**20 * 4 * 128 * 128
    entries["latents"] = {
        "dtype": "F32",
        "shape": [3, 2**20, 4, 128, 128],
        "data_offsets": [0, size],
    }
    entries["prompt0"]["data_offsets"], entries["sigmas"]["data_offsets"] = (
        [size, size + 640],
        [size + 640, size + 652],
    )
    content = header(entries)
    file.write_bytes(content)
    os.truncate(file, len(content) + size + 652)
    refused(file, "768.0 GiB, 1.0 GiB of memory are free")
