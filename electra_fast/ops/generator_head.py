"""generator_head: cross-entropy of the masked tokens and one exact sample for each, from the same logits.

A sample takes two random words w0, w1 of the row's id (_philox.py, group and plane 0); Gumbel noise would take one for
each logit. The vocabulary is cut into tiles of 128 words. Inverse CDF at u0 = (w0 + 1/2) / 2**32, over the tiles'
sums of exp(logit / temperature), gives the tile; inverse CDF at u1, within that tile, gives the word. This is an exact
sample of the softmax.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from electra_fast.ops._backend import Backend
from electra_fast.ops._check import (
    check_devices,
    check_floats,
    check_integers,
    check_matrix,
    check_probability,
    check_shape,
    seed_tensor,
)
from electra_fast.ops._core import core
from electra_fast.ops._differentiable import DifferentiableOp
from electra_fast.ops._library import launcher
from electra_fast.ops._philox import philox
from electra_fast.ops._structs import Affine, Rows, Sampling

TILE = 128  # words of the vocabulary; all backends have the same, since another size draws other samples
LOGITS = 2**23  # logits that the reference holds at once: glibc's malloc gives 32 MiB and more back to the system


class GeneratorHeadArguments(NamedTuple):
    """The arguments of `generator_head`, in the order of the dispatcher op."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    labels: Tensor
    row_ids: Tensor
    seed: Tensor
    temperature: float
    disallow_correct: bool
    label_smoothing: float


