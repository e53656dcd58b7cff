"""Edits stay what they are: the latents that every case gave when it was added, to rounding.

`GOLDEN=write` keeps the latents of cases that have none yet; `GOLDEN=bits` asks for the same bits,
on the machine that wrote them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ..helpers import relative_error
from .cases import CASES

KEPT = Path(__file__).with_name("edits.safetensors")
ROUNDING = 1e-5


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", CASES)
def test_an_edit_is_what_it_was(name: str) -> None:
    found = CASES[name]().contiguous()
    if os.environ.get("GOLDEN") == "write":
        known = load_file(KEPT) if KEPT.exists() else {}
        save_file({name: found, **known}, KEPT)
    with safe_open(KEPT, "pt") as kept:
        wanted = kept.get_tensor(name)
    assert relative_error(found, wanted) < ROUNDING
    if os.environ.get("GOLDEN") == "bits":
        assert torch.equal(found, wanted)


def test_nothing_is_kept_that_nobody_makes() -> None:
    with safe_open(KEPT, "pt") as kept:
        assert set(kept.keys()) == set(CASES)
