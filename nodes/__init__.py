"""The graph nodes, one file per family."""

from typing import Any

from comfy_api import latest
from comfy_api.latest import ComfyExtension, io

from .correspondences import BuildCorrespondences
from .demo_model import LoadDemoModel
from .edit_mask import FindEditMask
from .features import ExtractFeatures
from .injection import PlugAndPlay
from .inversion import InvertVideo
from .keyframes.carry import CarryKeyframes
from .keyframes.pick import PickKeyframes
from .looking.comparison import CompareClips
from .looking.metrics import Metrics
from .looking.reconstruction import CheckReconstruction
from .looking.views import PreviewCorrespondences, PreviewFeatures
from .sampling.apply import Apply
from .sampling.sampler import Sampler
from .stored import LoadInversion, SaveInversion
from .tuning import TuneAVideo
from .video.decoding import DecodeToVideo
from .video.encoding import EncodeVideo
from .video.folder import LoadFromFolder

# Nodes that have got another id: by the old one what `io.NodeReplace` takes beside it. A release
# that changes what workflows hold on to needs an entry (tests/host/looking/test_released.py).
RENAMED: dict[str, dict[str, Any]] = {}


async def tell_renamed() -> None:
    """Tells newer hosts, which replace nodes, which of ours have got another id."""
    if not RENAMED or not hasattr(io, "NodeReplace"):
        return
    host = latest.ComfyAPI()
    for old, new in RENAMED.items():
        await host.node_replacement.register(io.NodeReplace(old_node_id=old, **new))


class TokenFlowExtension(ComfyExtension):
    """All nodes of the pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            InvertVideo,
            SaveInversion,
            LoadInversion,
            ExtractFeatures,
            BuildCorrespondences,
            PlugAndPlay,
            FindEditMask,
            Sampler,
            Apply,
            Metrics,
            CompareClips,
            CheckReconstruction,
            PreviewFeatures,
            PreviewCorrespondences,
            TuneAVideo,
            LoadDemoModel,
            EncodeVideo,
            DecodeToVideo,
            LoadFromFolder,
            PickKeyframes,
            CarryKeyframes,
        ]
