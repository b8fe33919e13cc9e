"""The heads of fine-tuning: the layers on top of the encoder that stand in place of the discriminator's.

They are Google's (google-research/electra, finetune/) or those that transformers' classes load. Sequences are packed:
`hidden` is (T, D), the encoder's rows of T tokens in N sequences.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from electra_fast.config import NetworkConfig
from electra_fast.data.batch import Batch
from electra_fast.ops._philox import dropout_reference
from electra_fast.tasks.batch import TaskBatch

QA_WIDTH = 512  # inner width of the layers for the answer's end and for answerability
NEVER = -1e4  # is added to the logit of what cannot be an answer; float16 can hold it


class Dropout:
    """Dropout of a head's rows, a function of (seed, row id) as in the encoder, so that batches do not matter.

    p: the probability of 0; 0 drops nothing. seeds: (2,) int64, one for each dropout in the head.
    """

    def __init__(self, p: float, seeds: Tensor) -> None:
        self.p, self.seeds = p, seeds

    def __call__(self, rows: Tensor, row_ids: Tensor, which: int = 0) -> Tensor:
        """rows: (W, D). row_ids: (W,) int64, of their tokens. which: the seed's index. Returns (W, D)."""
        return dropout_reference(rows, self.p, self.seeds[which : which + 1], row_ids)


class RowHead(nn.Module):
    """Classifies hidden rows: [CLS] of each sequence, or the first piece of each word (tagging).

    Google's: dropout (not for tagging), then a linear layer. transformers': for tagging the same with dropout, else
    dropout, linear, GELU, dropout, linear.
    """

    def __init__(self, config: NetworkConfig, kind: str, labels: int, style: str) -> None:
        """kind: of the task, not qa. labels: C, 1 for regression. style: "google" or "huggingface"."""
        super().__init__()
        self.kind = kind
        deep = style == "huggingface" and kind != "tagging"
        self.dropped = style == "huggingface" or kind != "tagging"
        self.dense = nn.Linear(config.hidden_size, config.hidden_size) if deep else None
        self.out = nn.Linear(config.hidden_size, labels)

    def forward(self, hidden: Tensor, batch: TaskBatch, dropout: Dropout) -> Tensor:
        """Returns logits (W, C) at the batch's W positions; numbers (W,) for regression."""
        rows, ids = hidden[batch.positions], batch.batch.row_ids[batch.positions]
        if self.dropped:
            rows = dropout(rows, ids)
        if self.dense is not None:
            rows = dropout(F.gelu(self.dense(rows)), ids, 1)
        logits = self.out(rows)
        return logits[:, 0] if self.kind == "regression" else logits

    def losses(self, hidden: Tensor, batch: TaskBatch, dropout: Dropout) -> Tensor:
        """Returns (W,): cross-entropy, square of the error (regression), or mean of the labels' binary cross-entropies
        (multilabel)."""
        logits = wide(self(hidden, batch, dropout))
        if self.kind == "regression":
            return (logits - batch.labels.to(logits.dtype)).square()
        if self.kind == "multilabel":
            targets = batch.labels.to(logits.dtype)
            return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
        return F.cross_entropy(logits, batch.labels, reduction="none")


class AnswerHead(nn.Module):
    """transformers' head for questions: logits of the answer's start and end, independent of each other.

    No answer is start and end on [CLS].
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.out = nn.Linear(config.hidden_size, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns (T, 2), the logits of start and end."""
        return self.out(hidden)

    def losses(self, hidden: Tensor, batch: TaskBatch, dropout: Dropout) -> Tensor:
        """Returns (N,): the mean of the cross-entropies of start and end over all tokens of a sequence."""
        logits, everywhere = wide(self(hidden)), torch.ones_like(batch.context)
        start, end = (log_softmax(logits[:, i], batch.batch, everywhere) for i in (0, 1))
        return -(start[batch.labels[:, 0]] + end[batch.labels[:, 1]]) / 2

    def spans(self, hidden: Tensor, batch: TaskBatch, beam: int) -> tuple[Tensor, ...]:
        """As `JointAnswerHead.spans`. The scores are logits; null odds are the sum of the logits of [CLS]."""
        logits = wide(self(hidden))
        null = logits[batch.batch.cu_seqlens[:-1].long()].sum(1)
        masked = logits + NEVER * ~batch.context[:, None]
        start, starts = top(masked[:, 0], batch.batch, beam)
        end, ends = (t[:, None].expand(-1, start.shape[1], -1) for t in top(masked[:, 1], batch.batch, beam))
        return start, starts, end, ends, null


