"""What a run leaves: a folder of files for every job, and `manifest.jsonl` with a record for each.

A record is written after its files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .jobs import Job
from .jobs.table import MANIFEST

LOCK, UNFINISHED = ".lock", ".unfinished"
Record = dict[str, Any]


class OutputError(RuntimeError):
    """The output folder cannot be used; the message says why and what to do."""


class Results:
    """The output folder of a run. Use `opened`, which keeps others out."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, folder / MANIFEST
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        self.records = read_records(self.manifest)

    def is_done(self, job: Job) -> bool:
        """Tells whether a job has been done.

        That is so if its last record is of the same prompt and files, and what it left is still
        there in these sizes.
        """
        record = self.records.get(job.name, {})
        return (
            record.get("state") == "done"
            and record.get("key") == job.key
            and all(self._is_there(job, file) for file in record["files"])
        )

    def _is_there(self, job: Job, file: Record) -> bool:
        path = self.folder / job.name / file["name"]
        return path.is_file() and path.stat().st_size == file["bytes"]

    def save(self, job: Job, name: str, content: bytes) -> Record:
        """Writes a file, which is not in its place before `finish`.

        Args:
            job: The job that made it.
            name: Below the job's folder.
            content: The file's bytes.

        Returns:
            Name, size in bytes and checksum (SHA-256).

        Raises:
            OutputError: For a name that leads out of the folder.
        """
        folder = self.folder / UNFINISHED / job.name
        path = confined(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return {
            "name": path.relative_to(folder.resolve()).as_posix(),
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }

    def discard(self, job: Job) -> None:
        """Forgets what was saved of an attempt that failed."""
        shutil.rmtree(self.folder / UNFINISHED / job.name, ignore_errors=True)

    def finish(self, job: Job, record: Record) -> None:
        """Puts a job's files in place of those of its former record.

        Then its record comes behind the others. Nothing else is touched.

        Args:
            job: The job.
            record: What is written into the manifest; its files have been saved.
        """
        folder, new = self.folder / job.name, [file["name"] for file in record["files"]]
        for name in new:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / UNFINISHED / job.name / name).replace(folder / name)
        for file in self.records.get(job.name, {}).get("files", []):
            if new and file["name"] not in new:
                confined(folder, file["name"]).unlink(missing_ok=True)
        self.discard(job)
        with self.manifest.open("ab") as file:
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.records[job.name] = record


@contextmanager
def opened(folder: Path) -> Iterator[Results]:
    """Opens the output folder, made if missing, for one run at a time.

    The lock is the system's: it goes with the process, however that ends.

    Raises OutputError if another run has it, or for a manifest that is none.
    """
    from filelock import FileLock, Timeout  # comes with Ray

    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout as error:
        raise OutputError(
            f"{folder} is used by another run. "
            "Wait for its end, or give another folder by --output."
        ) from error
    with lock:
        yield Results(folder)


def read_records(manifest: Path) -> dict[str, Record]:
    """Reads {job: its last record}. A last line that a killed run left torn is cut off.

    Raises OutputError for what is no record.
    """
    if not manifest.exists():
        return {}
    content = manifest.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(manifest, len(whole))
    records: dict[str, Record] = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not _is_record(record):
            found = f"{manifest}, line {number}, is no record of a job"
            raise OutputError(f"{found}. Remove that line, or give another folder by --output.")
        records[record["job"]] = record
    return records


def _is_record(found: Any) -> bool:
    """Whether it has what a run asks of a record."""
    files = found.get("files") if isinstance(found, dict) else None
    if not isinstance(files, list) or not isinstance(found.get("job"), str):
        return False
    return all(
        isinstance(file, dict) and isinstance(file.get("name"), str) and "bytes" in file
        for file in files
    )


def confined(folder: Path, name: str) -> Path:
    """Finds the file of a name inside a folder.

    Args:
        folder: The folder.
        name: Relative to it.

    Returns:
        The file's path, without links.

    Raises:
        OutputError: For a name that leads out of the folder.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or path == folder.resolve():
        raise OutputError(
            f"the result {name!r} would lie outside of {folder}. "
            "Save it with a name that stays inside."
        )
    return path
