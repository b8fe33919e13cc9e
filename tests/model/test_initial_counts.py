"""Initial weights from counts of neighbours: what the networks know before the first step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from electra_fast.config import ElectraConfig
from electra_fast.data.batch import Batch
from electra_fast.data.ngrams import NGrams
from electra_fast.model.initial_counts import frequencies, neighbour_vectors, start_from_counts
from electra_fast.objectives.electra import Electra
from electra_fast.train.metrics import auc

V, LENGTH = 60, 24
IDS = dict(pad_token_id=0, unk_token_id=1, cls_token_id=2, sep_token_id=3, mask_token_id=4)


def text(sequences: int, seed: int) -> list[np.ndarray]:
    """Sequences in which each word has four words that may follow it."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(sequences):
        words = [int(draw.integers(5, V))]
        while len(words) < LENGTH - 2:
            words.append(5 + (words[-1] * 7 + int(draw.integers(4)) * 13) % (V - 5))
        found.append(np.array([2, *words, 3]))
    return found


def batch(sequences: int, seed: int) -> Batch:
    rows = torch.from_numpy(np.stack(text(sequences, seed)))
    return Batch.from_padded(rows, torch.ones_like(rows))


@pytest.fixture(scope="module")
def ngrams() -> NGrams:
    examples = text(400, seed=0)
    return NGrams.count(np.concatenate(examples), np.array([len(ids) for ids in examples]), V)


def pair(ngrams: NGrams | None, **changes: object) -> Electra:
    torch.manual_seed(0)
    model = Electra(ElectraConfig.tiny(vocab_size=V, **IDS | changes))
    if ngrams is not None:
        start_from_counts(model.discriminator, model.generator, ngrams)
    return model.eval()


def figures(model: Electra) -> tuple[float, float]:
    """The generator's loss and the discriminator's AUC on text that was not counted."""
    held_out = batch(48, seed=1)
    with torch.no_grad():
        out = model(held_out, 3)
    allowed = model.replaceable(held_out.input_ids)
    return out.generator_loss.item(), auc(out.discriminator_logits[allowed], out.is_replaced[allowed])


@pytest.mark.parametrize(
    "changes",
    [
        dict(share_embeddings=False),
        dict(share_embeddings=True),
        dict(share_embeddings=True, generator_size=1 / 3),
        dict(embedding_size=192, share_embeddings=False),  # no projection
        dict(num_attention_heads=1, generator_size=1 / 3, share_embeddings=False),  # the heads of two layers
    ],
)
def test_networks_begin_where_counts_end(ngrams: NGrams, changes: dict[str, object]) -> None:
    """Drawn weights give log V nats, 4.1 here, and an AUC of about 0.5."""
    drawn, counted = figures(pair(None, **changes)), figures(pair(ngrams, **changes))
    assert drawn[0] > 3.9 and abs(drawn[1] - 0.5) < 0.1
    assert counted[0] < drawn[0] - 0.2
    assert counted[1] > 0.75


def test_heads_attend_to_the_neighbours(ngrams: NGrams) -> None:
    """Of each token's attention, nearly all goes to the one before in the first head, to the one after in the next."""
    network = pair(ngrams, share_embeddings=False).discriminator
    tokens = batch(1, seed=2)
    tables, layer = network.encoder.embeddings, network.encoder.layers[0]
    x = tables.norm(
        tables.word(tokens.input_ids) + tables.position(tokens.position_ids) + tables.token_type(tokens.token_type_ids)
    )
    query, key, _ = layer.qkv(network.encoder.embeddings_projection(x)).unflatten(1, (3, 3, 64)).unbind(1)
    attention = torch.einsum("qhd,khd->hqk", query, key).div(8).softmax(-1)
    assert attention[0].diagonal(-1).mean() > 0.9
    assert attention[1].diagonal(1).mean() > 0.9


def test_vectors_are_the_largest_singular_ones(ngrams: NGrams) -> None:
    """At full rank, where the largest are all: the angles between words' vectors are those of a dense decomposition."""
    pairs = ngrams.pairs
    kinds = dict(zip(pairs.histories.tolist(), pairs.kinds.tolist(), strict=True))
    table = np.zeros((V, V))
    for key, count in zip(pairs.keys.tolist(), pairs.counts.tolist(), strict=True):
        before, after = divmod(key, V)
        table[before, after] = np.log(1 + count / (kinds[before] * ngrams.unigram(np.array([after]))[0]))
    u, s, vt = np.linalg.svd(table)
    found = [vectors.double().numpy() for vectors in neighbour_vectors(ngrams, V)]
    for vectors, wanted, seen in zip(found, (u, vt.T), (table.any(1), table.any(0)), strict=True):
        wanted = (wanted * s**0.5)[seen]
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        assert np.abs(vectors[seen] @ vectors[seen].T - wanted @ wanted.T).max() < 1e-3
        assert np.abs(vectors[~seen]).max() < 1e-3  # such as [SEP], which nothing follows


def test_angles_differ() -> None:
    angles = frequencies(16)
    assert (angles > 0).all() and (angles < torch.pi).all()
    assert angles.sort().values.diff().min() > torch.pi / 64


def test_the_same_counts_give_the_same_bits(ngrams: NGrams) -> None:
    first, second = (pair(ngrams, share_embeddings=False).state_dict() for _ in range(2))
    state = torch.random.get_rng_state()
    neighbour_vectors(ngrams, 8)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(t, second[name]) for name, t in first.items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(embedding_size=4, hidden_size=4, num_attention_heads=1, generator_size=1.0), "too narrow"),
        (dict(num_hidden_layers=1, num_attention_heads=1), "two heads"),
    ],
)
def test_networks_that_cannot_hold_them(ngrams: NGrams, changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=f"{words}.*--initial-weights random"):
        pair(ngrams, **changes)