class JointAnswerHead(nn.Module):
    """Google's head for questions: the start, the end given the start, and whether there is an answer at all.

    start = linear(h_t)
    end = linear(gelu(linear([h_start ; h_t]))), with the true start in training and each start of the beam otherwise
    impossible = linear(gelu(linear([h_CLS ; sum_t softmax(start)_t h_t])))

    Starts and ends lie in the context or on [CLS].
    """

    def __init__(self, config: NetworkConfig, answerable_weight: float) -> None:
        """answerable_weight: of the answerability loss; 0 leaves the layers out, as for SQuAD v1.1."""
        super().__init__()
        width = config.hidden_size
        self.answerable_weight = answerable_weight
        self.start = nn.Linear(width, 1)
        self.end_dense, self.end = nn.Linear(2 * width, QA_WIDTH), nn.Linear(QA_WIDTH, 1)
        if answerable_weight:
            self.answerable_dense, self.answerable = nn.Linear(2 * width, QA_WIDTH), nn.Linear(QA_WIDTH, 1)

    def start_logits(self, hidden: Tensor, batch: TaskBatch) -> Tensor:
        """Returns (T,) log-probabilities of each sequence's start."""
        return log_softmax(wide(self.start(hidden)[:, 0]), batch.batch, _allowed(batch))

    def end_half(self, hidden: Tensor) -> Tensor:
        """Returns (T, QA_WIDTH), the part of linear([h_start ; h_t]) that is of h_t and so the same for every start."""
        return F.linear(hidden, self.end_dense.weight[:, hidden.shape[1] :])

    def end_logits(self, hidden: Tensor, half: Tensor, batch: TaskBatch, starts: Tensor) -> Tensor:
        """Log-probabilities of each sequence's end, given its start.

        half: (T, QA_WIDTH), of `end_half`. starts: (N,) int64, packed tokens. Returns (T,).
        """
        of_start = F.linear(hidden[starts], self.end_dense.weight[:, : hidden.shape[1]], self.end_dense.bias)
        inner = F.gelu(half + of_start[sequence_of(batch.batch)])
        return log_softmax(wide(self.end(inner)[:, 0]), batch.batch, _allowed(batch))

    def impossible(self, hidden: Tensor, batch: TaskBatch, start: Tensor) -> Tensor:
        """start: (T,) log-probabilities. Returns (N,) logits, above 0 where there is no answer."""
        packed = batch.batch
        weighted = start.exp().to(hidden.dtype)[:, None] * hidden
        summed = hidden.new_zeros(len(packed), hidden.shape[1]).index_add(0, sequence_of(packed), weighted)
        both = torch.cat([hidden[packed.cu_seqlens[:-1].long()], summed], 1)
        return wide(self.answerable(F.gelu(self.answerable_dense(both)))[:, 0])

    def losses(self, hidden: Tensor, batch: TaskBatch, dropout: Dropout) -> Tensor:
        """Returns (N,): (start + end) / 2 of the cross-entropies + answerable_weight * binary cross-entropy."""
        start = self.start_logits(hidden, batch)
        end = self.end_logits(hidden, self.end_half(hidden), batch, batch.labels[:, 0])
        losses = -(start[batch.labels[:, 0]] + end[batch.labels[:, 1]]) / 2
        if self.answerable_weight:
            logits = self.impossible(hidden, batch, start)
            target = batch.impossible.to(logits.dtype)
            answerability = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
            losses = losses + self.answerable_weight * answerability
        return losses

    def spans(self, hidden: Tensor, batch: TaskBatch, beam: int) -> tuple[Tensor, ...]:
        """The most likely starts of each sequence, and for each start the most likely ends.

        beam: k, how many of each; fewer if the longest sequence is shorter.

        Returns: start scores (N, k) and their places in the sequence (N, k), end scores (N, k, k) and places (N, k, k),
        null odds (N,). Scores are log-probabilities; null odds are the logits of `impossible`, or 0 without its layers.
        """
        packed = batch.batch
        start = self.start_logits(hidden, batch)
        scores, places = top(start, packed, beam)
        first, half = packed.cu_seqlens[:-1].long(), self.end_half(hidden)
        ends = [top(self.end_logits(hidden, half, batch, first + place), packed, beam) for place in places.T]
        null = self.impossible(hidden, batch, start) if self.answerable_weight else start.new_zeros(len(packed))
        return scores, places, torch.stack([s for s, _ in ends], 1), torch.stack([p for _, p in ends], 1), null


def make_head(config: NetworkConfig, kind: str, labels: int, style: str, answerable_weight: float = 0.0) -> nn.Module:
    """A new head: weights drawn Glorot-uniform from torch's generator, biases 0.

    Args:
        config: of the encoder.
        kind: of the task.
        labels: number of classes, labels or tags; 1 for regression; not looked at for qa.
        style: "google" or "huggingface".
        answerable_weight: as `JointAnswerHead`.
    """
    head: Any
    if kind == "qa":
        head = AnswerHead(config) if style == "huggingface" else JointAnswerHead(config, answerable_weight)
    else:
        head = RowHead(config, kind, labels, style)
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return head


def _allowed(batch: TaskBatch) -> Tensor:
    """(T,) bool: the context and [CLS]."""
    return batch.context.index_fill(0, batch.batch.cu_seqlens[:-1].long(), True)


def sequence_of(batch: Batch) -> Tensor:
    """(T,) int64: the index of the sequence that each packed token belongs to."""
    return torch.repeat_interleave(batch.lengths.to(batch.input_ids.device), output_size=batch.num_tokens)


def log_softmax(logits: Tensor, batch: Batch, allowed: Tensor) -> Tensor:
    """Log-probabilities within each sequence, over its allowed tokens. logits: (T,). allowed: (T,) bool."""
    logits = torch.where(allowed, logits, logits + NEVER)
    sums = torch.logsumexp(batch.pad(logits) + NEVER * (1 - batch.pad(torch.ones_like(logits))), 1)
    return logits - sums[sequence_of(batch)]


def top(values: Tensor, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each sequence, and their places in it.

    values: (T,). Returns (N, k) and (N, k) int64; k is at most the longest sequence's length, and a shorter sequence
    ends with padding, of very low values, at its last place.
    """
    padded = batch.pad(values) + 2 * NEVER * (1 - batch.pad(torch.ones_like(values)))
    best = padded.topk(min(k, batch.width), 1)
    lengths = batch.lengths.to(values.device)[:, None]
    return best.values, torch.minimum(best.indices, lengths - 1)


def wide(x: Tensor) -> Tensor:
    """x as float32, or float64 if it is: losses and scores are computed so."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
