"""Minimal pairs, as BLiMP has them: two sentences that differ in what makes one of them ungrammatical.

A network that was never fine-tuned is right about a pair if it gives the good sentence the higher score.

- A generator's score is the pseudo-log-likelihood, sum over i of log p(token i | the others), each token hidden once
  (Salazar et al., ACL 2020).
- A discriminator's is the sum of its log-odds that a token is original, sum over i of -logit_i: the logit of replaced
  token detection estimates such a log-odds (Clark et al., "Electric", EMNLP 2020, section 2.3).

Source of the task: Warstadt et al., "BLiMP", TACL 2020.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from electra_fast.data.batch import Batch
from electra_fast.data.tokenizer import Tokenizer
from electra_fast.model.networks import Discriminator, Generator, Network
from electra_fast.storage.atomic import read_json

AT_ONCE = 8192  # tokens of a batch, at most


class MinimalPair(NamedTuple):
    """Two sentences, the set they belong to, and the phenomenon that the set is about."""

    good: str
    bad: str
    set: str
    phenomenon: str


def read_pairs(path: Path) -> list[MinimalPair]:
    """Read BLiMP's .jsonl files: one, or all of a directory.

    Raises ValueError, with file and line, for a line without sentence_good and sentence_bad, and for no file at all.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no .jsonl file; name a set of BLiMP, or a directory of them")
    pairs = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                good, bad = str(row["sentence_good"]), str(row["sentence_bad"])
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{file}, line {number}: a JSON object with sentence_good and sentence_bad is needed, as BLiMP has "
                    f"them"
                ) from None
            pairs.append(MinimalPair(good, bad, file.stem, str(row.get("linguistics_term", file.stem))))
    return pairs


def load_network(path: Path) -> tuple[Generator | Discriminator, Tokenizer]:
    """Load a pre-trained generator or discriminator, whichever the directory holds, and its tokenizer."""
    kinds: dict[str, type[Network]] = {kind.architecture: kind for kind in (Generator, Discriminator)}
    architectures = read_json(path / "config.json").get("architectures") or []
    kind = next((kinds[name] for name in architectures if name in kinds), None)
    if kind is None:
        raise ValueError(
            f"{path} holds {', '.join(map(str, architectures)) or 'no architecture'}; pre-trained networks are needed: "
            f"{' or '.join(kinds)}, such as RUN/final/generator"
        )
    network = kind.from_pretrained(path)
    assert isinstance(network, (Generator, Discriminator))
    return network, Tokenizer.load(path)


@torch.no_grad()
def sentence_scores(
    network: Generator | Discriminator,
    tokenizer: Tokenizer,
    sentences: Sequence[str],
    advance: Callable[[int], object] = lambda n: None,
) -> Tensor:
    """Score sentences: the more natural, the higher.

    network: in evaluation mode. sentences: cut where they are longer than its positions.
    advance: called with the number of sentences scored, after each batch.

    Returns (len(sentences),) float64, in nats; 0 for a sentence without tokens.
    """
    room = network.config.max_position_embeddings - 2
    rows = [
        np.array([tokenizer.cls_token_id, *ids[:room], tokenizer.sep_token_id])
        for ids in tokenizer.encode(list(sentences))
    ]
    scores = torch.zeros(len(rows), dtype=torch.float64)
    for part in _parts(rows, copies=isinstance(network, Generator)):
        owner, hidden = [], []  # of each row of the batch, its sentence; and the token that is hidden in it
        examples = []
        for index in part:
            places = range(1, len(rows[index]) - 1) if isinstance(network, Generator) else (0,)
            for place in places:
                owner.append(index)
                hidden.append(place)
                examples.append((rows[index], len(rows[index])))
        if examples:
            batch = Batch.from_examples(examples, range(len(examples)))
            values = (
                _blanks(network, tokenizer, batch, hidden) if isinstance(network, Generator) else _sums(network, batch)
            )
            scores.index_add_(0, torch.tensor(owner), values)
        advance(len(part))
    return scores


def accuracies(pairs: Sequence[MinimalPair], scores: Tensor) -> dict[str, float]:
    """Share of pairs whose good sentence has the higher score, by phenomenon, and a mean over sets.

    scores: (2 len(pairs),), of the good sentences and then of the bad ones. A draw is half right.
    """
    good, bad = scores.chunk(2)
    right = ((good > bad).double() + (good == bad).double() / 2).tolist()

    def mean(of: list[float]) -> float:
        return sum(of) / len(of)

    def by(name: str) -> dict[str, float]:
        keys = sorted({getattr(pair, name) for pair in pairs})
        return {
            key: mean([r for r, pair in zip(right, pairs, strict=True) if getattr(pair, name) == key]) for key in keys
        }

    return {"accuracy": mean(list(by("set").values()))} | by("phenomenon")


def _parts(rows: Sequence[np.ndarray], copies: bool) -> Iterator[list[int]]:
    """Divide sentences into batches of at most AT_ONCE tokens. copies: each sentence stands once for each token."""
    part: list[int] = []
    tokens = 0
    for index in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        size = len(rows[index]) * (len(rows[index]) - 2 if copies else 1)
        if part and tokens + size > AT_ONCE:
            yield part
            part, tokens = [], 0
        part.append(index)
        tokens += size
    if part:
        yield part


def _hidden_states(network: Network, batch: Batch, input_ids: Tensor) -> Tensor:
    zero = torch.zeros(1, dtype=torch.int64, device=input_ids.device)
    return network.encoder(batch, input_ids, zero, zero, 0)


def _blanks(network: Generator, tokenizer: Tokenizer, batch: Batch, hidden: list[int]) -> Tensor:
    """log p of the token that each sequence hides -> (N,)."""
    batch = batch.to(network.vocabulary_bias.device)
    at = batch.cu_seqlens[:-1].long() + torch.tensor(hidden, device=batch.cu_seqlens.device)
    ids = batch.input_ids.clone()
    ids[at] = tokenizer.mask_token_id
    rows = network.transform(_hidden_states(network, batch, ids)[at])
    losses, _ = network.head(rows, batch.input_ids[at], temperature=0.0)
    return -losses.double().cpu()


def _sums(network: Discriminator, batch: Batch) -> Tensor:
    """Sum of -logit over each sequence's tokens, without [CLS] and [SEP] -> (N,)."""
    batch = batch.to(network.out.weight.device)
    logits = -network.logits(_hidden_states(network, batch, batch.input_ids)).double().cpu()
    ends = batch.cu_seqlens.cpu().long()
    logits[ends[:-1]] = 0.0
    logits[ends[1:] - 1] = 0.0
    sums = torch.cat([logits.new_zeros(1), logits.cumsum(0)])
    return sums[ends[1:]] - sums[ends[:-1]]
