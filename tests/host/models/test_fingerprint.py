"""Which model an inversion belongs to: the same weights in any type, with LoRA or without, and no
others, however they are merged.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.supported_models
import folder_paths
import pytest
import torch
from comfy import model_management
from comfy.cli_args import args
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from comfy_extras.nodes_model_merging import (
    ModelAdd,
    ModelMergeBlocks,
    ModelMergeSimple,
    ModelSave,
    ModelSubtract,
)
from safetensors.torch import save_file
from tokenflow_pack.host.validation.checks import check_same_model
from tokenflow_pack.host.validation.errors import NodeError
from tokenflow_pack.host.validation.fingerprint import is_same_model, model_fingerprint
from torch import Tensor

from nodes import UNETLoader

from ..helpers import with_lora
from ..once import once_a_module
from ..small import inverted, tiny_model
from ..tiny_models import SMALL_SD15, narrow_family, random_weights

TYPES = torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2
# What the host makes of a file: its loader's choices and its options.
# By itself it takes float32 on a CPU.
LOADED: dict[str, Callable[[pytest.MonkeyPatch], str]] = {
    "fp8_e4m3fn": lambda patch: "fp8_e4m3fn",
    "fp8_e5m2": lambda patch: "fp8_e5m2",
    "--fp16-unet": lambda patch: patch.setattr(args, "fp16_unet", True) or "default",
    "--bf16-unet": lambda patch: patch.setattr(args, "bf16_unet", True) or "default",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's folder of UNets. Its loaders know the narrow SD 1.5."""
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".safetensors"})
    )
    monkeypatch.setattr(
        comfy.supported_models,
        "models",
        [narrow_family(SMALL_SD15), *comfy.supported_models.models],
    )
    return tmp_path


@once_a_module
def weights(seed: int = 0) -> dict[str, Tensor]:
    return random_weights(SMALL_SD15, seed)


def model(
    seed: int = 0, dtype: torch.dtype = torch.float32, given: dict[str, Tensor] | None = None
) -> Any:
    """A model of its own, as the host builds it from a checkpoint."""
    return comfy.sd.load_diffusion_model_state_dict(dict(given or weights(seed)), {"dtype": dtype})


kept = once_a_module(model)


@once_a_module
def told(seed: int, dtype: torch.dtype) -> str:
    return model_fingerprint(kept(seed, dtype))


def merged(first: Any, second: Any, share: float) -> Any:
    """So much of the first one, as ModelMergeSimple does.

    That does it weight by weight, which takes seconds.
    """
    clone = first.clone()
    clone.add_patches(second.get_key_patches("diffusion_model."), 1.0 - share, share)
    return clone


def same(model: Any, other: Any) -> bool:
    return is_same_model(model, model_fingerprint(other))


# The same weights in other types


@pytest.mark.parametrize("stored", TYPES, ids=str)
def test_a_checkpoint_is_known_whatever_type_its_file_has(
    folder: Path, stored: torch.dtype
) -> None:
    save_file(
        {name: weight.to(stored) for name, weight in weights().items()}, folder / "x.safetensors"
    )
    assert_known(UNETLoader().load_unet("x.safetensors", "default")[0])


