"""A node has one progress bar: it goes from left to right once,
whatever the node does one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.utils
import pytest
from tokenflow_pack.nodes.correspondences import BuildCorrespondences
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.looking.metrics import Metrics
from tokenflow_pack.nodes.looking.reconstruction import CheckReconstruction
from tokenflow_pack.nodes.looking.views import PreviewCorrespondences, PreviewFeatures

from ..helpers import (
    FRAMES,
    SIZE,
    STEPS,
    Decoder,
    call,
    edit,
    extracted,
    invert,
    inverted,
    matched,
    pictures,
    tiny_model,
)
from ..looking.test_views import PICTURES
from ..tiny_models import moving_clip


def extract(**inputs: Any) -> Any:
    return call(ExtractFeatures.execute, tiny_model(), inverted()[0], **inputs)


def reconstruct() -> Any:
    return call(CheckReconstruction.execute, tiny_model(), inverted()[0], Decoder(), most_frames=2)


NODES: dict[str, tuple[Callable[[], Any], int]] = {
    "an inversion and its check": (
        lambda: invert(tiny_model(), moving_clip(FRAMES, *SIZE)),
        2 * STEPS,
    ),
    "an inversion without a check": (
        lambda: invert(tiny_model(), moving_clip(FRAMES, *SIZE), check_reconstruction=False),
        STEPS,
    ),
    "a reconstruction and its pictures": (reconstruct, STEPS + 2),
    "features that are kept, and their picture": (
        lambda: extract(storage="memory", steps="every"),
        STEPS + 1,
    ),
    "features that are not kept": (lambda: extract(storage="recompute", steps="every"), 1),
    "matches of features that are computed again": (
        lambda: call(BuildCorrespondences.execute, extracted(storage="recompute")),
        STEPS * FRAMES,
    ),
    "pictures of features that are computed again": (
        lambda: call(PreviewFeatures.execute, extracted(storage="recompute")),
        FRAMES,
    ),
    "pictures of matches": (
        lambda: call(PreviewCorrespondences.execute, matched(storage="recompute"), PICTURES),
        2 * FRAMES,
    ),
    "an edit": (lambda: edit(), STEPS),
    "a comparison": (lambda: call(Metrics.execute, pictures(), pictures()), FRAMES - 1),
}


@pytest.mark.parametrize("name", NODES)
def test_a_bar_goes_from_left_to_right_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Made before anybody looks.
    (inverted(), extracted(storage="recompute"), matched(), matched(storage="recompute"))
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total))
    )
    run, wanted = NODES[name]
    run()
    values, totals = zip(*seen, strict=True)
    assert set(totals) == {wanted}
    assert list(values) == sorted(values)
    assert values[-1] == wanted
