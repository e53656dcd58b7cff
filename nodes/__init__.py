"""The graph nodes, one file per family."""

from comfy_api.latest import ComfyExtension, io

from .correspondences import BuildCorrespondences
from .demo_model import LoadDemoModel
from .edit_mask import FindEditMask
from .features import ExtractFeatures
from .injection import PlugAndPlay
from .inversion import InvertVideo
from .looking.comparison import CompareClips
from .looking.metrics import Metrics
from .looking.reconstruction import CheckReconstruction
from .looking.views import PreviewCorrespondences, PreviewFeatures
from .sampling import Apply, Sampler
from .stored import LoadInversion, SaveInversion
from .tuning import TuneAVideo


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
        ]
