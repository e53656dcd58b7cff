"""Extended attention: every keyframe attends to the keys and values of all keyframes (paper,
equation 5).
"""

from __future__ import annotations

from torch import Tensor


def join_frames(tokens: Tensor, rows: int) -> Tensor:
    """(rows * k, P, C) -> (rows, k * P, C): the frames of a row become one long sequence.

    Attention over that sequence *is* extended attention: all queries of all keyframes against all
    keys of all keyframes.
    """
    return tokens.reshape(rows, -1, tokens.shape[-1])


def split_frames(tokens: Tensor, frames: int) -> Tensor:
    """(rows, k * P, C) -> (rows * k, P, C), the inverse of `join_frames`."""
    return tokens.reshape(tokens.shape[0] * frames, -1, tokens.shape[-1])


def extended_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(Q_i [K_1 ... K_k]^T / sqrt(d)) [V_1 ... V_k] for every keyframe i, written out.

    q, k, v: (k, P, C). Returns: (k, P, C), before the output projection.
    The plain formula, for tests and for hosts without attention kernels.
    """
    frames, tokens, width = q.shape
    q, k, v = (t.reshape(frames * tokens, heads, width // heads).transpose(0, 1) for t in (q, k, v))
    weights = (q @ k.transpose(1, 2) * (width // heads) ** -0.5).softmax(-1)
    return (weights @ v).transpose(0, 1).reshape(frames, tokens, width)
