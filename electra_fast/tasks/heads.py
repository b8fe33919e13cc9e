"""The heads of fine-tuning: what stands on the encoder's hidden rows in place of the discriminator's.

Google's (google-research/electra, finetune/) by default, or transformers', whose classes load them. Sequences are
packed: hidden is (T, D), of N sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from electra_fast.config import NetworkConfig
from electra_fast.data.batch import Batch
from electra_fast.ops._philox import dropout_reference

QA_WIDTH = 512  # of the end's and the answerability's inner layer
NEVER = -1e4  # added to the logit of what cannot be an answer; within float16's range


@dataclass(frozen=True)
class TaskBatch:
    """A packed batch of T tokens in N sequences, and what the head is to say of it.

    Attributes:
        positions: (W,) int64, the packed tokens whose hidden rows are classified: [CLS] of each sequence, or the first
            piece of each word (tagging). Empty for qa.
        labels: the truth. classification, tagging: (W,) int64, classes; multilabel: (W, C) float, 0 or 1; regression:
            (W,) float; qa: (N, 2) int64, the first and last packed token of the answer. Empty where it is to be
            predicted.
        context: (T,) bool, whether an answer may lie on a token. qa only.
        impossible: (N,) bool, whether a sequence has no answer. qa only.
    """

    batch: Batch
    positions: Tensor
    labels: Tensor
    context: Tensor
    impossible: Tensor

    def to(self, device: torch.device) -> TaskBatch:
        rest = (self.positions, self.labels, self.context, self.impossible)
        return TaskBatch(self.batch.to(device), *(t.to(device) for t in rest))


class Dropout:
    """Keyed dropout of a head's rows: a function of (seed, row ids), as in the encoder; none where p is 0."""

    def __init__(self, p: float, seeds: Tensor) -> None:
        self.p, self.seeds = p, seeds

    def __call__(self, rows: Tensor, row_ids: Tensor, which: int = 0) -> Tensor:
        return dropout_reference(rows, self.p, self.seeds[which : which + 1], row_ids)


class RowHead(nn.Module):
    """Logits (W, C) of the rows at the asked positions: classes of sequences, tags of words; C = 1: numbers (W,).

    Google's: dropout (of sequences only), then one dense layer. transformers': of sequences dropout, dense, GELU,
    dropout, dense; of words dropout, dense.
    """

    def __init__(self, config: NetworkConfig, kind: str, labels: int, style: str) -> None:
        super().__init__()
        self.kind = kind
        deep = style == "huggingface" and kind != "tagging"
        self.dropped = style == "huggingface" or kind != "tagging"
        self.dense = nn.Linear(config.hidden_size, config.hidden_size) if deep else None
        self.out = nn.Linear(config.hidden_size, labels)

    def forward(self, hidden: Tensor, asked: TaskBatch, dropout: Dropout) -> Tensor:
        rows, ids = hidden[asked.positions], asked.batch.row_ids[asked.positions]
        if self.dropped:
            rows = dropout(rows, ids)
        if self.dense is not None:
            rows = dropout(F.gelu(self.dense(rows)), ids, 1)
        logits = self.out(rows)
        return logits[:, 0] if self.kind == "regression" else logits

    def losses(self, hidden: Tensor, asked: TaskBatch, dropout: Dropout) -> Tensor:
        """(W,): cross-entropy, square of the error, or (multilabel) mean of the labels' binary cross-entropies."""
        logits = wide(self(hidden, asked, dropout))
        if self.kind == "regression":
            return (logits - asked.labels.to(logits.dtype)).square()
        if self.kind == "multilabel":
            targets = asked.labels.to(logits.dtype)
            return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
        return F.cross_entropy(logits, asked.labels, reduction="none")


