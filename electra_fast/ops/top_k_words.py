"""top_k_words: the k most likely words of each row with their log-probabilities, from the sweep of generator_head.

    logits = hidden weight^T + bias        log_probs = the k largest logits of a row - logsumexp(logits)

Greedy decoding takes k = 1, a beam search of B beams k = 2 B, and sampling among the top k draws from the result. Of
words with equal logits the lower id comes first. No backend keeps the logits (M, V).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast.ops._check import check_devices, check_floats, check_matrix, check_shape
from electra_fast.ops._core import core
from electra_fast.ops._library import define, launcher
from electra_fast.ops._structs import Affine, Rows
from electra_fast.ops.generator_head import LOGITS

MOST = 128  # words that a row may ask for


class TopKWordsArguments(NamedTuple):
    """The arguments of `top_k_words`, in the order of the dispatcher op."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    k: int


def top_k_words(hidden: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most likely words of each row and their log-probabilities, without storing the logits.

    hidden: (M, E), rows after the head's dense layer, GELU and LayerNorm, of the dtype of weight and bias.
    weight: (V, E), the word table.
    bias: (V,); a word with bias -inf has probability 0, and comes last.
    k: how many words, from 1 to 128 and at most V.

    Returns log_probs (M, k), the largest first, in nats and of the dtype of hidden, and ids (M, k) int64; of words with
    equal logits the lower id comes first. A row with NaN has log_probs NaN. There are no gradients.

    Raises RuntimeError if a gradient is asked for or the tensors are on several devices, TypeError if dtypes differ,
    ValueError if a shape does not fit or k is out of its range.

    Cost: 2 M V E flops. With few rows reading the V E elements of the weight is the limit.

    Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, section 4, has both in one pass.
    """
    name = "top_k_words"
    floats = dict(hidden=hidden, weight=weight, bias=bias)
    check_devices(name, **floats)
    check_floats(name, **floats)
    if torch.is_grad_enabled() and any(t.requires_grad for t in floats.values()):
        raise RuntimeError(f"{name}: it has no gradients; call it under torch.inference_mode() or torch.no_grad()")
    args = TopKWordsArguments(hidden, weight, bias, k)
    _check(args)
    return _top_k_words(*args)


def _check(args: TopKWordsArguments) -> None:
    name, hidden, weight = "top_k_words", args.hidden, args.weight
    check_matrix(name, hidden=hidden, weight=weight)
    check_shape(name, "hidden", hidden, hidden.shape[0], weight.shape[1])
    check_shape(name, "bias", args.bias, weight.shape[0])
    most = min(MOST, weight.shape[0])
    if not 1 <= args.k <= most:
        raise ValueError(
            f"{name}: k is {args.k}; 1 to {most} is allowed: at most {MOST}, and no more than there are words"
        )


def top_k_words_reference(args: TopKWordsArguments) -> tuple[Tensor, Tensor]:
    """The formula, some rows at a time, so that no tensor has many more than LOGITS elements."""
    at_once = LOGITS // args.weight.shape[0] + 1
    log_probs, ids = [args.hidden.new_empty(0, args.k)], [args.hidden.new_empty(0, args.k, dtype=torch.int64)]
    for rows in args.hidden.split(at_once):
        logits = F.linear(rows, args.weight, args.bias)
        top, words = logits.sort(dim=1, descending=True, stable=True)  # topk keeps no order among equals
        log_probs.append(top[:, : args.k] - logits.logsumexp(1, keepdim=True))
        ids.append(words[:, : args.k])
    return torch.cat(log_probs), torch.cat(ids)


def _on_cpu(args: TopKWordsArguments) -> tuple[Tensor, Tensor]:
    log_probs, ids = _fake(args)
    words = Affine.of(args.weight, args.bias)
    core.top_k_words(Rows.of(args.hidden), words, args.weight.shape[0], args.k, log_probs, ids, torch.get_num_threads())
    return log_probs, ids


def _fake(args: TopKWordsArguments) -> tuple[Tensor, Tensor]:
    shape = (args.hidden.shape[0], args.k)
    return args.hidden.new_empty(shape), args.hidden.new_empty(shape, dtype=torch.int64)


def _on_cuda(args: TopKWordsArguments) -> tuple[Tensor, Tensor]:
    if args.hidden.dtype == torch.float64:
        return top_k_words_reference(args)
    return launcher("top_k_words", "top_k_words")(args)


_top_k_words = define(
    "top_k_words",
    TopKWordsArguments,
    "(Tensor, Tensor)",
    reference=top_k_words_reference,
    fake=_fake,
    cpu=_on_cpu,
    cuda=_on_cuda,
    check=_check,
)