def generator_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    *,
    temperature: float = 1.0,
    seed: int | Tensor = 0,
    row_ids: Tensor | None = None,
    disallow_correct: bool = False,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The cross-entropy of each row's label, and a word sampled for each row, without storing the logits.

        logits = hidden weight^T + bias
        loss = logsumexp(logits) - logits[label]        sampled ~ softmax(logits / temperature)

    hidden: (M, E), rows after the head's dense layer, GELU and LayerNorm, of the dtype of weight and bias.
    weight: (V, E), the word table.
    bias: (V,).
    labels: (M,) int64, the words that were masked. A row with label -100 has loss 0 and no gradient.
    temperature: of the sample, from 1e-30 to 1e30; 0 takes the most likely word.
    seed: of the samples, an int of 64 bits or a one-element int64 tensor.
    row_ids: (M,) int64, the ids of the rows, by which the samples' random numbers are keyed; 0 to M - 1 by default.
    disallow_correct: whether the label's logit is lowered by 1,000 for the sample, as in Google's code.
    label_smoothing: the share eps, from 0 to 1, of the target that all words divide equally. The loss is then
        logsumexp(logits) - (1 - eps) logits[label] - eps mean(logits), as in torch's cross_entropy.

    Returns loss (M,) in nats, which is differentiable, and sampled (M,) int64.

    Raises TypeError if the dtypes differ, ValueError if a shape does not fit, or temperature or label_smoothing is out
    of its range, RuntimeError if the tensors are on several devices, and on the CPU IndexError for a label that is
    neither -100 nor in [0, V). On a GPU such a label has loss NaN.

    Cost: 2 M V E flops forward and 6 M V E backward, which computes the logits again; no backend keeps (M, V).

    Source: Clark et al., ICLR 2020 (ELECTRA); google-research/electra, pretrain/pretrain_helpers.py (disallow_correct).
    """
    name = "generator_head"
    check_matrix(name, hidden=hidden, weight=weight)
    row_ids = torch.arange(hidden.shape[0], device=hidden.device) if row_ids is None else row_ids
    check_devices(name, hidden=hidden, weight=weight, bias=bias, labels=labels, row_ids=row_ids)
    check_floats(name, hidden=hidden, weight=weight, bias=bias)
    check_integers(name, torch.int64, labels=labels, row_ids=row_ids)
    check_shape(name, "hidden", hidden, hidden.shape[0], weight.shape[1])
    check_shape(name, "bias", bias, weight.shape[0])
    check_shape(name, "labels", labels, hidden.shape[0])
    check_shape(name, "row_ids", row_ids, hidden.shape[0])
    _check_sampling(temperature, weight)
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = (labels != -100) & ((labels < 0) | (labels >= weight.shape[0]))
        if wrong.any():
            at = int(wrong.nonzero()[0])
            raise IndexError(
                f"{name}: labels[{at}] is {int(labels[at])}; 0 to {weight.shape[0] - 1}, or -100 for a row to leave out"
            )
    smoothing = check_probability(name, "label_smoothing", label_smoothing)
    numbers = (seed_tensor(name, seed, hidden.device), float(temperature), disallow_correct, smoothing)
    return _generator_head(GeneratorHeadArguments(hidden, weight, bias, labels, row_ids, *numbers))


def _check_sampling(temperature: float, weight: Tensor) -> None:
    if temperature != 0 and not 1e-30 <= temperature <= 1e30:
        raise ValueError(
            f"generator_head: temperature is {temperature}; 0 (the most likely word) or a finite number above it, from "
            f"1e-30 to 1e30, is needed, by which float32 can divide"
        )
    if weight.shape[0] == 0:
        raise ValueError("generator_head: weight has no rows; a vocabulary of at least one word is needed")


def _check(args: GeneratorHeadArguments) -> None:
    _check_sampling(args.temperature, args.weight)
    check_integers("generator_head", torch.int64, labels=args.labels, row_ids=args.row_ids)
    for name, tensor in dict(labels=args.labels, row_ids=args.row_ids).items():
        check_shape("generator_head", name, tensor, args.hidden.shape[0])


def generator_head_reference(args: GeneratorHeadArguments) -> tuple[Tensor, Tensor]:
    """The formula, some rows at a time and checkpointed, so that no tensor has many more than LOGITS elements."""
    hidden, weight = args.hidden, args.weight
    at_once = LOGITS // weight.shape[0] + 1
    losses, samples = [], []
    for start in range(0, hidden.shape[0], at_once):
        rows = slice(start, start + at_once)
        part = args._replace(hidden=hidden[rows], labels=args.labels[rows], row_ids=args.row_ids[rows])
        loss, sampled = checkpoint(_loss_and_sample, part, use_reentrant=False, preserve_rng_state=False)
        losses.append(loss)
        samples.append(sampled)
    if not losses:
        return hidden.sum(1) + 0 * (weight.sum() + args.bias.sum()), args.labels.clone()
    return torch.cat(losses), torch.cat(samples)


def _loss_and_sample(args: GeneratorHeadArguments) -> tuple[Tensor, Tensor]:
    labels, vocabulary = args.labels, args.weight.shape[0]
    logits = F.linear(_without_nan(args.hidden, labels == -100), args.weight, args.bias)
    words = labels.clamp(0, vocabulary - 1)
    loss = F.cross_entropy(logits, words, reduction="none", label_smoothing=args.label_smoothing)
    loss = torch.where((labels >= 0) & (labels < vocabulary), loss, math.nan)  # a wrong label gives no plausible loss
    loss = torch.where(labels == -100, 0.0, loss)
    with torch.no_grad():
        return loss, _sample(logits, args)


def _sample(logits: Tensor, args: GeneratorHeadArguments) -> Tensor:
    """A word (M,) for each row of logits (M, V), drawn from softmax(logits / temperature)."""
    rows, vocabulary = logits.shape
    scaled = logits / args.temperature if args.temperature else logits.clone()
    if args.disallow_correct:
        labels = args.labels
        scaled[torch.arange(rows, device=logits.device), labels.clamp(0, vocabulary - 1)] -= 1000 * (labels >= 0)
    if args.temperature == 0:
        return scaled.argmax(1)
    weights = F.pad((scaled - scaled.amax(1, keepdim=True)).exp(), (0, -vocabulary % TILE)).unflatten(1, (-1, TILE))
    u0, u1 = (((word + 0.5) / 2**32).to(weights.dtype) for word in philox(args.seed, args.row_ids, 0, 0)[:2])
    tile = _inverse_cdf(weights.sum(2), u0)
    return tile * TILE + _inverse_cdf(weights[torch.arange(rows, device=logits.device), tile], u1)


def _inverse_cdf(weights: Tensor, u: Tensor) -> Tensor:
    """The first index whose running sum exceeds u times the sum; never one of weight 0, even if u is rounded to 1."""
    running = weights.cumsum(1)
    last = weights.shape[1] - 1 - (weights > 0).flip(1).long().argmax(1)
    return torch.minimum((running <= u[:, None] * running[:, -1:]).sum(1), last)


def _forward_cpu(args: GeneratorHeadArguments) -> tuple[Tensor, Tensor, list[Tensor]]:
    hidden, words, labels = _as_the_core_reads(args)
    (loss, sampled), lse = _fake(args), args.hidden.new_empty(args.hidden.shape[0])
    seed = int(args.seed.item())
    sampling = Sampling(args.row_ids.contiguous(), seed, args.temperature, args.disallow_correct)
    read = (hidden, words, args.weight.shape[0], labels, sampling)
    core.generator_head_fwd(*read, loss, sampled, lse, torch.get_num_threads())
    return _smoothed(loss, args), sampled, [lse]


def _backward_cpu(grads: list[Tensor], args: GeneratorHeadArguments, saved: list[Tensor]) -> list[Tensor]:
    hidden, words, labels = _as_the_core_reads(args)
    _loss, _sampled, lse = saved
    dhidden, *dwords = [t.new_empty(t.shape) for t in (args.hidden, args.weight, args.bias)]
    read = (grads[0].contiguous(), hidden, words, args.weight.shape[0], labels)
    numbers = (args.label_smoothing, lse.contiguous())
    core.generator_head_bwd(*read, *numbers, dhidden, Affine(*dwords), torch.get_num_threads())
    return [dhidden, *dwords]


def _as_the_core_reads(args: GeneratorHeadArguments) -> tuple[Rows, Affine, Tensor]:
    """The rows, without NaN in those with label -100, the word table with its bias, and the labels."""
    hidden, left_out = args.hidden, args.labels == -100
    if left_out.any():
        hidden = _without_nan(hidden, left_out)
    return Rows.of(hidden), Affine.of(args.weight, args.bias), args.labels.contiguous()


def _without_nan(hidden: Tensor, left_out: Tensor) -> Tensor:
    """The rows with finite numbers in those left out, whose NaN would reach the weight's gradient as 0 * NaN."""
    return torch.where(left_out[:, None], hidden.nan_to_num(0.0, 0.0, 0.0), hidden)


