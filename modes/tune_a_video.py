"""Tune-A-Video's one-shot tuning (arXiv 2212.11565, sections 3.2 and 3.3).

The query weights of one image model are trained on one clip. The loop, the LoRA and the patches on
weights are the host's own (`comfy_extras.nodes_train`, `comfy.weight_adapter`): its sampler for
training is given one item, the clip, so that all frames share a step and its noise level, and its
model attends as in the edit.

Unlike the authors' code:
- An image UNet has no temporal attention. Theirs is added behind every block and trained from
  scratch with the queries; here only the queries of self- and cross-attention are.
- The change of a weight is trained, so AdamW's decay pulls towards the checkpoint, not towards zero
  (1.5e-4 of it in 500 steps).
- Noise levels are uniform over the continuous timesteps, not over the whole ones.
- No scaling of the loss: bfloat16 or float32, where theirs is float16.
- The inversion that follows is DDIM Invert Video's, frame by frame with the source prompt. Theirs
  goes through the video model with none.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from comfy import model_management
from comfy.ldm.modules.attention import BasicTransformerBlock, attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.weight_adapter import WeightAdapterTrainBase, adapter_maps
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils.checkpoint import checkpoint

from ..host.families.unet import find
from ..host.families.wraps import ForwardWraps
from ..host.internals import TRAINING, check_host
from ..host.runs.model_call import ModelCall
from ..host.runs.patching import patch
from ..host.source import SourceRun
from ..host.validation.errors import NodeError
from ..tokenflow_ops.backbone import Backbone
from ..tokenflow_ops.passes import SparseCausalPass

KEY = "tokenflow-tuning"
# The norm of all gradients together is clipped to it, as in the authors' code.
LARGEST_GRADIENT = 1.0
PREFIX = "diffusion_model."  # what the host's names of weights begin with


@dataclass(frozen=True)
class Tuning:
    """How to train.

    Attributes:
        steps: Steps of the optimiser.
        learning_rate: AdamW's.
        rank: The rank of a LoRA, or 0 for whole weights.
        seed: Of noise, noise levels and LoRA.
        checkpointing: Whether blocks are computed again for their gradients instead of kept.
    """

    steps: int
    learning_rate: float
    rank: int
    seed: int
    checkpointing: bool


class WeightChange(WeightAdapterTrainBase):
    """A change of all numbers of a weight, from zero on, float32.

    It is saved as `diff`, the name that the host's loader knows it by.

    Args:
        weight: The weight that is to change.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.diff = torch.nn.Parameter(torch.zeros(weight.shape))

    def __call__(self, w: Tensor) -> Tensor:
        return (w + self.diff).to(w.dtype)

    def passive_memory_usage(self) -> int:
        return self.diff.nbytes


@dataclass
class NoiseLevel:
    """The noise level that the model was asked for last; the loss depends on it.

    Attributes:
        sigma: Noise over signal, (1,).
    """

    sigma: Tensor = field(default_factory=lambda: torch.ones(1))


class TuningRun(SourceRun):
    """Evaluates the clip as the edit will: every frame attends to the first and the previous one.

    All frames are in one pass.

    Args:
        node: The node's name, for errors.
        layers: The self-attention layers.
        level: Is told the noise level of every evaluation.
    """

    def __init__(self, node: str, layers: tuple[str, ...], level: NoiseLevel) -> None:
        super().__init__(node)
        self.layers, self.level = frozenset(layers), level

    def evaluate(self, call: ModelCall) -> list[Tensor]:
        self.level.sigma = call.timestep[:1]
        return call.run(self, SparseCausalPass(torch.arange(len(call.x)), layers=self.layers))


