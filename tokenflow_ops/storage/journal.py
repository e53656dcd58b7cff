"""What the model has answered in a sampling run, evaluation by evaluation, as files of a folder.

A sampler does nothing but arithmetic on what the model answers. So a run that was stopped is done
again with the answers that were kept in place of the model, and goes on to the same bits, whatever
the sampler keeps from step to step.

`00000.safetensors`, `00001.safetensors` ... hold an evaluation each: the denoised frames of every
list of conditionings, and in the metadata a record in JSON with its SHA-256. What follows a gap or
a damaged file does not count.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .whole import sha256, sync_folder, write_whole

RECORD, CHECKSUM = "tokenflow_evaluation", "tokenflow_evaluation_sha256"


@dataclass(frozen=True)
class Answer:
    """What the model has answered in one evaluation.

    Attributes:
        question: A digest of what it was asked: noisy frames and their noise level.
        denoised: For each list of conditionings the denoised frames, (N, C, h, w).
        usable: How many evaluations a run can take over from a journal that ends with this one. It
            is less than all where the next one needs what this one has left in the run.
        state: Numbers that the run has to begin again with.
    """

    question: str
    denoised: list[Tensor]
    usable: int
    state: Mapping[str, int] = field(default_factory=dict)


class Journal:
    """The answers of one run.

    Args:
        folder: Where they are; it is made with the first answer.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def usable(self) -> int:
        """Counts the answers that a run can take over; it reads them all."""
        number = usable = 0
        while (answer := self.read(number)) is not None:
            number, usable = number + 1, answer.usable
        return min(usable, number)

    def read(self, number: int) -> Answer | None:
        """Reads an answer.

        Args:
            number: Of the evaluation, from 0.

        Returns:
            The answer, on the CPU; None where there is none, or no whole one.
        """
        try:
            with safe_open(self._file(number), framework="pt") as file:
                record = _whole_text(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in record["tensors"]}
            if any(sha256(tensors[name]) != known for name, known in record["tensors"].items()):
                return None
            shape = record["shape"]
            denoised = [
                tensors[name] if name in tensors else torch.zeros(shape)
                for name in map(str, range(record["lists"]))
            ]
            return Answer(record["question"], denoised, record["usable"], record["state"])
        # RuntimeError is torch's, for memory and memory maps.
        except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError):
            return None

    def write(self, number: int, answer: Answer) -> None:
        """Writes an answer. When it returns, the answer outlasts a power cut.

        Args:
            number: Of the evaluation, from 0.
            answer: What to write. Lists that nothing was asked for are zeros, and take no room.

        Raises:
            OSError: As the file system does.
        """
        tensors = {
            str(i): part.detach().cpu().contiguous()
            for i, part in enumerate(answer.denoised)
            if bool(part.any())
        }
        record = json.dumps(
            {
                "question": answer.question,
                "usable": answer.usable,
                "state": dict(answer.state),
                "lists": len(answer.denoised),
                "shape": list(answer.denoised[0].shape),
                "tensors": {name: sha256(tensor) for name, tensor in tensors.items()},
            }
        )
        checksum = hashlib.sha256(record.encode()).hexdigest()
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
            sync_folder(self.folder.parent)
        write_whole(self._file(number), tensors, {RECORD: record, CHECKSUM: checksum})
        sync_folder(self.folder)

    def remove(self) -> None:
        """Removes all answers, as far as the file system lets go of them."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # other runs have theirs beside
            self.folder.parent.rmdir()

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:05}.safetensors"


def _whole_text(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Raises: ValueError or KeyError for one that is not whole."""
    text = metadata[RECORD]
    if metadata[CHECKSUM] != hashlib.sha256(text.encode()).hexdigest():
        raise ValueError("a damaged record")
    record: dict[str, Any] = json.loads(text)
    return record
