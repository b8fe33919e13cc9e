"""Greedy search, beam search and sampling: which token each target gets next, and when a target is done.

The searches know no model. A `Step` feeds one token a row to the decoder, and says where the rows of this step come
from, so that the decoder can move its cache with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from electra_fast.decoding.candidates import Top, Vocabulary, candidates
from electra_fast.decoding.settings import WritingConfig
from electra_fast.ops._philox import philox

# (tokens (R,), parents (R,)) -> rows (R, E) that enter the word table. parents[r] is the row of the step before that
# row r continues; rows that are nobody's parent are done. Rows stay in the order of their sources.
Step = Callable[[Tensor, Tensor], Tensor]
NEVER = -1e9  # transformers' score of a beam that is not there


class Draws(NamedTuple):
    """What the random numbers of samples are keyed by."""

    seed: Tensor
    """(1,) int64."""

    row_ids: Tensor
    """(N,) int64: that of each target's start token; the token after it has the next one, and so on."""


def search(
    step: Step, top: Top, sources: int, vocabulary: Vocabulary, options: WritingConfig, draws: Draws
) -> list[list[int]]:
    """Write a target for each source.

    step, top: the decoder, and its word table.
    sources: N.
    options: how to write. draws: of samples.

    Returns N targets, each from its start token to its end token, or to max_length.
    """
    if sources == 0:
        return []
    if options.num_beams > 1:
        return _beams(step, top, sources, vocabulary, options, draws.row_ids.device)
    return _one_by_one(step, top, sources, vocabulary, options, draws)


def _one_by_one(
    step: Step, top: Top, sources: int, vocabulary: Vocabulary, options: WritingConfig, draws: Draws
) -> list[list[int]]:
    """Greedy search and sampling: one target a source, each continued until its end token."""
    device = draws.row_ids.device
    history = torch.full((sources, 1), vocabulary.start, device=device)
    going = torch.arange(sources, device=device)  # sources whose targets are not done, one for each row of history
    parents = going
    targets: list[list[int]] = [[] for _ in range(sources)]
    while len(going):
        rows = step(history[:, -1], parents)
        if options.do_sample:
            tokens = _drawn(top, rows, history, vocabulary, options, draws, going)
        else:
            tokens = candidates(top, rows, history, 1, options, vocabulary)[1][:, 0]
        history = torch.cat([history, tokens[:, None]], 1)
        done = tokens == vocabulary.end
        if history.shape[1] == options.max_length:
            done = torch.ones_like(done)
        for row in done.nonzero().flatten().tolist():
            targets[int(going[row])] = history[row].tolist()
        parents = (~done).nonzero().flatten()
        history, going = history[parents], going[parents]
    return targets


def _drawn(
    top: Top,
    rows: Tensor,
    history: Tensor,
    vocabulary: Vocabulary,
    options: WritingConfig,
    draws: Draws,
    going: Tensor,
) -> Tensor:
    """A token (R,) for each row, drawn from its likeliest tokens by one random number of its own."""
    count = min(options.top_k or vocabulary.size, vocabulary.size)
    log_probs, tokens = candidates(top, rows, history, count, options, vocabulary)
    weights = (log_probs.double() / options.temperature).softmax(1)
    before = weights.cumsum(1) - weights
    weights = weights.masked_fill(before >= options.top_p, 0.0)  # the likeliest token always stays
    place = history.shape[1] - 1
    u = (philox(draws.seed, draws.row_ids[going] + place, 0, 0)[0] + 0.5) / 2**32
    running = weights.cumsum(1)
    last = (weights > 0).sum(1) - 1
    chosen = torch.minimum((running <= u[:, None] * running[:, -1:]).sum(1), last)
    return tokens.gather(1, chosen[:, None])[:, 0]


def _beams(
    step: Step, top: Top, sources: int, vocabulary: Vocabulary, options: WritingConfig, device: torch.device
) -> list[list[int]]:
    """Beam search as transformers' generate does it with early_stopping=False.

    Each step extends the K running targets of a source and keeps the K best that go on. Those among the K best that end
    are finished, with score log p / tokens ** length_penalty; the K best of them are kept. A source is done if its best
    running target, at its present length, would not beat its worst of K finished ones.
    """
    beams, most = options.num_beams, options.max_length
    history = torch.full((sources, beams, 1), vocabulary.start, device=device)
    scores = torch.full((sources, beams), NEVER, device=device)
    scores[:, 0] = 0.0
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(sources)]
    going = torch.arange(sources, device=device)
    parents = torch.arange(sources, device=device).repeat_interleave(beams)
    while len(going):
        length = history.shape[2]  # before the new token: as many tokens as are generated with it
        rows = step(history[:, :, -1].flatten(), parents)
        log_probs, tokens = candidates(top, rows, history.flatten(0, 1), 2 * beams, options, vocabulary)
        count = tokens.shape[1]
        totals = (scores[:, :, None] + log_probs.view(-1, beams, count)).flatten(1)
        best, at = totals.topk(2 * beams, 1)
        beam, token = at // count, tokens.view(len(going), -1).gather(1, at)
        extended = torch.cat([history.gather(1, beam[:, :, None].expand(-1, -1, length)), token[:, :, None]], 2)
        ends = token == vocabulary.end
        if length + 1 == most:
            ends = torch.ones_like(ends)
        for row, place in ends[:, :beams].nonzero().tolist():
            ours = finished[int(going[row])]
            ours.append((float(best[row, place]) / length**options.length_penalty, extended[row, place].tolist()))
        kept, order = (best + NEVER * ends).topk(beams, 1)
        unfinished = []
        for row, source in enumerate(going.tolist()):
            finished[source] = sorted(finished[source], key=lambda each: -each[0])[:beams]
            full = len(finished[source]) == beams
            could_be = float(kept[row, 0]) / length**options.length_penalty
            if length + 1 < most and not (full and could_be <= finished[source][-1][0]):
                unfinished.append(row)
        rest = torch.tensor(unfinished, dtype=torch.int64, device=device)
        order, scores, going = order[rest], kept[rest], going[rest]
        history = extended[rest].gather(1, order[:, :, None].expand(-1, -1, length + 1))
        parents = (rest[:, None] * beams + beam[rest].gather(1, order)).flatten()
    return [ours[0][1] for ours in finished]
