"""The next tokens that may follow targets which are being written: the likeliest ones that no rule forbids."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from electra_fast.decoding.settings import WritingConfig

Top = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # (rows (R, E), k) -> log p (R, k), falling, and tokens (R, k)


class Vocabulary(NamedTuple):
    """The tokens among which a decoder chooses: their number, and those that begin, end and fill up a target."""

    size: int
    start: int
    end: int
    pad: int


def candidates(
    top: Top, rows: Tensor, history: Tensor, count: int, options: WritingConfig, vocabulary: Vocabulary
) -> tuple[Tensor, Tensor]:
    """The likeliest allowed next tokens of each target.

    A few more tokens are taken than are wanted, as many as are forbidden at most, so that no logits are stored.

    top: gives the likeliest tokens of rows. rows: (R, E), what enters the word table.
    history: (R, t) int64, the targets so far, from their start token on.
    count: tokens that are wanted.
    options: their minimum length and the rule on repeated runs are looked at.

    Returns log p (R, count), falling, -inf where fewer tokens are allowed, and tokens (R, count).
    """
    table = forbidden_tokens(history, options, vocabulary)
    if table is None:
        return top(rows, min(vocabulary.size, count))
    log_probs, tokens = top(rows, min(vocabulary.size, count + table.shape[1]))
    hit = (tokens[:, :, None] == table.to(tokens.device)[:, None, :]).any(2)
    log_probs = log_probs.masked_fill(hit, -torch.inf)
    order = hit.long().argsort(dim=1, stable=True)[:, :count]  # allowed ones first, in their order
    return log_probs.gather(1, order), tokens.gather(1, order)


def forbidden_tokens(history: Tensor, options: WritingConfig, vocabulary: Vocabulary) -> Tensor | None:
    """The tokens that may not come next: the end token below the minimum length, and any token that would repeat a run
    of no_repeat_ngram_size tokens.

    Returns a row of tokens for each target, filled up with -1, or one row that counts for all; None if all are allowed.
    """
    size = options.no_repeat_ngram_size
    early = [vocabulary.end] if history.shape[1] < options.min_length else []
    if size == 0 or history.shape[1] < size:
        return torch.tensor([early]) if early else None
    forbidden = []
    for target in history.tolist():
        last = target[len(target) - size + 1 :]
        follows = {target[i + size - 1] for i in range(len(target) - size + 1) if target[i : i + size - 1] == last}
        forbidden.append([*early, *(follows - set(early))])
    most = max(map(len, forbidden))
    return torch.tensor([banned + [-1] * (most - len(banned)) for banned in forbidden]) if most else None
