"""Models in every precision the host loads them in, and in GGUF: an edit is that of the same
numbers in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.supported_models
import folder_paths
import pytest
import torch
from tokenflow_pack.host.validation.fingerprint import is_same_model, model_fingerprint
from tokenflow_pack.nodes.features import ExtractFeatures
from torch import Tensor

from ..helpers import FRAMES, SIZE, built, call, injection, invert, relative_error
from ..once import once_a_module
from ..small import edit, stock, tiny_model
from ..tiny_models import SMALL_SD15, moving_clip, narrow_family, random_weights
from . import gguf_models

# The host computes in float32 on a CPU, whatever weights are kept in.
ROUNDING = 1e-4
KEPT_IN = torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2


@pytest.fixture(autouse=True, scope="module")
def _narrow_layout() -> Iterator[None]:
    """The host's loaders know the narrow SD 1.5."""
    patch = pytest.MonkeyPatch()
    patch.setattr(
        comfy.supported_models,
        "models",
        [narrow_family(SMALL_SD15), *comfy.supported_models.models],
    )
    yield
    patch.undo()


def loaded(weights: dict[str, Tensor], dtype: torch.dtype) -> Any:
    return comfy.sd.load_diffusion_model_state_dict(dict(weights), {"dtype": dtype})


@once_a_module
def quantised(kind: str) -> dict[str, Tensor]:
    """The random model written to a file and read again."""
    path = Path(folder_paths.get_temp_directory(), f"{kind}.gguf")
    gguf_models.write(path, random_weights(SMALL_SD15, 0), gguf_models.KINDS[kind])
    return gguf_models.read(path)


def kept_in(dtype: torch.dtype) -> tuple[Any, Any]:
    """A model whose weights are kept in a type, and the one with the same numbers in float32."""
    weights = random_weights(SMALL_SD15, 0)
    rounded = {name: weight.to(dtype).float() for name, weight in weights.items()}
    return loaded(weights, dtype), loaded(rounded, torch.float32)


def in_blocks(kind: str) -> tuple[Any, Any]:
    """A model in GGUF, and the one with the same numbers in float32."""
    return gguf_models.load(quantised(kind)), loaded(
        gguf_models.whole(quantised(kind)), torch.float32
    )


MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    **{str(dtype): lambda dtype=dtype: kept_in(dtype) for dtype in KEPT_IN},
    **{kind: lambda kind=kind: in_blocks(kind) for kind in gguf_models.KINDS},
}


def edited(model: Any) -> tuple[Tensor, Tensor]:
    """The noisy end of the inversion, and the edit with Plug-and-Play, all made with one model."""
    inversion = invert(model, moving_clip(FRAMES, *SIZE), check_reconstruction=False)[0]
    features = call(
        ExtractFeatures.execute, model, inversion, layers="all", steps="every", storage="recompute"
    )[0]
    correspondences = built(features)
    return inversion.latents[0], edit(model, correspondences=correspondences, injection=injection())


@pytest.mark.parametrize("name", MODELS)
def test_an_edit_is_that_of_the_same_numbers_in_float32(name: str) -> None:
    model, plain = MODELS[name]()
    types = {str(weight.dtype) for weight in model.model.diffusion_model.parameters()}
    assert types == ({name} if name.startswith("torch") else {"torch.uint8", "torch.float32"})
    for found, wanted in zip(edited(model), edited(plain), strict=True):
        assert relative_error(found, wanted) < ROUNDING


@pytest.mark.parametrize("name", MODELS)
def test_without_consistency_it_is_the_plain_host_bit_for_bit(name: str) -> None:
    model, _ = MODELS[name]()
    # Inverted with the same model in float32.
    assert torch.equal(edit(model, consistency="per frame"), stock(model))


@pytest.mark.parametrize("kind", gguf_models.KINDS)
def test_a_model_in_gguf_is_known_by_its_norms_and_biases(kind: str) -> None:
    model = gguf_models.load(quantised(kind))
    published = loaded(random_weights(SMALL_SD15, 0), torch.float16)
    for one, two in ((model, published), (published, model), (model, tiny_model())):
        assert is_same_model(one, model_fingerprint(two))
    other = tiny_model(1)
    mixed = tiny_model().clone()
    mixed.add_patches(other.get_key_patches("diffusion_model."), 0.05, 0.95)
    for one in (other, mixed):
        assert not is_same_model(model, model_fingerprint(one))
        assert not is_same_model(one, model_fingerprint(model))
