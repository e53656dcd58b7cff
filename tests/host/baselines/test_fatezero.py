"""FateZero's attention blending as a mode, against its plain formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.modes import fatezero
from tokenflow_pack.nodes.features import ExtractFeatures
from tokenflow_pack.nodes.injection import PlugAndPlay
from tokenflow_pack.tokenflow_ops.baselines import blending
from tokenflow_pack.tokenflow_ops.passes import BlendedPass

from ..helpers import (
    NEGATIVE,
    SOURCE,
    built,
    call,
    edit,
    invert,
    relative_error,
    tiny_model,
    untouched,
    watch,
)
from ..once import once_a_module
from ..oracles.fatezero import FateZero
from ..tiny_models import CONTEXT, moving_clip

STEPS = 4  # 2 of them with the source's self-attention, 3 with its cross-attention
SHARES = 0.25, 0.5  # of Plug-and-Play
FRAMES = 3
SIZE = 8, 16
MODE = "fatezero"
CHANGED = 3
MOST_TOKENS = 32  # the layers of 8 x 16 tokens keep their own maps
STRONG = 0.95  # a random model looks at a word everywhere, in some places a little more


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blending, "REGION", STRONG)
    monkeypatch.setattr(fatezero, "MOST_TOKENS", MOST_TOKENS)


def prompts() -> tuple[list, list]:
    """A source prompt, and an edit prompt with another word in one place."""
    generator = torch.Generator().manual_seed(7)
    source = SOURCE[0][0].clone()
    # What stands around a changed word changes a little.
    edited = source + 0.05 * torch.randn(source.shape, generator=generator)
    source[0, CHANGED], edited[0, CHANGED] = 3 * torch.randn(2, CONTEXT, generator=generator)
    return [[source, {}]], [[edited, {}]]


FROM, TO = prompts()


@once_a_module
def matched(frames: int = FRAMES) -> Any:
    inversion = invert(
        tiny_model(), moving_clip(frames, *SIZE), positive=FROM, steps=STEPS, refinement="none"
    )[0]
    features = call(
        ExtractFeatures.execute,
        tiny_model(),
        inversion,
        "one per resolution",
        "one noise level",
        storage="memory",
    )[0]
    return built(features)


@once_a_module
def found(consistency: str = MODE, frames_per_pass: int = FRAMES) -> torch.Tensor:
    plug_and_play = call(PlugAndPlay.execute, *SHARES)[0]
    inputs = {
        "consistency": consistency,
        "frames_per_pass": frames_per_pass,
        "injection": plug_and_play,
    }
    return edit(positive=TO, correspondences=matched(), **inputs)


def test_the_mode_is_its_formula() -> None:
    inversion = matched().features.inversion
    words = FROM[0][0], TO[0][0], NEGATIVE[0][0]
    plain = FateZero(
        tiny_model(),
        inversion.latents,
        inversion.sigmas,
        *words,
        [[]] * STEPS,
        4.0,
        *SHARES,
        consistency=MODE,
    )
    plain.most_tokens, plain.strong = MOST_TOKENS, STRONG
    assert relative_error(found(), tiny_model().model.process_latent_out(plain.run())) < 1e-4
    edited = torch.cat(list(plain.regions.values())).float().mean()
    assert 0.1 < float(edited) < 0.9  # some places are the edit's, some the source's


def test_it_differs_from_sparse_causal() -> None:
    assert relative_error(found("sparse-causal"), found()) > 0.01


def test_passes_of_any_size_give_the_same() -> None:
    assert relative_error(found(frames_per_pass=2), found()) < 1e-4


def test_prompts_of_other_lengths_share_what_they_share() -> None:
    """Prompts are filled up to the longest of a batch by repeating them."""
    longer = [[torch.cat([NEGATIVE[0][0]] * 2, 1), {}]]
    one = {"positive": TO, "correspondences": matched(1), "consistency": MODE}
    assert relative_error(edit(negative=longer, **one), edit(negative=NEGATIVE, **one)) < 1e-4


def test_one_frame_of_the_same_prompt_keeps_the_sources_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is new in it: no place and no word is the edit's, in its own rows alone;
    the model stays as it was.
    """
    changes: list[Any] = []
    watch(
        monkeypatch,
        lambda _, frames_pass: changes.extend(
            [frames_pass.changes] if isinstance(frames_pass, BlendedPass) else []
        ),
    )
    with untouched(tiny_model()):
        edit(positive=FROM, correspondences=matched(1), consistency=MODE)
    assert len(changes) == 3
    for change in changes:
        assert list(change) == [(0, 0)]  # the positive prompt
        assert not change[0, 0].new.any()
        assert not change[0, 0].region((2, 4)).any()


def test_hidden_cross_attention_is_refused() -> None:
    """As IPAdapter hides it."""
    model = tiny_model().clone()
    model.set_model_attn2_replace(lambda q, k, v, options: q, "middle", 0)
    with pytest.raises(NodeError, match=r"input 'model': middle_block.*attn2 did not show"):
        edit(model, positive=TO, correspondences=matched(1), consistency=MODE)
