"""What users connect by mistake ends in an error that names the node, the input, what was found and
what to do; the next run works.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from comfy.controlnet import ControlBase

from ..helpers import SOURCE, injection, invert, relative_error, untouched
from ..small import edit, tiny_model
from ..tiny_models import moving_clip
from . import bad_choices, bad_files, bad_frames, bad_models, bad_prompts
from .bad_input import BUILD, CLIP, DEMO, EXTRACT, NODES, SAMPLER, Row, refused, run, still_good

ROWS = [
    row
    for table in (bad_frames, bad_models, bad_prompts, bad_choices, bad_files)
    for row in table.ROWS
]


@pytest.fixture(scope="module", autouse=True)
def _model_stays_as_it_is() -> Iterator[None]:
    for node in NODES:
        still_good(node)
    with untouched(tiny_model()):
        yield


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_mistakes_are_refused_and_the_next_run_gives_the_same_bits(row: Row) -> None:
    refused(row)
    still_good(row.node)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_latents_of_any_precision_are_taken(dtype: torch.dtype) -> None:
    """In half of it the path to noise would overflow."""
    clip = moving_clip(CLIP[0], *CLIP[1])["samples"].bfloat16()  # the same numbers in all
    inputs = {"steps": 1, "refinement": "none", "check_reconstruction": False}
    found, wanted = (
        invert(tiny_model(), {"samples": clip.to(kind)}, **inputs)[0]
        for kind in (dtype, torch.float32)
    )
    # The smallest numbers are rounded.
    assert relative_error(found.latents, wanted.latents) < (
        1e-3 if dtype == torch.float16 else 1e-6
    )


class IdleControl(ControlBase):
    """A ControlNet that does nothing."""

    def get_control(self, *_: Any) -> None:
        return None


def test_injection_where_features_of_a_controlled_source_are_not_kept() -> None:
    controlled = [[SOURCE[0][0], {"control": IdleControl()}]]
    inversion = invert(tiny_model(), moving_clip(CLIP[0], *CLIP[1]), positive=controlled, steps=2)[
        0
    ]

    def injected(storage: str) -> torch.Tensor:
        features = run(EXTRACT, inversion=inversion, layers="all", steps="every", storage=storage)[
            0
        ]
        return edit(correspondences=run(BUILD, features=features)[0], injection=injection())

    assert torch.isfinite(injected("memory")).all()
    row = Row(
        "features not kept",
        SAMPLER,
        "correspondences",
        partial(injected, "recompute"),
        "ControlNet",
        "memory or disk",
    )
    refused(row)


def test_the_tables_hold_many_kinds_of_mistakes_for_every_node() -> None:
    counted = Counter(row.node for row in ROWS)
    assert len({row.name for row in ROWS}) == len(ROWS) >= 60
    assert set(counted) == set(NODES)
    assert all(counted[node] >= 3 for node in NODES if node != DEMO)
