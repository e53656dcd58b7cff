"""Stored source features: memory and disk alike, sharing of layers, token grids and the picture of
principal components.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenflow_ops import (
    DiskStore,
    FeatureStore,
    Inversion,
    MemoryStore,
    SourceFeatures,
    build_correspondences,
    choose_keyframes,
    nearest_tokens,
    neighbours,
)
from tokenflow_ops.features.descriptors import coarse_to_fine, share_by_resolution
from tokenflow_ops.features.grid import token_grid
from tokenflow_ops.features.source_features import Consumer
from tokenflow_ops.measuring.views import principal_colours


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureStore:
    return MemoryStore() if request.param == "memory" else DiskStore(tmp_path)


def layers_of(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_blocks.1": torch.randn(5, 12, 8, generator=generator).to(dtype),
        "middle_block.0": torch.randn(5, 3, 16, generator=generator).to(dtype),
        "output_blocks.4.0.out_layers": torch.randn(5, 6, 2, 3, generator=generator).to(dtype),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_put_is_got(store: FeatureStore, dtype: torch.dtype) -> None:
    kept = {step: layers_of(step, dtype) for step in (0, 3)}
    for step, layers in kept.items():
        store.put(step, layers)
    for step, layers in kept.items():
        for layer, tensor in layers.items():
            assert store.has(step, layer)
            assert torch.equal(store.get(step, layer), tensor)
            for frames in ([0], [4, 1], [2, 2, 0]):
                assert torch.equal(store.get(step, layer, torch.tensor(frames)), tensor[frames])


def test_parts_are_one_tensor_again(store: FeatureStore) -> None:
    whole, again = layers_of(0), layers_of(1)
    for layers in (whole, again):  # the second time in place of the first
        for first, end in ((0, 2), (2, 3), (3, 5)):
            store.put(1, {layer: part[first:end] for layer, part in layers.items()}, first, 5)
    for layer, tensor in again.items():
        assert torch.equal(store.get(1, layer), tensor)
        for frames in ([4], [0, 1, 2, 3], [4, 1, 2, 2, 0]):
            assert torch.equal(store.get(1, layer, torch.tensor(frames)), tensor[frames])


def test_what_was_never_put_is_missing(store: FeatureStore) -> None:
    store.put(1, layers_of(0))
    for step, layer in ((0, "middle_block.0"), (1, "middle_block.1")):
        assert not store.has(step, layer)
        with pytest.raises(KeyError):
            store.get(step, layer)


def test_transposed_features_can_be_stored(store: FeatureStore) -> None:
    tensor = torch.randn(3, 8, 5).transpose(1, 2)
    store.put(0, {"layer": tensor})
    assert torch.equal(store.get(0, "layer"), tensor)


def test_a_disk_store_leaves_nothing_behind(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    store.put(0, layers_of(0))
    assert list(tmp_path.rglob("*.safetensors"))
    del store
    assert not list(tmp_path.iterdir())


SHAPES = {
    "in.1": (96, 8),
    "in.2": (24, 16),
    "mid": (6, 16),
    "out.1": (24, 16),
    "out.2": (24, 16),
    "out.3": (96, 8),
}
FRAMES, STEPS = 5, 4


def inversion() -> Inversion:
    return Inversion(
        torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0]),
        torch.zeros(STEPS + 1, FRAMES, 4, 8, 12),
        None,
        "",
        STEPS,
        "normal",
    )


def computed(
    layers: Iterable[str],
    steps: Iterable[int],
    consume: Consumer,
    frames: Tensor | None = None,
) -> None:
    """Stands for the model: other random features for every layer and step."""
    order = list(SHAPES)
    chosen = torch.arange(FRAMES) if frames is None else frames
    for step in steps:
        generators = {
            layer: torch.Generator().manual_seed(100 * step + order.index(layer))
            for layer in layers
        }
        consume(
            step,
            {
                layer: torch.randn(FRAMES, *SHAPES[layer], generator=generator)[chosen]
                for layer, generator in generators.items()
            },
            0,
            len(chosen),
        )


ITSELF = {layer: (layer,) for layer in SHAPES}


def source(
    steps: tuple[int, ...] = (0, 1, 2, 3),
    store: FeatureStore | None = None,
    matched_by: dict[str, tuple[str, ...]] | None = None,
) -> SourceFeatures:
    features = SourceFeatures(inversion(), SHAPES, matched_by or ITSELF, steps, store, computed)
    if store is not None:
        computed(features.match_layers, steps, store.put)
    return features


def test_coarse_to_fine_joins_the_decoders_first_layers() -> None:
    fine = ("out.1", "out.3")
    assert coarse_to_fine(SHAPES, ["out.1", "out.2", "out.3"]) == {
        "in.1": fine,
        "in.2": ("out.1",),
        "mid": ("mid",),
        "out.1": ("out.1",),
        "out.2": ("out.1",),
        "out.3": fine,
    }


def test_what_is_not_stored_takes_a_model() -> None:
    store, frames = MemoryStore(), torch.tensor([1, 0])
    computed(["mid"], [0], store.put)
    alone = SourceFeatures(inversion(), SHAPES, ITSELF, (0,), store)
    with_model = SourceFeatures(inversion(), SHAPES, ITSELF, (0,), store, computed)
    assert torch.equal(alone.at(0, ["mid"], frames)["mid"], store.get(0, "mid", frames))
    assert alone.stored(0, ["mid", "in.1"], frames) is None
    with pytest.raises(LookupError, match="not stored"):
        alone.at(0, ["mid", "in.1"], frames)
    assert with_model.at(0, ["mid", "in.1"], frames)["in.1"].shape == (2, *SHAPES["in.1"])
    assert alone == alone != with_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_descriptor_is_made_of_unit_features_enlarged_to_the_finest(dtype: torch.dtype) -> None:
    features = {
        layer: torch.randn(2, *SHAPES[layer], generator=torch.Generator().manual_seed(0)).to(dtype)
        for layer in SHAPES
    }
    known = source(matched_by=coarse_to_fine(SHAPES, ["mid", "out.1", "out.3"]))
    found = known.describe(features, ("mid", "out.1", "out.3"))
    assert found.shape == (2, 96, 16 + 16 + 8)
    assert found.dtype == dtype
    found = found.float()
    for part in found.split([16, 16, 8], -1):
        torch.testing.assert_close(part.norm(dim=-1), torch.ones(2, 96), atol=1e-3, rtol=0)
    for part, layer, (rows, columns) in (
        (found[..., :16], "mid", (2, 3)),
        (found[..., 16:32], "out.1", (4, 6)),
    ):
        unit = torch.nn.functional.normalize(features[layer].float(), dim=-1).unflatten(
            1, (rows, columns)
        )
        # The corners are the coarse corners themselves.
        for y, x in ((0, 0), (0, 11), (7, 0), (7, 11)):
            torch.testing.assert_close(
                part.unflatten(1, (8, 12))[:, y, x],
                unit[:, y * rows // 8, x * columns // 12],
                atol=1e-3,
                rtol=0,
            )


def test_a_layer_alone_describes_itself() -> None:
    tokens = torch.randn(2, 24, 16)
    assert source().describe({"in.2": tokens}, ("in.2",)) is tokens


def test_layers_of_a_resolution_share_its_last_preferred_layer() -> None:
    assert share_by_resolution(SHAPES) == {
        "in.1": "out.3",
        "in.2": "out.2",
        "mid": "mid",
        "out.1": "out.2",
        "out.2": "out.2",
        "out.3": "out.3",
    }
    assert share_by_resolution(SHAPES, ["in.1", "in.2", "out.1"])["in.2"] == "out.1"
    assert share_by_resolution(SHAPES, ["in.1", "in.2", "out.1"])["out.3"] == "in.1"


def test_steps_without_features_use_the_nearest() -> None:
    assert [source((1, 3)).nearest_step(step) for step in range(4)] == [1, 1, 1, 3]


@pytest.mark.parametrize(
    ("steps", "matched_by"),
    [
        ((), None),
        ((2, 1), None),
        ((1, 1), None),
        ((0,), {"in.1": ("in.1",)}),
        ((0,), {**ITSELF, "in.1": ("in.1", "in.2")}),
    ],
)
def test_inconsistent_features_are_refused(
    steps: tuple[int, ...], matched_by: dict[str, tuple[str, ...]] | None
) -> None:
    with pytest.raises(ValueError, match=r"steps|layer"):
        source(steps, matched_by=matched_by)


def test_stored_and_computed_features_give_the_same_matches(store: FeatureStore) -> None:
    kept, fresh = build_correspondences(source(store=store), 2), build_correspondences(source(), 2)
    for one, two in zip(kept.steps, fresh.steps, strict=True):
        assert all(
            torch.equal(a, b)
            for name in ITSELF.values()
            for a, b in zip(one.tokens(name), two.tokens(name), strict=True)
        )


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("fixed", [False, True])
def test_every_step_is_matched_to_its_own_keyframes(fixed: bool, backend: str) -> None:
    shared = share_by_resolution(SHAPES)
    done: list[tuple[int, int]] = []
    known = source((0, 2), matched_by={layer: (other,) for layer, other in shared.items()})
    found = build_correspondences(
        known, 3, seed=7, fixed=fixed, backend=backend, on_pairs=lambda *pairs: done.append(pairs)
    )
    assert done == sorted(done)
    assert done[-1][0] == done[-1][1] > done[0][0]
    for step in range(STEPS):
        keyframes = choose_keyframes(FRAMES, 3, 7, 0 if fixed else step)
        assert torch.equal(found.steps[step].keyframes, keyframes)
        features: dict[str, Tensor] = {}
        computed(
            set(shared.values()),
            [{0: 0, 1: 0, 2: 2, 3: 2}[step]],
            lambda _, layers, *place, features=features: features.update(layers),
        )
        near = neighbours(FRAMES, keyframes)
        for layer in SHAPES:
            tokens = features[shared[layer]]
            for side, positions in zip(
                found.tokens(step, layer), (near.past, near.future), strict=True
            ):
                for frame, keyframe in enumerate(keyframes[positions].tolist()):
                    own = torch.arange(tokens.shape[1])
                    wanted = (
                        own
                        if frame == keyframe
                        else nearest_tokens(tokens[frame][None], tokens[keyframe])[0]
                    )
                    assert torch.equal(side[frame].long(), wanted)


def test_a_window_holds_on_every_resolution() -> None:
    for layer, (rows, columns), radius in (
        ("in.1", (8, 12), 2),
        ("in.2", (4, 6), 1),
        ("mid", (2, 3), 1),
    ):
        for step in build_correspondences(source(), 2, window=2).steps:
            own = torch.arange(rows * columns)
            for side in step.tokens((layer,)):
                token = side.long()
                assert ((token // columns - own // columns).abs() <= radius).all()
                assert ((token % columns - own % columns).abs() <= radius).all()


def test_broken_features_are_named() -> None:
    def broken(
        layers: Iterable[str],
        steps: Iterable[int],
        consume: Consumer,
        frames: Tensor | None = None,
    ) -> None:
        nothing = {layer: torch.full((FRAMES, *SHAPES[layer]), torch.nan) for layer in layers}
        consume(0, nothing, 0, FRAMES)

    features = SourceFeatures(inversion(), SHAPES, ITSELF, (0,), None, broken)
    with pytest.raises(ValueError, match=r"NaN.*in\.1.*step 0"):
        build_correspondences(features)


def test_faiss_refuses_a_window() -> None:
    with pytest.raises(ValueError, match="window"):
        build_correspondences(source(), backend="faiss", window=2)


@settings(deadline=None)
@given(height=st.integers(1, 200), width=st.integers(1, 200), level=st.integers(0, 3))
def test_the_grid_of_every_level_is_found(height: int, width: int, level: int) -> None:
    rows, columns = height, width
    for _ in range(level):
        rows, columns = -(-rows // 2), -(-columns // 2)
    assert token_grid(rows * columns, height, width) == (rows, columns)


def test_tokens_of_no_level_are_refused() -> None:
    with pytest.raises(ValueError, match="7 tokens"):
        token_grid(7, 8, 12)


@pytest.mark.parametrize(("tokens", "width"), [(1, 1), (5, 2), (40, 3), (40, 16), (5000, 3)])
def test_principal_colours_are_colours(tokens: int, width: int) -> None:
    features = torch.randn(3, tokens, width, generator=torch.Generator().manual_seed(0)).half()
    colours = principal_colours(features.__getitem__, 3)
    assert colours.shape == (3, tokens, 3)
    assert colours.dtype == torch.float32
    assert ((colours >= 0) & (colours <= 1)).all()


def test_equal_tokens_have_equal_colours() -> None:
    frame = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    colours = principal_colours(torch.stack([frame, frame.flip(0)]).__getitem__, 2)
    torch.testing.assert_close(colours[0], colours[1].flip(0))
    assert colours[0].std(0).min() > 0.1
