"""One latent's way from TokenFlow Sampler to the model's forward is short enough to be read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from launch.environment import ROOT

from ..helpers import edit, injection, matched

FUNCTIONS, FILES = 25, 13
TESTS, HOST = ROOT / "tests", ROOT / ".host"


def callers(frame: FrameType) -> Iterator[tuple[str, str]]:
    """File and name of the pack's functions that are running."""
    at: FrameType | None = frame
    while at is not None:
        path = Path(at.f_code.co_filename).resolve()
        others = not path.is_file() or any(map(path.is_relative_to, (TESTS, HOST)))
        if path.is_relative_to(ROOT) and not others:
            yield str(path.relative_to(ROOT)), qualified(at.f_code)
        at = at.f_back


def qualified(code: CodeType) -> str:
    return getattr(code, "co_qualname", f"{code.co_name}:{code.co_firstlineno}")


def test_a_latent_passes_few_functions() -> None:
    """Of the keyframes' pass and of the frames', down to the model; the way back is the same."""
    found: set[tuple[str, str]] = set()
    forward = UNetModel._forward.__code__

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code is forward:
            found.update(callers(frame))

    correspondences, source = matched(), injection()
    sys.setprofile(look)
    try:
        edit(correspondences=correspondences, injection=source, start=0.34)
    finally:
        sys.setprofile(None)
    listed = "\n".join(map(" ".join, sorted(found)))
    assert any("run_frames" in name for _, name in found), listed
    assert len(found) <= FUNCTIONS, listed
    assert len({file for file, _ in found}) <= FILES, listed
