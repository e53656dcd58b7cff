"""Results that several tests share: made once, and dropped by a fixture of `conftest.py`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

import torch


class Once:
    """Decorates functions, whose results it keeps by their arguments until it is emptied."""

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        taken = signature(function)

        @wraps(function)
        def made(*args: Any, **inputs: Any) -> Any:
            given = taken.bind(*args, **inputs)
            given.apply_defaults()
            key = function, given.args, tuple(sorted(given.kwargs.items()))
            if key not in self._made:
                # The same whoever asks first: a model made in inference mode cannot be trained.
                grad = torch.is_grad_enabled()
                with torch.inference_mode(False), torch.set_grad_enabled(grad):
                    self._made[key] = function(*args, **inputs)
            return self._made[key]

        return made

    def clear(self) -> None:
        self._made.clear()


once_a_session, once_a_module = Once(), Once()
