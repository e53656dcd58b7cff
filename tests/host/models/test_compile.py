"""torch.compile, as the host's own node puts it on a model."""

from __future__ import annotations

from typing import Any

from comfy_api.torch_helpers import set_torch_compile_wrapper
from tokenflow_pack.tokenflow_ops import DEEP_FEATURES

from ..helpers import injection, relative_error
from ..small import edit, tiny_model
from ..tiny_transformers import tiny_transformer
from ..transformers.edits import edited


def test_a_compiled_model_is_edited_as_an_eager_one() -> None:
    model = tiny_model().clone()
    # The tracing without the compiler, which takes minutes.
    set_torch_compile_wrapper(model=model, backend="eager")
    found = edit(model, injection=injection())
    assert relative_error(found, edit(injection=injection())) < 1e-5


def test_a_compiled_transformer_is_edited_as_an_eager_one_and_traced_once() -> None:
    traced: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        traced.append(graph)
        return graph.forward

    model = tiny_transformer("SD 3").clone()
    set_torch_compile_wrapper(model=model, backend=backend)
    found = edited("SD 3", model, propagation=DEEP_FEATURES)
    assert relative_error(found, edited("SD 3", propagation=DEEP_FEATURES)) < 1e-5
    first = len(traced)
    assert first
    edited("SD 3", model, propagation=DEEP_FEATURES)
    assert len(traced) == first