def tune_queries(
    node: str, model: Any, latents: Tensor, positive: Any, tuning: Tuning
) -> tuple[dict[str, Tensor], list[float]]:
    """Trains `attn1.to_q` and `attn2.to_q` of all transformer blocks on a clip.

    The given model is not touched.

    Args:
        node: The node's name, for errors.
        model: The user's ModelPatcher.
        latents: The clip, (N, C, h, w) as on a LATENT socket.
        positive: The source prompt, a CONDITIONING of one plain entry.
        tuning: How to train.

    Returns:
        The change as the host's LORA_MODEL, and the loss of every step: the mean squared error of
        what the model predicts (noise, v).

    Raises:
        NodeError: If the host's training is not the known one, the loss is not finite, or the model
            has no gradient.
    """
    # Nodes run in inference mode, whose tensors have no gradients, and the host's loop draws noise
    # levels from the global generator.
    with (
        torch.inference_mode(False),
        torch.random.fork_rng(devices=[]),
        _told_to_host(),
        warnings.catch_warnings(),
    ):
        # float32 needs no autocast.
        warnings.filterwarnings("ignore", "In .* autocast, but the target dtype is not supported")
        torch.default_generator.manual_seed(tuning.seed)
        layers, level = _layers(model).attention, NoiseLevel()
        patched = patch(model, lambda: TuningRun(node, layers, level), len(latents))
        patched.set_model_compute_dtype(_training_dtype(model))
        patched.model_options["transformer_options"]["optimized_attention_override"] = (
            _attention_with_gradient
        )
        if tuning.checkpointing:
            _checkpoint_blocks(patched)
        adapters = _adapt(patched, tuning.rank)
        # As the host's own node does.
        model_management.load_models_gpu([patched], memory_required=1e20, force_full_load=True)
        losses = _train(
            node,
            level,
            patched,
            latents.clone(),
            _cloned(positive),
            torch.nn.ModuleList(adapters.values()),
            tuning,
        )
        device = model_management.intermediate_device()
        lora = {
            f"{path}.{name}": weight
            for path, adapter in adapters.items()
            for name, weight in adapter.named_parameters()
        }
        return {name: weight.detach().to(device) for name, weight in lora.items()}, losses


def _train(
    node: str,
    level: NoiseLevel,
    patched: Any,
    latents: Tensor,
    positive: Any,
    adapters: torch.nn.Module,
    tuning: Tuning,
) -> list[float]:
    """The loss of every step. The adapters are trained in place."""
    weights = [weight for weight in adapters.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=tuning.learning_rate)

    def clip_gradients(*_: Any) -> None:
        clip_grad_norm_(weights, LARGEST_GRADIENT)

    optimizer.register_step_pre_hook(clip_gradients)
    sampling = patched.get_model_object("model_sampling")
    losses: list[float] = []

    def loss(predicted: Tensor, clean: Tensor) -> Tensor:
        if not predicted.requires_grad:
            found = "what it returns has no gradient: something computes it apart from its weights."
            raise NodeError(
                node,
                "model",
                found,
                "Connect the model without patches that replace the UNet (TensorRT and its like).",
            )
        # The host compares clean frames. What the model predicts has a share in them that depends
        # on the noise level.
        sigma = level.sigma
        share = sampling.calculate_denoised(sigma, torch.ones_like(sigma), torch.zeros_like(sigma))
        return ((predicted.float() - clean.float()) / share.float()).square().mean()

    def note(value: float) -> None:
        losses.append(value)
        if not math.isfinite(value):
            raise NodeError(
                node,
                "learning_rate",
                f"the loss is {value} at step {len(losses)} "
                f"with a learning rate of {tuning.learning_rate}.",
                "Set it lower; at step 1 run the model in a higher precision "
                "(--force-fp32 or --bf16-unet).",
            )

    # The host takes the items of its list as they are: in the model's own space.
    items = [patched.get_model_object("latent_format").process_in(latents)]
    dtype = _training_dtype(patched)
    try:
        check_host(TRAINING)
        from comfy_extras import nodes_custom_sampler, nodes_train

        trainer = nodes_train.TrainSampler(
            loss,
            optimizer,
            note,
            total_steps=tuning.steps,
            seed=tuning.seed,
            training_dtype=dtype,
            real_dataset=items,
        )
        guider = getattr(nodes_train, "TrainGuider", nodes_custom_sampler.Guider_Basic)(patched)
    except (ImportError, AttributeError, TypeError) as error:
        remedy = "Use a version of ComfyUI that this pack was tested with."
        raise NodeError(
            node,
            "model",
            f"this ComfyUI trains in another way than is known here ({error}).",
            remedy,
        ) from error
    guider.set_conds(positive)
    # Where other samplers take noise levels, this one counts its items.
    guider.sample(
        torch.zeros_like(latents), latents, trainer, torch.zeros(len(items)), seed=tuning.seed
    )
    return losses


