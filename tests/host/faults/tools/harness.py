"""A host in this process whose runs are broken on purpose, and what has to hold after each."""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
import torch
from tokenflow_pack.host.files.folders import SUFFIX
from tokenflow_pack.tokenflow_ops.storage.stored import read_inversion
from torch import Tensor

import nodes

from ...helpers import executor
from .graph import Keep, Prompt, plain
from .plain import model

DESCRIPTORS = Path("/proc/self/fd")


@dataclass(frozen=True)
class Level:
    """What is alive: tensors and their bytes, open files,
    and the pack's files outside the output folder.
    """

    tensors: int
    size: int
    opened: Counter[str]
    files: tuple[str, ...]

    @classmethod
    def now(cls) -> Level:
        """After a collection. Tensors are those made since `gc.freeze()`."""
        gc.collect()
        alive = [one for one in gc.get_objects() if _is_tensor(one)]
        storages = {
            one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
            for one in alive
            if one.device.type != "meta"
        }
        files = (
            path.name
            for path in Path(folder_paths.get_temp_directory()).glob("**/*")
            if "tokenflow" in path.name.lower()
        )
        return cls(len(alive), sum(storages.values()), _opened(), tuple(sorted(files)))

    def check(self, now: Level) -> None:
        """Nothing is there that was not:
        what earlier tests of this process have left may go at any time.
        """
        assert (now.tensors, now.size, now.files) == (self.tensors, self.size, self.files), (
            now,
            self,
        )
        assert now.opened <= self.opened, now.opened - self.opened


def _opened() -> Counter[str]:
    """The files that this process's descriptors are open on, where the system tells.

    Threads of earlier tests open and close sockets.
    """
    found: Counter[str] = Counter()
    for descriptor in DESCRIPTORS.iterdir() if DESCRIPTORS.exists() else ():
        with suppress(FileNotFoundError):  # the one that lists them
            name = str(descriptor.readlink())
            found[name] += name.startswith("/")
    return found


def _is_tensor(thing: Any) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what deprecated proxies say when they are looked at
        try:
            return isinstance(thing, Tensor)
        except Exception:  # proxies of things that are gone
            return False


@dataclass
class Outcome:
    """How a prompt ended. error: the exception's full name, "interrupted", or None. message: its
    text. node: where.
    """

    error: str | None
    message: str = ""
    node: str = ""


@dataclass
class Bench:
    """The host's queue: one executor, as the server has, with nothing behind it. output: where Save
    Inversion writes.

    reference: the plain run's latents in a process without the pack.
    """

    output: Path
    reference: Tensor

    def __post_init__(self) -> None:
        self.before_node: Callable[[str], None] = lambda node: None
        self.executor = executor(self._tell)

    def _tell(self, event: Any, data: Any, _: Any = None) -> None:
        if event == "executing":
            self.before_node(data["node"])

    def run(self, prompt: Prompt) -> Outcome:
        """Runs a prompt to its end, of whatever kind."""
        Keep.kept.clear()
        outputs = [name for name, node in prompt.items() if _is_output(node["class_type"])]
        self.executor.execute(prompt, "prompt", {"client_id": "me"}, outputs)
        if self.executor.success:
            return Outcome(None)
        event, data = self.executor.status_messages[-1]
        if event == "execution_interrupted":
            return Outcome("interrupted", node=data["node_id"])
        return Outcome(data["exception_type"], data["exception_message"], data["node_id"])

    def latents(self, prompt: Prompt) -> Tensor:
        """The latents of a prompt that has to succeed."""
        outcome = self.run(prompt)
        assert outcome.error is None, outcome
        return Keep.kept[0]

    def settle(self, prompt: Prompt) -> None:
        """Learns how the good run of a prompt ends, and what is alive when all is over.

        Leaves the plain run's results in the cache.
        """
        self.prompt, self.good = prompt, self.latents(prompt)
        self.inversions = self.saved()
        for last in (False, False, True):
            if last:
                gc.collect()
                gc.freeze()
            self.latents(plain())
            self.latents(prompt)
        self.latents(plain())
        self.clear_output()
        self.level = Level.now()

    def check_after(self, outcome: Outcome, number: int, tolerance: float = 0.0) -> None:
        """What has to hold after a fault: nothing is wrapped, whole or absent files, the bits of
        good runs, what is alive.

        outcome: of the broken run, which may have got to a good end all the same, within the
        tolerance of the good one. number: of the fault; the plain run comes next after odd ones,
        the edit, on what the broken one has finished, after even ones.
        """
        assert not [name for name, part in model().model.named_modules() if "forward" in vars(part)]
        self.check_saved(tolerance)
        runs = [(self.prompt, self.good), (plain(), self.reference)]
        if outcome.error is None:
            assert close(Keep.kept[0], self.good, tolerance)
        for prompt, wanted in (
            [*runs[1:], *runs] if outcome.error is None or number % 2 or tolerance else runs
        ):
            assert torch.equal(self.latents(prompt), wanted)
            self.check_saved(tolerance)
        self.clear_output()
        self.level.check(Level.now())

    def saved(self) -> list[Tensor]:
        """The paths in the stored inversions.

        Raises: StoredInversionError for one that is not whole.
        """
        return [
            read_inversion(path, 2**30)[0].latents
            for path in sorted(self.output.rglob(f"*{SUFFIX}"))
        ]

    def check_saved(self, tolerance: float = 0.0) -> None:
        """Stored inversions are whole, and there is no other file."""
        paths = list(self.output.rglob("*"))
        assert not [
            path
            for path in paths
            if path.name.startswith(".") or not (path.is_dir() or path.name.endswith(SUFFIX))
        ]
        assert all(close(found, self.inversions[0], tolerance) for found in self.saved())

    def clear_output(self) -> None:
        for path in self.output.rglob("*"):
            if path.is_file():
                path.unlink()


def close(found: Tensor, wanted: Tensor, tolerance: float) -> bool:
    """Whether tensors are the same within a relative error, or to the bit."""
    return (
        torch.equal(found, wanted)
        if tolerance == 0
        else float((found - wanted).norm()) <= tolerance * float(wanted.norm())
    )


def _is_output(kind: str) -> bool:
    return bool(getattr(nodes.NODE_CLASS_MAPPINGS[kind], "OUTPUT_NODE", False))