def _forward_cuda(args: GeneratorHeadArguments) -> tuple[Tensor, Tensor, list[Tensor]]:
    loss, sampled, saved = launcher("generator_head", "generator_head_fwd")(args)
    return _smoothed(loss, args), sampled, saved


def _smoothed(loss: Tensor, args: GeneratorHeadArguments) -> Tensor:
    """The loss with label smoothing: eps (logits[label] - mean(logits)) is added. The mean is that of the weight's rows
    times hidden, so the sweep over the vocabulary does not compute it."""
    if args.label_smoothing == 0:
        return loss
    left_out, kind = args.labels == -100, torch.float32
    weight, bias, label = args.weight, args.bias, args.labels.clamp(0, args.weight.shape[0] - 1)
    rows = _without_nan(args.hidden, left_out).to(kind)
    above = (rows * (weight[label].to(kind) - weight.mean(0, dtype=kind))).sum(1)
    above += bias[label].to(kind) - bias.mean(dtype=kind)
    return torch.where(left_out, loss, loss + args.label_smoothing * above).to(loss.dtype)


def _fake(args: GeneratorHeadArguments) -> tuple[Tensor, Tensor]:
    return args.hidden.new_empty(args.hidden.shape[0]), args.labels.new_empty(args.hidden.shape[0])


_generator_head = DifferentiableOp(
    "generator_head",
    GeneratorHeadArguments,
    outputs=("loss", "sampled"),
    differentiable=("hidden", "weight", "bias"),
    reference=generator_head_reference,
    fake=_fake,
    cpu=Backend(_forward_cpu, _backward_cpu, lambda args: [args.hidden.new_empty(args.hidden.shape[0])]),
    cuda=Backend(
        _forward_cuda,
        launcher("generator_head", "generator_head_bwd"),
        lambda args: [args.hidden.new_empty(args.hidden.shape[0], dtype=torch.float32)],
    ),
    check=_check,
)