def _layers(model: Any) -> Backbone:
    found = find(model.model.diffusion_model)
    assert found is not None, "checked by the node"
    return found


def _training_dtype(model: Any) -> torch.dtype:
    """float32 for models that compute in it, else bfloat16 where the device has it.

    bfloat16's range needs no scaling of the loss.
    """
    computes_in = model.get_model_object("manual_cast_dtype") or model.model_dtype()
    if computes_in == torch.float32 or not model_management.should_use_bf16(model.load_device):
        return torch.float32
    return torch.bfloat16


def _adapt(patched: Any, rank: int) -> dict[str, WeightAdapterTrainBase]:
    """Adds what trains to the query weights, by the names of their modules."""
    layers = _layers(patched)
    queries = {f"{PREFIX}{path}.to_q" for path in (*layers.attention, *layers.cross.values())}
    adapters: dict[str, WeightAdapterTrainBase] = {}
    for name, module in patched.model.named_modules():
        if not hasattr(module, "weight_function"):
            continue
        # The host copies weights that have a function: without a copy, what was loaded in inference
        # mode could not take part.
        for kind in ("weight", "bias"):
            patched.add_weight_wrapper(f"{name}.{kind}", Tensor.detach)
        if name in queries:
            lora = adapter_maps["LoRA"]
            adapters[name] = (
                lora.create_train(module.weight, rank=rank, alpha=float(rank))
                if rank
                else WeightChange(module.weight)
            )
            patched.add_weight_wrapper(f"{name}.weight", adapters[name])
    return adapters


def _attention_with_gradient(_: Any, *args: Any, **kwargs: Any) -> Tensor:
    """PyTorch's own attention in place of what the user chose.

    SageAttention, for one, has no gradient.
    """
    return attention_pytorch(*args, **kwargs)


def _checkpoint_blocks(patched: Any) -> None:
    """Computes transformer blocks and ResBlocks again for their gradients.

    That takes the memory of one block instead of all, and about 40 % more time.
    """
    paths = tuple(
        path
        for path, module in patched.model.diffusion_model.named_modules()
        if isinstance(module, BasicTransformerBlock | ResBlock)
    )
    ForwardWraps(paths, lambda path, module: _recomputed).during_sampling(patched, KEY)


def _recomputed(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # The host writes the next block's name into the options before the gradients are computed.
    kept: dict[str, Any] = {
        name: dict(value) if isinstance(value, Mapping) else value for name, value in kwargs.items()
    }
    return checkpoint(partial(original, **kept), *args, use_reentrant=False)


def _cloned(conditioning: Any) -> Any:
    """A conditioning whose tensors were not made in inference mode."""
    if isinstance(conditioning, Tensor):
        return conditioning.clone()
    if isinstance(conditioning, list | tuple):
        return [_cloned(item) for item in conditioning]
    return (
        {name: _cloned(item) for name, item in conditioning.items()}
        if isinstance(conditioning, dict)
        else conditioning
    )


@contextmanager
def _told_to_host() -> Iterator[None]:
    """Newer hosts ask whether weights and activations have to stay for gradients."""
    if not hasattr(model_management, "in_training"):
        yield
        return
    model_management.in_training = True
    try:
        yield
    finally:
        model_management.in_training = False
