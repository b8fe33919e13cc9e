"""attention: softmax(scale Q K^T) V within each sequence of a packed batch, with dropout on the probabilities.

q (T, H, D), k, v (Tk, H, D), cu_seqlens (N + 1,) int32 -> (T, H, D). Sequence n owns rows cu_seqlens[n] to
cu_seqlens[n + 1]; with cu_seqlens_k the queries are others than the keys (fewer, or another sequence's). A query
without keys gives 0. Dropout is keyed by the query's row id, the head (plane 1 + h) and the key's place in its sequence
(_philox.py). Cost: 4 H D sum(S_q S_k) flops forward, 2.5 times that backward (Dao et al., 2022).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from electra_fast.ops._check import (
    check_cu_seqlens,
    check_devices,
    check_floats,
    check_integers,
    check_probability,
    check_shape,
    seed_tensor,
)
from electra_fast.ops._core import core
from electra_fast.ops._library import Backend, DifferentiableOp, launcher
from electra_fast.ops._philox import dropout_mask, dropout_scale, dropout_threshold


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_k: int | None = None,
    softmax_scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
    causal: bool = False,
    row_ids: Tensor | None = None,
) -> Tensor:
    """Attention within each sequence: q (T, H, D), k, v (Tk, H, D), cu_seqlens (N + 1,) int32 -> (T, H, D).

    q, k, v may be strided views of one packed projection. cu_seqlens_k (N + 1,) and max_seqlen_k describe the keys
    where they are not the queries' own. softmax_scale is 1 / sqrt(D) unless given. row_ids (T,) int64 key the dropout;
    without them the queries count from 0. Raises NotImplementedError for causal, TypeError on mixed dtypes, ValueError
    on shapes, offsets or a dropout_p outside [0, 1], RuntimeError on mixed devices.
    """
    if causal:
        raise NotImplementedError("attention: causal=True is not implemented; ELECTRA reads both ways")
    cu_k = cu_seqlens if cu_seqlens_k is None else cu_seqlens_k
    max_k = max_seqlen if max_seqlen_k is None else max_seqlen_k
    row_ids = torch.arange(q.shape[0], device=q.device) if row_ids is None else row_ids
    check_devices("attention", q=q, k=k, v=v, cu_seqlens=cu_seqlens, cu_seqlens_k=cu_k, row_ids=row_ids)
    check_floats("attention", q=q, k=k, v=v)
    check_integers("attention", torch.int64, row_ids=row_ids)
    if q.dim() != 3:
        raise ValueError(f"attention: q has shape {tuple(q.shape)}; packed (tokens, heads, head dim) is needed")
    check_shape("attention", "k", k, k.shape[0], *q.shape[1:])
    check_shape("attention", "v", v, *k.shape)
    check_shape("attention", "row_ids", row_ids, q.shape[0])
    check_shape("attention", "cu_seqlens_k", cu_k, *cu_seqlens.shape)
    check_cu_seqlens("attention", "cu_seqlens", cu_seqlens, q.shape[0], max_seqlen)
    check_cu_seqlens("attention", "cu_seqlens_k", cu_k, k.shape[0], max_k)
    p = check_probability("attention", "dropout_p", dropout_p)
    scale = 1 / math.sqrt(q.shape[2]) if softmax_scale is None else float(softmax_scale)
    return _attention(
        q, k, v, cu_seqlens, max_seqlen, cu_k, max_k, row_ids, seed_tensor("attention", seed, q.device), scale, p
    )


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    cu_seqlens_k: Tensor,
    max_seqlen_k: int,
    row_ids: Tensor,
    seed: Tensor,
    softmax_scale: float,
    dropout_p: float,
) -> Tensor:
    """The formula on rows laid out as (N, S, H, D), every pair outside a sequence excluded."""
    if q.shape[0] == 0 or k.shape[0] == 0:
        return torch.zeros_like(q) + 0 * (k.sum() + v.sum())
    rows, there = _padded(cu_seqlens, max_seqlen)
    keys, present = _padded(cu_seqlens_k, max_seqlen_k)
    query, key, value = (  # (N, H, S, D), 0 at the places that only fill: 0 * NaN of another row would leak from there
        x[index].masked_fill(~real[:, :, None, None], 0.0).transpose(1, 2)
        for x, index, real in ((q, rows, there), (k, keys, present), (v, keys, present))
    )
    scores = (query @ key.transpose(2, 3)) * softmax_scale
    absent = ~present[:, None, None, :]
    probs = scores.masked_fill(absent, -math.inf).softmax(-1).masked_fill(absent, 0.0)
    if threshold := dropout_threshold(dropout_p):
        ids = row_ids[rows].flatten()
        kept = [dropout_mask(seed, ids, max_seqlen_k, threshold, 1 + h) for h in range(q.shape[1])]
        mask = torch.stack(kept, 1).unflatten(0, rows.shape).transpose(1, 2)
        probs = torch.where(mask, probs * dropout_scale(threshold), 0.0)
    out = probs @ value
    sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), torch.arange(q.shape[0], device=q.device), right=True)
    place = torch.arange(q.shape[0], device=q.device) - cu_seqlens[sequence]
    return out.transpose(1, 2)[sequence, place]


def _padded(cu_seqlens: Tensor, max_seqlen: int) -> tuple[Tensor, Tensor]:
    """(N, S) packed index of each place of each sequence (a valid one where there is none), and whether it is there."""
    place = torch.arange(max_seqlen, device=cu_seqlens.device)
    start, end = cu_seqlens[:-1, None].long(), cu_seqlens[1:, None].long()
    index = start + place
    return torch.where(index < end, index, 0), index < end


def _common(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    cu_seqlens_k: Tensor,
    max_seqlen_k: int,
    row_ids: Tensor,
    seed: Tensor,
    softmax_scale: float,
    dropout_p: float,
) -> tuple[list[Tensor], list[int | float]]:
    """What both directions pass to the core: addresses and strides; and the tensors, to be held meanwhile."""
    rows = [t if t.stride(2) == 1 else t.contiguous() for t in (q, k, v)]
    integers = [t.contiguous() for t in (cu_seqlens, cu_seqlens_k, row_ids)]
    values: list[int | float] = [*_places(*rows)]
    values += [integers[0].data_ptr(), integers[1].data_ptr(), cu_seqlens.numel() - 1, *q.shape[1:]]
    values += [integers[2].data_ptr(), int(seed.item()), dropout_threshold(dropout_p), softmax_scale]
    return rows + integers, values


def _places(*tensors: Tensor) -> list[int]:
    """Where the heads of each lie: the address, from token to token, from head to head."""
    return [number for t in tensors for number in (t.data_ptr(), t.stride(0), t.stride(1))]


def _forward_cpu(*args: Any) -> tuple[Tensor, list[Tensor]]:
    _held, values = _common(*args)
    out = torch.empty_like(args[0], memory_format=torch.contiguous_format)
    lse = out.new_empty(out.shape[:2])
    core.attention_fwd(*values, *_places(out), lse.data_ptr(), torch.get_num_threads())
    return out, [lse]


def _backward_cpu(grads: list[Tensor], *args: Any) -> list[Tensor]:
    *arguments, saved = args
    _held, values = _common(*arguments)
    lse, dout = saved[1].contiguous(), grads[0] if grads[0].stride(2) == 1 else grads[0].contiguous()
    found = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in arguments[:3]]
    core.attention_bwd(*values, lse.data_ptr(), *_places(dout, *found), torch.get_num_threads())
    return found


_attention = DifferentiableOp(
    "attention",
    "Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, SymInt max_seqlen, Tensor cu_seqlens_k, SymInt max_seqlen_k, "
    "Tensor row_ids, Tensor seed, float softmax_scale, float dropout_p",
    outputs=("out",),
    differentiable=("q", "k", "v"),
    reference=attention_reference,
    fake=lambda q, *_: (torch.empty_like(q, memory_format=torch.contiguous_format),),
    cpu=Backend(_forward_cpu, _backward_cpu, lambda q, *_: [q.new_empty(q.shape[:2])]),
    cuda=Backend(
        launcher("attention", "attention_fwd"),
        launcher("attention", "attention_bwd"),
        saves=lambda q, *_: [q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)],
        takes=lambda q, *_: 0 < q.shape[2] <= 128,
        limit="heads up to 128 wide",
    ),
)
