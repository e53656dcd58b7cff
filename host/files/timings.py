"""What was measured on this machine, in a file in the host's user folder."""

from __future__ import annotations

import json
import os
import uuid
from collections import UserDict
from contextlib import suppress
from functools import cache
from pathlib import Path

import folder_paths

from ...tokenflow_ops.matching.fastest import NAMES

FILE = "tokenflow_search_timings.json"
MOST_BYTES = 1 << 20
LONGEST = 3600.0


class StoredTimings(UserDict[str, dict[str, float]]):
    """Seconds by backend, kept in memory and, where it can be written, in a JSON file.

    The form is `tokenflow_ops.matching.fastest.Timings`. What cannot be read or is no timing counts
    as not measured.

    Args:
        path: The JSON file. It is not read here: see `read`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    @classmethod
    def read(cls, path: Path) -> StoredTimings:
        """Reads a file's timings."""
        found = cls(path)
        found.data = _read(path)
        return found

    def __setitem__(self, key: str, timing: dict[str, float]) -> None:
        # Another process may have written meanwhile.
        self.data = _read(self._path) | self.data | {key: timing}
        beside = self._path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            beside.write_text(json.dumps(self.data, indent=1), encoding="utf-8")
            os.replace(beside, self._path)
        except OSError:  # then it is known only until the host ends
            with suppress(OSError):
                beside.unlink(missing_ok=True)


@cache
def search_timings() -> StoredTimings:
    """Returns this machine's timings, read once."""
    return StoredTimings.read(Path(folder_paths.get_user_directory(), FILE))


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return {}
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return (
        {key: timing for key, timing in kept.items() if _is_timing(timing)}
        if isinstance(kept, dict)
        else {}
    )


def _is_timing(found: object) -> bool:
    """Tells whether it is seconds of every backend."""
    return (
        isinstance(found, dict)
        and found.keys() == NAMES.keys()
        and all(isinstance(seconds, float) and 0 < seconds < LONGEST for seconds in found.values())
    )
