"""UNets in GGUF files, with real blocks, loaded the way ComfyUI-GGUF loads them.

That pack puts operations of its own in the place of the host's. A linear layer keeps its weight as
the file's bytes, in a tensor that says it has the shape of the numbers, and makes numbers of it
whenever it runs; the host is told the layer's state by shapes alone. So what our pack meets is
weights that are no numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.ops
import comfy.sd
import gguf
import torch
from torch import Tensor

KINDS = {name: getattr(gguf.GGMLQuantizationType, name) for name in ("Q8_0", "Q4_0", "Q5_1")}
BLOCK = 32  # numbers that share a scale; rows are whole blocks


class Blocks(Tensor):
    """A weight's bytes as they are in the file, under the shape of its numbers."""

    kind: Any
    numbers_shape: torch.Size

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return getattr(self, "numbers_shape", self.size())

    def to(self, *args: Any, **kwargs: Any) -> Any:
        return blocks(super().to(*args, **kwargs), self.kind, self.numbers_shape)

    def detach(self) -> Any:
        return self


def blocks(data: Tensor, kind: Any, shape: torch.Size) -> Blocks:
    found = data.as_subclass(Blocks)
    found.kind, found.numbers_shape = kind, shape
    return found


def numbers(weight: Blocks) -> Tensor:
    """What the bytes stand for, float32, by the reference implementation of the format."""
    return torch.from_numpy(
        gguf.quants.dequantize(weight.as_subclass(Tensor).numpy(), weight.kind)
    ).reshape(weight.numbers_shape)


class Operations(comfy.ops.manual_cast):
    """The host's, with linear layers that take blocks."""

    class Linear(comfy.ops.manual_cast.Linear):
        def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
            weight = state[f"{prefix}weight"]
            if not isinstance(weight, Blocks):
                return super()._load_from_state_dict(state, prefix, *rest)
            self.weight = torch.nn.Parameter(weight, requires_grad=False)
            # A parameter made of a tensor is another object.
            self.weight.kind, self.weight.numbers_shape = weight.kind, weight.numbers_shape
            if self.bias is not None:
                self.bias = torch.nn.Parameter(state[f"{prefix}bias"], requires_grad=False)
            return None

        def _save_to_state_dict(
            self, destination: dict[str, Any], prefix: str, keep_vars: bool
        ) -> None:
            if not isinstance(self.weight, Blocks):
                return super()._save_to_state_dict(destination, prefix, keep_vars)
            destination[f"{prefix}weight"] = torch.zeros(
                self.weight.size(), dtype=torch.uint8, device="meta"
            )
            if self.bias is not None:
                destination[f"{prefix}bias"] = torch.zeros_like(self.bias, device="meta")
            return None

        def forward_comfy_cast_weights(self, input: Tensor) -> Tensor:
            if not isinstance(self.weight, Blocks):
                return super().forward_comfy_cast_weights(input)
            bias = None if self.bias is None else self.bias.to(input)
            return torch.nn.functional.linear(input, numbers(self.weight).to(input), bias)


def write(path: Path, weights: Mapping[str, Tensor], kind: Any) -> None:
    """As the converters write: norms and biases whole, convolutions and single rows in half
    precision, matrices of whole blocks in such blocks.
    """
    writer = gguf.GGUFWriter(path, "sd1")
    for name, weight in weights.items():
        if weight.ndim == 2 and len(weight) > 1 and weight.shape[1] % BLOCK == 0:
            writer.add_tensor(name, gguf.quants.quantize(weight.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, (weight if weight.ndim == 1 else weight.half()).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path: Path) -> dict[str, Tensor]:
    """A state dict, blocks as blocks."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        data, shape = (
            torch.from_numpy(tensor.data.copy()),
            torch.Size(int(side) for side in reversed(tensor.shape)),
        )
        found[tensor.name] = (
            blocks(data, tensor.tensor_type, shape)
            if data.dtype == torch.uint8
            else data.reshape(shape)
        )
    return found


def load(state: Mapping[str, Tensor]) -> Any:
    """The model of a state dict with blocks, by the host's loader.

    The host has to know its layout.
    """
    return comfy.sd.load_diffusion_model_state_dict(dict(state), {"custom_operations": Operations})


def whole(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same in float32."""
    return {
        name: numbers(weight) if isinstance(weight, Blocks) else weight.float()
        for name, weight in state.items()
    }
