"""How natural a sentence is to a network that was never fine-tuned.

- A generator's score is the pseudo-log-likelihood, sum over i of log p(token i | the others), each token hidden once
  (Salazar et al., ACL 2020).
- A discriminator's is the sum of its log-odds that a token is original, sum over i of -logit_i: the logit of replaced
  token detection estimates such a log-odds (Clark et al., "Electric", EMNLP 2020, section 2.3). It takes one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from electra_fast.data.batch import Batch
from electra_fast.data.tokenizer import Tokenizer
from electra_fast.model.networks import Discriminator, Generator, Network
from electra_fast.storage.atomic import read_json

AT_ONCE = 8192  # tokens of a batch, at most


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
def token_scores(
    network: Generator | Discriminator,
    tokenizer: Tokenizer,
    sentences: Sequence[str],
    advance: Callable[[int], object] = lambda n: None,
) -> list[tuple[np.ndarray, Tensor]]:
    """Score the tokens of sentences: the better a token goes with the others, the higher.

    network: in evaluation mode.
    sentences: cut where they are longer than the network's positions.
    advance: called after each batch, with the number of sentences that it finished.

    Returns for each sentence its token ids and their scores in nats, float64, without [CLS] and [SEP].

    Cost: a generator reads a sentence of n tokens n times, a discriminator once.
    """
    room = network.config.max_position_embeddings - 2
    rows = [
        np.array([tokenizer.cls_token_id, *ids[:room], tokenizer.sep_token_id])
        for ids in tokenizer.encode(list(sentences))
    ]
    scores = [torch.zeros(len(row) - 2, dtype=torch.float64) for row in rows]
    hides = isinstance(network, Generator)
    for part in _parts(rows, hides):
        batch = Batch.from_examples([(rows[index], len(rows[index])) for index, _ in part], range(len(part)))
        if isinstance(network, Generator):
            values = _blanks(network, tokenizer, batch, [place for _, place in part])
            for (index, place), value in zip(part, values.tolist(), strict=True):
                scores[index][place - 1] = value
        else:
            values = _log_odds(network, batch)
            for (index, _), odds in zip(part, values.split(batch.lengths.tolist()), strict=True):
                scores[index] = odds[1:-1]
        advance(sum(not hides or place == len(rows[index]) - 2 for index, place in part))
    advance(sum(len(row) == 2 for row in rows) if hides else 0)  # those without tokens, which no batch holds
    return [(row[1:-1], score) for row, score in zip(rows, scores, strict=True)]


def sentence_scores(
    network: Generator | Discriminator,
    tokenizer: Tokenizer,
    sentences: Sequence[str],
    advance: Callable[[int], object] = lambda n: None,
) -> Tensor:
    """Score sentences: the more natural, the higher. The arguments are those of `token_scores`.

    Returns (len(sentences),) float64, in nats: the sums of the tokens' scores, 0 for a sentence without tokens.
    """
    scores = token_scores(network, tokenizer, sentences, advance)
    return torch.tensor([score.sum().item() for _, score in scores], dtype=torch.float64)


def _parts(rows: Sequence[np.ndarray], hides: bool) -> Iterator[list[tuple[int, int]]]:
    """Divide sentences into batches of at most AT_ONCE tokens, of similar lengths.

    hides: whether each sentence stands once for each of its tokens, which is hidden.

    Yields lists of (index of the sentence, place of the hidden token); without `hides` all places are 0.
    """
    part: list[tuple[int, int]] = []
    tokens = 0
    for index in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        for place in range(1, len(rows[index]) - 1) if hides else (0,):
            if part and tokens + len(rows[index]) > AT_ONCE:
                yield part
                part, tokens = [], 0
            part.append((index, place))
            tokens += len(rows[index])
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


def _log_odds(network: Discriminator, batch: Batch) -> Tensor:
    """-logit of each token -> (T,)."""
    batch = batch.to(network.out.weight.device)
    return -network.logits(_hidden_states(network, batch, batch.input_ids)).double().cpu()
