"""What the nodes do on a disk that is really full, in a process of its own: a page that cannot be
written ends the process.

    python -m tests.host.faults.tools.full_disk FOLDER (mounted | limited)

mounted: mounts a small file system at FOLDER and fills it.
limited: the system refuses files beyond a size.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .plain import latents, model, source_prompt

PAGE = 4096
DISK = 64 * PAGE


@contextmanager
def full(folder: Path, kind: str) -> Iterator[None]:
    """A page is left on the disk, or no file may get longer than one."""
    if kind == "mounted":
        filler = folder / "filler"
        filler.write_bytes(bytes(DISK - PAGE - 4 * PAGE))
        with filler.open("ab", buffering=0) as more:
            while os.statvfs(folder).f_bavail > 1:
                more.write(bytes(PAGE))
        yield
        filler.unlink()
        return
    resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE, resource.RLIM_INFINITY))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def refused(folder: Path, kind: str, socket: str, run: Any) -> Any:
    """Runs on a full disk, which has to be told and to leave nothing, and then on one with room.

    Returns: what the latter gave.
    """
    from tokenflow_pack.host.validation.errors import NodeError

    def found() -> list[Path]:
        return [path for path in folder.rglob("*") if path.name != "filler" and not path.is_dir()]

    before = found()
    with full(folder, kind):
        try:
            run()
        except NodeError as error:
            said = error
        else:
            raise AssertionError("the disk was not full")
        assert found() == before, found()
    assert said.socket == socket, said
    assert "No space left" in said.found or "File too large" in said.found, said
    return run()


def main() -> None:
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    if kind == "mounted":
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder], check=True)
    from launch.comfyui.inprocess import ROOT, import_comfyui, import_pack

    import_comfyui(Path(os.environ.get("COMFYUI_PATH") or ROOT / ".host" / "ComfyUI"))
    import_pack()
    import folder_paths
    from tokenflow_pack.host import memory
    from tokenflow_pack.nodes.features import ExtractFeatures
    from tokenflow_pack.nodes.inversion import InvertVideo
    from tokenflow_pack.nodes.stored import SaveInversion

    from ...helpers import call

    folder_paths.set_temp_directory(str(folder / "temp"))
    folder_paths.set_output_directory(str(folder / "output"))
    (folder / "output").mkdir()
    memory.fits_in_memory = lambda size: False
    (inversion, *_) = refused(
        folder,
        kind,
        "latents",
        lambda: call(InvertVideo.execute, model(), latents(), source_prompt(), steps=2),
    )
    refused(
        folder,
        kind,
        "storage",
        lambda: call(ExtractFeatures.execute, model(), inversion, storage="disk"),
    )
    refused(folder, kind, "filename_prefix", lambda: call(SaveInversion.execute, inversion, "kept"))
    print("refused")


if __name__ == "__main__":
    main()
