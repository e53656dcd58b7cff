"""Extended attention: each keyframe attends to keys and values of all (paper, equation 5)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def join_frames(tokens: Tensor, rows: int) -> Tensor:
    """Joins the frames of a row into one long sequence.

    Attention over that sequence *is* extended attention: all queries of all keyframes against all
    keys of all keyframes.

    Args:
        tokens: Tokens of the k frames of every row, (rows * k, P, C), row after row.
        rows: How many rows (conditionings) the batch has.

    Returns:
        The same tokens, (rows, k * P, C).

    Examples:
        >>> import torch
        >>> join_frames(torch.zeros(6, 4, 8), rows=2).shape
        torch.Size([2, 12, 8])
    """
    return tokens.reshape(rows, -1, tokens.shape[-1])


def split_frames(tokens: Tensor, frames: int) -> Tensor:
    """Splits the long sequence of a row into its frames, the inverse of `join_frames`.

    Args:
        tokens: Tokens of every row, (rows, k * P, C).
        frames: k, the number of frames in a row.

    Returns:
        The same tokens, (rows * k, P, C).

    Examples:
        >>> import torch
        >>> tokens = torch.rand(6, 4, 8)
        >>> split_frames(join_frames(tokens, rows=2), frames=3).equal(tokens)
        True
    """
    return tokens.reshape(tokens.shape[0] * frames, -1, tokens.shape[-1])


def merge_tokens(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Merges patches of 2 x 2 tokens into their mean; where the grid is odd, of what there is.

    Merging of tokens that are alike (ToMe, 2303.17604), alike being what lies side by side.

    Args:
        tokens: (..., P, C).
        grid: Their rows and columns.

    Returns:
        (..., P', C), about a quarter of them.

    Examples:
        >>> import torch
        >>> merge_tokens(torch.arange(6.0).reshape(1, 6, 1), grid=(2, 3)).flatten().tolist()
        [2.0, 3.5]
    """
    laid = tokens.flatten(0, -3).transpose(1, 2).unflatten(2, grid)
    merged = F.avg_pool2d(laid, 2, ceil_mode=True).flatten(2).transpose(1, 2)
    return merged.unflatten(0, tokens.shape[:-2])


def extended_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Computes softmax(Q_i [K_1 ... K_k]^T / sqrt(d)) [V_1 ... V_k] for every keyframe i.

    The plain formula, written out, for tests and for hosts without attention kernels.

    Args:
        q: Queries of the keyframes, (k, P, C).
        k: Keys of the keyframes, (k, P, C).
        v: Values of the keyframes, (k, P, C).
        heads: Number of attention heads; C is a multiple of it.

    Returns:
        (k, P, C), before the output projection.

    Examples:
        Where all keys are equal, every token becomes the mean of all keyframes' values:

        >>> import torch
        >>> zeros, v = torch.zeros(2, 1, 1), torch.tensor([[[0.0]], [[1.0]]])
        >>> extended_attention(zeros, zeros, v, heads=1).tolist()
        [[[0.5]], [[0.5]]]
    """
    frames, tokens, width = q.shape
    q, k, v = (t.reshape(frames * tokens, heads, width // heads).transpose(0, 1) for t in (q, k, v))
    weights = (q @ k.transpose(1, 2) * (width // heads) ** -0.5).softmax(-1)
    return (weights @ v).transpose(0, 1).reshape(frames, tokens, width)
