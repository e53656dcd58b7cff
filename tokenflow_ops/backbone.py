"""What the method must know of a model: which layers there are, and what each can do for it.

A model family fills it in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby

from .injection import ONE_BLOCK
from .parameterization import Parameterization
from .passes import DEEP


@dataclass(frozen=True)
class Backbone:
    """A model's layers, by the paths of their modules.

    Attributes:
        attention: All self-attention, in the order the model runs it.
        decoder: The self-attention of the part that paints (a UNet's way up), block by block: where
            tokens are told apart best, and where Plug-and-Play holds on to the source.
        cross: By a self-attention layer the cross-attention beside it; layers without one
            are left out.
        hidden: By a self-attention layer of `decoder` the layer beside it whose hidden features
            Plug-and-Play takes from the source.
        blocks: The blocks with self-attention in words, for errors.
        parameterization: What its noise levels mean.
        matched_on_output: Whether frames are matched on what attention returns, with the
            surroundings of every token, as a transformer's are; else on its inputs.
        deep: All that runs below the model's full resolution, in order; empty for models without
            such a part.

    Raises:
        ValueError: If a decoder's layer is none of `attention`.
    """

    attention: tuple[str, ...]
    decoder: tuple[tuple[str, ...], ...] = ()
    cross: Mapping[str, str] = field(default_factory=dict)
    hidden: Mapping[str, str] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    deep: tuple[str, ...] = ()
    parameterization: Parameterization = field(default_factory=Parameterization)
    matched_on_output: bool = False

    def __post_init__(self) -> None:
        if unknown := set(self.decoder_layers) - set(self.attention):
            raise ValueError(f"{sorted(unknown)} are no self-attention layers of this model")

    @property
    def decoder_layers(self) -> tuple[str, ...]:
        """The decoder's self-attention, in order."""
        return tuple(layer for block in self.decoder for layer in block)

    def injected_attention(self, choice: str = "decoder") -> tuple[str, ...]:
        """Names the self-attention whose queries and keys Plug-and-Play takes from the source.

        All decoder blocks but the first (SD 1.5's and 2.x's output blocks 4 to 11, SDXL's 1 to 5);
        "late decoder" keeps the second half of those.

        Args:
            choice: As `Injection.layers`, "decoder" or "late decoder".

        Returns:
            Paths in order; empty if the decoder has fewer than two blocks.
        """
        blocks = self.decoder[1:]
        if choice == "late decoder":
            blocks = blocks[len(blocks) // 2 :]
        return tuple(layer for block in blocks for layer in block)

    @property
    def injected_hidden(self) -> str | None:
        """The layer whose hidden features Plug-and-Play takes from the source; None for none.

        It is the one beside the first of `injected_attention`: SD
        1.5's "output_blocks.4.0.out_layers".
        """
        injected = self.injected_attention()
        return self.hidden.get(injected[0]) if injected else None

    def hidden_layers(self, shapes: Mapping[str, tuple[int, int]], choice: str) -> tuple[str, ...]:
        """Names the layers whose hidden features Plug-and-Play takes from the source.

        The paper's, `injected_hidden`, is in the middle of the coarsest blocks. With "every
        resolution" the middle one of every finer resolution below the full one joins it: SD 1.5's
        output blocks 4 and 7, SDXL's 1 and 4.

        Args:
            shapes: Tokens and width of every self-attention layer.
            choice: As `Injection.features_in`.

        Returns:
            Paths in order; empty for models without such a layer.
        """
        if self.injected_hidden is None:
            return ()
        if choice == ONE_BLOCK:
            return (self.injected_hidden,)
        blocks = [block[0] for block in self.decoder if block[0] not in self.shallow]
        groups = [list(group) for _, group in groupby(blocks, lambda layer: shapes[layer][0])]
        middle = (self.hidden[group[len(group) // 2]] for group in groups if blocks[0] not in group)
        return tuple(dict.fromkeys((self.injected_hidden, *middle)))

    def beside(self, hidden: str) -> str:
        """Returns the first self-attention layer beside a layer with hidden features."""
        return next(layer for layer, path in self.hidden.items() if path == hidden)

    @property
    def shallow(self) -> frozenset[str]:
        """What frames take from keyframes if they take what is deeper as a whole.

        That whole, and the output of the self-attention layers at full resolution.
        """
        below = tuple(f"{path}." for path in self.deep)
        return frozenset(
            (DEEP, *(layer for layer in self.attention if not layer.startswith(below)))
        )
