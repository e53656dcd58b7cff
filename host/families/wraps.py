"""Wraps the `forward` of modules of the shared model for the length of one sampling run.

Modules are never replaced: weight names, LoRA and partial loading go on as if nothing had happened.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP

_ABSENT = object()


def _eager(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps a wrapper out of a compiled model's graphs: every pass would be traced anew.

    The import takes seconds, and is left to users who compile.
    """
    return torch.compiler.disable(forward) if "torch._dynamo" in sys.modules else forward


class ForwardWraps:
    """Wrappers around modules' `forward`: installed before a run and undone after it.

    Each run has its own.

    Args:
        paths: The modules' paths in the diffusion model.
        make: Called with (path, module); returns the wrapper, called with (original
            forward, *args, **kwargs).
    """

    def __init__(
        self, paths: tuple[str, ...], make: Callable[[str, Any], Callable[..., Any]]
    ) -> None:
        self._paths = paths
        self._make = make
        self._installed: list[list[tuple[Any, Any, Any]]] = []

    def during_sampling(self, patcher: Any, key: str) -> None:
        """Wraps from the host's pre-run on until sampling has ended, in whatever way.

        Not until ON_CLEANUP: the host leaves out the callbacks that come after one that fails.

        Args:
            patcher: The ModelPatcher that is sampled.
            key: The key of our callback and wrapper on it.
        """
        patcher.add_callback_with_key(
            CallbacksMP.ON_PRE_RUN, key, lambda loaded: self._install(loaded.model.diffusion_model)
        )
        patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, self._sample)

    def _install(self, diffusion_model: Any) -> None:
        wrapped: list[tuple[Any, Any, Any]] = []
        self._installed.append(wrapped)
        for path in self._paths:
            module = diffusion_model.get_submodule(path)
            ours = _eager(partial(self._make(path, module), module.forward))
            wrapped.append((module, module.__dict__.get("forward", _ABSENT), ours))
            module.forward = ours

    def _sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Samples, and puts back what was there before.

        A forward that somebody wrapped after us stays; ours does nothing inside it.
        """
        before = len(self._installed)
        try:
            return executor(*args, **kwargs)
        finally:
            while len(self._installed) > before:
                for module, original, ours in reversed(self._installed.pop()):
                    if module.__dict__.get("forward") is not ours:
                        continue
                    if original is _ABSENT:
                        del module.forward
                    else:
                        module.forward = original