class AnswerHead(nn.Module):
    """transformers' answers: the logits of start and end, each by itself; no answer points to [CLS]."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.out = nn.Linear(config.hidden_size, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        """(T, 2)"""
        return self.out(hidden)

    def losses(self, hidden: Tensor, asked: TaskBatch, dropout: Dropout) -> Tensor:
        """(N,): mean of the cross-entropies of start and end, over all tokens of a sequence."""
        logits, everywhere = wide(self(hidden)), torch.ones_like(asked.context)
        start, end = (log_softmax(logits[:, i], asked.batch, everywhere) for i in (0, 1))
        return -(start[asked.labels[:, 0]] + end[asked.labels[:, 1]]) / 2

    def spans(self, hidden: Tensor, asked: TaskBatch, beam: int) -> tuple[Tensor, ...]:
        """As JointAnswerHead; the score is the sum of the logits, the null odds those of [CLS]."""
        logits, batch = wide(self(hidden)), asked.batch
        first = batch.cu_seqlens[:-1].long()
        null = logits[first].sum(1)
        masked = logits + NEVER * ~asked.context[:, None]
        start, starts = top(masked[:, 0], batch, beam)
        end, ends = top(masked[:, 1], batch, beam)
        return (
            start,
            starts,
            end[:, None].expand(-1, start.shape[1], -1),
            ends[:, None].expand(-1, start.shape[1], -1),
            null,
        )


class JointAnswerHead(nn.Module):
    """Google's answers: the end given the start, and whether there is one at all.

    start = dense(h_t); end = dense(gelu(dense([h_start ; h_t]))), h_start the true one in training, each of the beam's
    in evaluation; impossible = dense(gelu(dense([h_CLS ; sum_t softmax(start)_t h_t]))). Starts and ends lie in the
    context or on [CLS].
    """

    def __init__(self, config: NetworkConfig, answerable_weight: float) -> None:
        super().__init__()
        width = config.hidden_size
        self.answerable_weight = answerable_weight  # 0: no answerability head (SQuAD v1.1)
        self.start = nn.Linear(width, 1)
        self.end_dense, self.end = nn.Linear(2 * width, QA_WIDTH), nn.Linear(QA_WIDTH, 1)
        if answerable_weight:
            self.answerable_dense, self.answerable = nn.Linear(2 * width, QA_WIDTH), nn.Linear(QA_WIDTH, 1)

    def start_logits(self, hidden: Tensor, asked: TaskBatch) -> Tensor:
        return log_softmax(wide(self.start(hidden)[:, 0]), asked.batch, self._allowed(asked))

    def end_half(self, hidden: Tensor) -> Tensor:
        """Of dense([h_start ; h_t]) the product with h_t, (T, QA_WIDTH): the same for every start."""
        return F.linear(hidden, self.end_dense.weight[:, hidden.shape[1] :])

    def end_logits(self, hidden: Tensor, half: Tensor, asked: TaskBatch, starts: Tensor) -> Tensor:
        """half of end_half, starts (N,) packed -> (T,) log-probabilities of each sequence's end given its start."""
        given = F.linear(hidden[starts], self.end_dense.weight[:, : hidden.shape[1]], self.end_dense.bias)
        inner = F.gelu(half + given[sequence_of(asked.batch)])
        return log_softmax(wide(self.end(inner)[:, 0]), asked.batch, self._allowed(asked))

    def impossible(self, hidden: Tensor, asked: TaskBatch, start: Tensor) -> Tensor:
        """start (T,) log-probabilities -> (N,) logits, above 0 where there is no answer."""
        batch = asked.batch
        weighted = start.exp().to(hidden.dtype)[:, None] * hidden
        summed = hidden.new_zeros(len(batch), hidden.shape[1]).index_add(0, sequence_of(batch), weighted)
        both = torch.cat([hidden[batch.cu_seqlens[:-1].long()], summed], 1)
        return wide(self.answerable(F.gelu(self.answerable_dense(both)))[:, 0])

    def losses(self, hidden: Tensor, asked: TaskBatch, dropout: Dropout) -> Tensor:
        """(N,): (start + end) / 2 + answerable_weight * binary cross-entropy."""
        start = self.start_logits(hidden, asked)
        end = self.end_logits(hidden, self.end_half(hidden), asked, asked.labels[:, 0])
        losses = -(start[asked.labels[:, 0]] + end[asked.labels[:, 1]]) / 2
        if self.answerable_weight:
            logits = self.impossible(hidden, asked, start)
            target = asked.impossible.to(logits.dtype)
            losses = losses + self.answerable_weight * F.binary_cross_entropy_with_logits(
                logits, target, reduction="none"
            )
        return losses

    def spans(self, hidden: Tensor, asked: TaskBatch, beam: int) -> tuple[Tensor, ...]:
        """The beam: start scores and columns (N, k), end scores and columns (N, k, k), null odds (N,).

        Scores are log-probabilities; null odds are the logits of no answer, 0 without an answerability head.
        """
        batch = asked.batch
        start = self.start_logits(hidden, asked)
        scores, columns = top(start, batch, beam)
        first, half = batch.cu_seqlens[:-1].long(), self.end_half(hidden)
        ends = [top(self.end_logits(hidden, half, asked, first + column), batch, beam) for column in columns.T]
        null = self.impossible(hidden, asked, start) if self.answerable_weight else start.new_zeros(len(batch))
        return scores, columns, torch.stack([s for s, _ in ends], 1), torch.stack([c for _, c in ends], 1), null

    def _allowed(self, asked: TaskBatch) -> Tensor:
        return asked.context.index_fill(0, asked.batch.cu_seqlens[:-1].long(), True)


def make_head(config: NetworkConfig, kind: str, labels: int, style: str, answerable_weight: float = 0.0) -> nn.Module:
    """The head for a kind of task, its weights Glorot-uniform, its biases 0."""
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


def sequence_of(batch: Batch) -> Tensor:
    """(T,) the sequence that each packed token belongs to."""
    return torch.repeat_interleave(batch.lengths.to(batch.input_ids.device), output_size=batch.num_tokens)


def log_softmax(logits: Tensor, batch: Batch, allowed: Tensor) -> Tensor:
    """logits (T,) -> log-probabilities (T,) within each sequence, over its allowed tokens."""
    logits = torch.where(allowed, logits, logits + NEVER)
    sums = torch.logsumexp(batch.pad(logits) + NEVER * (1 - batch.pad(torch.ones_like(logits))), 1)
    return logits - sums[sequence_of(batch)]


def top(values: Tensor, batch: Batch, k: int) -> tuple[Tensor, Tensor]:
    """values (T,) -> the k largest of each sequence and their columns, (N, min(k, width)); padding is last."""
    padded = batch.pad(values) + 2 * NEVER * (1 - batch.pad(torch.ones_like(values)))
    best = padded.topk(min(k, batch.width), 1)
    lengths = batch.lengths.to(values.device)[:, None]
    return best.values, torch.minimum(best.indices, lengths - 1)


def wide(x: Tensor) -> Tensor:
    """At least float32: losses and scores are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
