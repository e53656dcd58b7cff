"""torch.compile, as the host's own node puts it on a model."""

from __future__ import annotations

from comfy_api.torch_helpers import set_torch_compile_wrapper

from ..helpers import edit, injection, relative_error, tiny_model


def test_a_compiled_model_is_edited_as_an_eager_one() -> None:
    model = tiny_model().clone()
    # The tracing without the compiler, which takes minutes.
    set_torch_compile_wrapper(model=model, backend="eager")
    found = edit(model, injection=injection())
    assert relative_error(found, edit(injection=injection())) < 1e-5