@pytest.mark.parametrize("loaded", LOADED)
def test_a_checkpoint_is_known_whatever_type_it_is_loaded_in(
    folder: Path, loaded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({name: weight.half() for name, weight in weights().items()}, folder / "x.safetensors")
    found = UNETLoader().load_unet("x.safetensors", LOADED[loaded](monkeypatch))[0]
    assert found.model.diffusion_model.out[2].weight.dtype != torch.float32
    assert_known(found)


def assert_known(found: Any) -> None:
    """As the first random model, and neither as the second one nor as any merge of both."""
    assert [kind for kind, text in known().items() if not is_same_model(found, text)] == []
    for other in others():
        assert not is_same_model(found, other)


@once_a_module
def known() -> dict[torch.dtype, str]:
    """Fingerprints of the model as published in half precision and in what is cast from that."""
    return {
        kind: model_fingerprint(
            model(0, kind, {name: weight.half() for name, weight in weights().items()})
        )
        for kind in TYPES
    }


@once_a_module
def others() -> tuple[str, ...]:
    merges = (merged(tiny_model(), tiny_model(1), share) for share in (0.05, 0.5, 0.95))
    return model_fingerprint(tiny_model(1)), *map(model_fingerprint, merges)


def test_quantised_layers_with_scales_are_known_by_their_norms_and_biases(folder: Path) -> None:
    quantised: dict[str, Tensor] = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    for name, weight in weights().items():
        if weight.ndim == 2:
            scale = weight.abs().max() / 448
            quantised |= {
                name: (weight / scale).to(torch.float8_e4m3fn),
                name.removesuffix("weight") + "scale_weight": scale,
            }
        else:
            quantised[name] = weight.half()
    save_file(quantised, folder / "x.safetensors")
    found = UNETLoader().load_unet("x.safetensors", "default")[0]
    assert same(found, tiny_model())
    assert not same(found, tiny_model(1))
    assert not same(found, merged(tiny_model(), tiny_model(1), 0.95))
    assert not same(merged(found, tiny_model(1), 0.95), tiny_model())


# Merges


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("share", [0.05, 0.95])
def test_a_merge_is_neither_of_its_models_either_way_round(share: float, kind: torch.dtype) -> None:
    first, second = kept(0, kind), kept(1, kind)
    mixed = merged(first, second, share)
    known = model_fingerprint(mixed)
    for seed, dtype in product((0, 1), {kind, torch.float32}):
        assert not is_same_model(mixed, told(seed, dtype))
        assert not is_same_model(kept(seed, dtype), known)
    assert is_same_model(merged(second, first, 1 - share), known)
    assert is_same_model(merged(kept(0), kept(1), share), known)
    assert not is_same_model(merged(first, second, (share + 0.3) % 1), known)
    assert is_same_model(merged(first, second, 1.0), told(0, kind))
    assert is_same_model(merged(first, second, 0.0), told(1, kind))


def test_the_hosts_node_merges_so() -> None:
    assert same(
        ModelMergeSimple().merge(tiny_model(), tiny_model(1), 0.7)[0],
        merged(tiny_model(), tiny_model(1), 0.7),
    )


def test_what_is_merged_in_is_seen_before_and_after_the_host_has_loaded_it() -> None:
    first, second = model(0), model(1)
    mixed = merged(first, second, 0.5)
    known = model_fingerprint(mixed)
    model_management.load_models_gpu([mixed])
    assert is_same_model(mixed, known)
    assert not is_same_model(first, known)
    assert is_same_model(first, model_fingerprint(tiny_model()))
    model_management.unload_all_models()
    assert is_same_model(mixed, known)


def test_a_saved_merge_is_the_merge(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host rounds at random when it puts a merge on weights in half precision."""
    monkeypatch.setattr(folder_paths, "output_directory", str(folder))
    mixed = merged(model(0, torch.float16), model(1, torch.float16), 0.3)
    ModelSave().save(mixed, "merge")
    loaded = UNETLoader().load_unet("merge_00001_.safetensors", "default")[0]
    assert same(loaded, mixed)
    assert not same(loaded, merged(model(0), model(1), 0.35))
    model_management.unload_all_models()


@pytest.mark.parametrize("part", ["input", "middle", "out"])
def test_a_merge_of_a_part_is_another_model(part: str) -> None:
    shares = {"input": 1.0, "middle": 1.0, "out": 1.0, part: 0.95}
    assert not same(
        ModelMergeBlocks().merge(tiny_model(), tiny_model(1), **shares)[0], tiny_model()
    )


def test_merges_of_merges_sums_and_differences_are_told_apart() -> None:
    one, two, three = (tiny_model(seed) for seed in range(3))
    nested = merged(merged(one, two, 0.5), three, 0.5)
    assert not same(nested, merged(one, three, 0.5))
    assert same(nested, merged(three, merged(two, one, 0.5), 0.5))
    difference = ModelAdd().merge(one, ModelSubtract().merge(two, three, 1.0)[0])[0]
    assert not same(difference, one)
    assert not same(difference, two)


@pytest.mark.parametrize(
    "name", ["middle_block.1.transformer_blocks.0.attn1.to_q.weight", "time_embed.0.bias"]
)
def test_a_checkpoint_with_one_weight_tuned_is_another(name: str) -> None:
    tuned = dict(weights())
    tuned[name] = tuned[name] * 1.02
    assert not same(model(given=tuned), tiny_model())


# LoRA


def test_a_lora_on_top_is_the_same_model_and_one_in_a_checkpoint_another() -> None:
    first = model(0)
    with_it, known = with_lora(first, 1.0), model_fingerprint(tiny_model())
    assert is_same_model(with_it, known)
    model_management.load_models_gpu([with_it])
    assert is_same_model(with_it, known)
    assert is_same_model(first, known)
    assert same(
        merged(with_it, tiny_model(1), 0.5),
        merged(tiny_model(), with_lora(tiny_model(1), 1.0), 0.5),
    )
    model_management.unload_all_models()
    baked = {name: weight.clone() for name, weight in weights().items()}
    key = "input_blocks.1.1.transformer_blocks.0.attn1.to_v.weight"
    baked[key] += (
        0.3
        * torch.randn(baked[key].shape, generator=torch.Generator().manual_seed(0))
        * baked[key].std()
    )
    assert not same(model(given=baked), tiny_model())


# Fingerprints from elsewhere


def test_inversions_of_the_first_release_stay_valid() -> None:
    """Which wrote the schedule's digest with that of norms and biases in float16."""
    kinds = [kind.__name__ for kind in type(tiny_model().model.model_sampling).__mro__[1:]]
    digest = hashlib.sha256(" ".join(kinds).encode())
    digest.update(tiny_model().model.model_sampling.sigmas.numpy().tobytes())
    for name, weight in tiny_model().model.diffusion_model.state_dict().items():
        if weight.ndim == 1:
            digest.update(f"{name}{tuple(weight.shape)}".encode() + weight.half().numpy().tobytes())
    old = dataclasses.replace(inverted(1, (8, 8))[0], fingerprint=digest.hexdigest())
    check_same_model("node", tiny_model(), old)
    check_same_model("node", model(0, torch.float16), old)
    check_same_model("node", with_lora(tiny_model(), 1.0), old)
    with pytest.raises(NodeError, match="not the one the source was inverted with"):
        check_same_model("node", tiny_model(1), old)


def test_another_schedule_is_another_model() -> None:
    zero_snr = ModelSamplingDiscrete().patch(tiny_model(), "eps", True)[0]
    predicts_v = ModelSamplingDiscrete().patch(tiny_model(), "v_prediction", False)[0]
    for patched in (zero_snr, predicts_v):
        assert not same(patched, tiny_model())
        assert same(patched, patched)


def test_what_no_release_wrote_is_no_model_at_all() -> None:
    architecture, _, numbers = model_fingerprint(tiny_model()).partition(":")
    made_up = ("", "!", numbers[:-4], "A" * 20)
    for text in ("", "x", f":{numbers}", *(f"{architecture}:{end}" for end in made_up)):
        assert not is_same_model(tiny_model(), text), text
    assert is_same_model(tiny_model(), f"{architecture}:{numbers}")
