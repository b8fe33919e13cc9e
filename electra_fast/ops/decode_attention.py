"""decode_attention: a step of decoding, where each sequence has one query and reads its keys and values from pages.

    out[n] = softmax(softmax_scale q[n] k^T) v      over the first lengths[n] keys and values of sequence n

The cache is cut into pages of `page` tokens, and pages[n] names those of sequence n in order: token j is row j % page
of page pages[n, j // page]. Sequences may name the same page, so beams share the keys of the text that they have in
common, and only the page that each of them is writing to is its own. The keys of an encoder are such pages, too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from electra_fast.ops._check import check_devices, check_floats, check_ids, check_integers, check_shape
from electra_fast.ops._core import core
from electra_fast.ops._library import define, launcher
from electra_fast.ops._structs import Cache, Heads, Pages


class DecodeAttentionArguments(NamedTuple):
    """The arguments of `decode_attention`, in the order of the dispatcher op."""

    q: Tensor
    k_pages: Tensor
    v_pages: Tensor
    pages: Tensor
    lengths: Tensor
    softmax_scale: float


def decode_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    pages: Tensor,
    lengths: Tensor,
    *,
    softmax_scale: float | None = None,
) -> Tensor:
    """Attention of one query a sequence to its keys and values in a paged cache: softmax(softmax_scale q k^T) v.

    q: (N, H, D), the query of each sequence, of the dtype of k_pages and v_pages.
    k_pages, v_pages: (P, page, H, D), all pages of keys and of values. They may be strided views, and are not copied if
        their last dimension is contiguous. The CPU is fastest where a page holds one head after the other in memory,
        as a (P, H, page, D) tensor that is transposed.
    pages: (N, B) int32, the pages of each sequence in order. Every entry names a page; those beyond a sequence's length
        are not read, and may be 0.
    lengths: (N,) int32, how many keys each sequence has, from 0 to B * page. The query sees all of them: write the
        step's own key and value to its page before the call.
    softmax_scale: the factor of the scores; 1 / sqrt(D) by default.

    Returns (N, H, D). The result of a sequence without keys is 0. There are no gradients.

    Raises RuntimeError if a gradient is asked for or the tensors are on several devices, TypeError if dtypes differ,
    ValueError if a shape does not fit, and on the CPU IndexError for a page that is not there and ValueError for a
    length outside 0 to B * page.

    Cost: 4 H D sum(lengths) flops; each key and value is read once, 2 H D sum(lengths) elements, which is the limit.

    Source: Kwon et al., SOSP 2023 (PagedAttention).
    """
    name = "decode_attention"
    floats = dict(q=q, k_pages=k_pages, v_pages=v_pages)
    check_devices(name, **floats, pages=pages, lengths=lengths)
    check_floats(name, **floats)
    if torch.is_grad_enabled() and any(t.requires_grad for t in floats.values()):
        raise RuntimeError(f"{name}: it has no gradients; call it under torch.inference_mode() or torch.no_grad()")
    scale = 1 / math.sqrt(max(1, q.shape[-1])) if softmax_scale is None else float(softmax_scale)
    args = DecodeAttentionArguments(q, k_pages, v_pages, pages, lengths, scale)
    _check_shapes(args)
    return _decode_attention(*args)


def _check_shapes(args: DecodeAttentionArguments) -> None:
    name, q, k_pages, pages = "decode_attention", args.q, args.k_pages, args.pages
    if q.dim() != 3:
        raise ValueError(f"{name}: q has shape {tuple(q.shape)}; (sequences, heads, head dim) is needed")
    if k_pages.dim() != 4 or k_pages.shape[1] == 0:
        raise ValueError(
            f"{name}: k_pages has shape {tuple(k_pages.shape)}; (pages, tokens, heads, head dim) is needed"
        )
    if pages.dim() != 2:
        raise ValueError(f"{name}: pages has shape {tuple(pages.shape)}; (sequences, blocks) is needed")
    check_integers(name, torch.int32, pages=pages, lengths=args.lengths)
    check_shape(name, "k_pages", k_pages, *k_pages.shape[:2], *q.shape[1:])
    check_shape(name, "v_pages", args.v_pages, *k_pages.shape)
    check_shape(name, "pages", pages, q.shape[0], pages.shape[1])
    check_shape(name, "lengths", args.lengths, q.shape[0])


def _check(args: DecodeAttentionArguments) -> None:
    """Raises on a page or a length from which the core would compute a wrong address."""
    _check_shapes(args)
    check_ids("decode_attention", "pages", args.pages.flatten(), args.k_pages.shape[0], "cache", "it has no such page")
    room = args.pages.shape[1] * args.k_pages.shape[1]
    lengths = args.lengths.tolist()
    if lengths and (min(lengths) < 0 or max(lengths) > room):
        at = next(i for i, length in enumerate(lengths) if not 0 <= length <= room)
        raise ValueError(
            f"decode_attention: lengths[{at}] is {lengths[at]}; 0 to {room} is allowed, the tokens of "
            f"{args.pages.shape[1]} pages of {args.k_pages.shape[1]}"
        )


def decode_attention_reference(args: DecodeAttentionArguments) -> Tensor:
    """The formula on the gathered pages of each sequence, (N, B * page, H, D)."""
    table = args.pages.long()
    keys, values = (t[table].flatten(1, 2) for t in (args.k_pages, args.v_pages))
    absent = torch.arange(keys.shape[1], device=keys.device) >= args.lengths[:, None]
    keys, values = (t.masked_fill(absent[:, :, None, None], 0.0) for t in (keys, values))
    scores = torch.einsum("nhd,nkhd->nhk", args.q, keys) * args.softmax_scale
    absent = absent[:, None]
    probs = scores.masked_fill(absent, -math.inf).softmax(2).masked_fill(absent, 0.0)
    return torch.einsum("nhk,nkhd->nhd", probs, values)


def _on_cpu(args: DecodeAttentionArguments) -> Tensor:
    out = torch.empty_like(args.q, memory_format=torch.contiguous_format)
    count, heads, width = args.q.shape
    table, tokens = args.pages.contiguous(), args.k_pages.shape[1]
    sizes = (table, args.lengths.contiguous(), count, table.shape[1], tokens, heads, width)
    cache = Cache(Pages.of(args.k_pages), Pages.of(args.v_pages), *sizes)
    core.decode_attention(Heads.of(args.q), cache, args.softmax_scale, out, torch.get_num_threads())
    return out


def _on_cuda(args: DecodeAttentionArguments) -> Tensor:
    wide = args.q.dtype == torch.float64 or not 0 < args.q.shape[2] <= 256
    return decode_attention_reference(args) if wide else launcher("decode_attention", "decode_attention")(args)


_decode_attention = define(
    "decode_attention",
    DecodeAttentionArguments,
    "Tensor",
    reference=decode_attention_reference,
    fake=lambda args: torch.empty_like(args.q, memory_format=torch.contiguous_format),
    cpu=_on_cpu,
    cuda=_on_cuda,
    limit="heads up to 256 wide",
    check=_check,
)
