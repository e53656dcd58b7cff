"""ComfyUI and the pack inside this process, for tests and benchmarks."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from ..environment import ROOT
from .server import has_accelerator

PACK = "tokenflow_pack"


def import_comfyui(comfyui: Path) -> None:
    """Makes ComfyUI's modules importable, before anything else of the same name.

    ComfyUI computes on the CPU where there is nothing better.
    """
    sys.path.insert(0, str(comfyui))
    argv, sys.argv = sys.argv, sys.argv[:1]
    from comfy.cli_args import args

    sys.argv = argv
    if not has_accelerator():
        args.cpu = args.use_pytorch_cross_attention = True


def import_pack() -> None:
    """Imports the pack from its folder as ComfyUI does.

    Its name is tokenflow_pack, whatever the folder is called.
    """
    spec = importlib.util.spec_from_file_location(
        PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
