"""A model whose prompts run at the same time, each in a thread and on a copy of the model: the
host's MultiGPU CFG Split.

Where the host has it, its own code runs. Older hosts get the same out of what they have: a copy of
the model, a pool of threads as newer hosts', and a wrapper that gives every list of conditionings
to the next thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ..tiny_models import SMALL_SD15, tiny_unet

KEY = "two threads"
# The host tells devices apart by their names, and has one thread for each.
DEVICES = torch.device("cpu"), torch.device("cpu", 0)
HOSTS_OWN = find_spec("comfy.multigpu") is not None


def in_two_threads(model: Any) -> Any:
    """A clone of a patched tiny SD 1.5 that runs in two threads."""
    return _split(model) if HOSTS_OWN else _emulated(model)


def _split(model: Any) -> Any:
    clone = model.clone()
    copied = clone.clone(model_override=(tiny_unet(SMALL_SD15).model, ({}, {}, {}, set())))
    copied.load_device, copied.is_multigpu_base_clone = DEVICES[1], True
    clone.set_additional_models("multigpu", [copied])
    return clone


class Pool:
    """As the host's: what is handed over is answered in order, errors included."""

    def __init__(self) -> None:
        self.devices = list(DEVICES)
        self._work: dict[torch.device, queue.Queue] = {device: queue.Queue() for device in DEVICES}
        self._results: dict[torch.device, queue.Queue] = {
            device: queue.Queue() for device in DEVICES
        }
        for device in DEVICES:
            threading.Thread(target=self._loop, args=(device,), daemon=True).start()

    def _loop(self, device: torch.device) -> None:
        while (item := self._work[device].get()) is not None:
            function, arguments = item
            try:
                self._results[device].put((function(*arguments), None))
            except Exception as error:
                self._results[device].put((None, error))

    def submit(self, device: torch.device, function: Callable[..., Any], *arguments: Any) -> None:
        self._work[device].put((function, arguments))

    def get_result(self, device: torch.device) -> tuple[Any, Exception | None]:
        return self._results[device].get()

    def shutdown(self) -> None:
        for work in self._work.values():
            work.put(None)


def _emulated(model: Any) -> Any:
    clone, copied = model.clone(), model.clone()
    copied.model = tiny_unet(SMALL_SD15).model

    def outer_sample(executor: Any, *args: Any, **kwargs: Any) -> Any:
        pool = executor.class_obj.model_options["multigpu_thread_pool"] = Pool()
        try:
            return executor(*args, **kwargs)
        finally:
            pool.shutdown()
            copied.cleanup()

    def calc_cond_batch(
        executor: Any, own: Any, conds: Any, x: Tensor, timestep: Tensor, options: dict[str, Any]
    ) -> list[Tensor]:
        pool, models = (
            options["multigpu_thread_pool"],
            dict(zip(DEVICES, (own, copied.model), strict=True)),
        )
        work = {
            device: [i for i in range(len(conds)) if DEVICES[i % 2] == device] for device in DEVICES
        }

        def evaluate(device: torch.device) -> dict[int, Tensor]:
            with torch.no_grad():
                lists = [entries if i in work[device] else None for i, entries in enumerate(conds)]
                found = executor(models[device], lists, x, timestep, options)
            return {i: found[i] for i in work[device]}

        used = [device for device in DEVICES if work[device]]
        for device in used:
            pool.submit(device, evaluate, device)
        denoised: dict[int, Tensor] = {}
        for device in used:
            part, error = pool.get_result(device)
            if error is not None:
                raise error
            denoised |= part
        return [denoised[i] for i in range(len(conds))]

    clone.add_callback_with_key(CallbacksMP.ON_PRE_RUN, KEY, lambda _: copied.pre_run())
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer_sample)
    clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, calc_cond_batch)
    return clone
