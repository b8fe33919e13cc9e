"""Initial weights that know which words stand beside each other, so that training starts where counts of pairs end.

From random weights a network must find out that neighbours matter, and then which words go together. On a small text
both take most of a run, and both can be counted beforehand. By how much token x follows token y more often than chance
has it,

    M[y, x] = log(1 + c(y x) / (t(y) P(x)))

is the Witten-Bell estimate of log P(x | y) / P(x) without the part that is the same for every x (c and t as in
data/ngrams.py). M's largest singular vectors, M ~ U S V^T, give each word two short vectors: `left`, a row of
U sqrt(S), says what it is like to stand before a word, `right`, a row of V sqrt(S), what it is like to stand after one.
So M[y, x] is about left(y) . right(x), and the networks begin as follows.

- A word's embedding is its left and its right vector. A position's embedding is sines and cosines of it.
- One head attends to the token before and brings its left vector; another attends to the token after and brings its
  right vector. They are the first two heads, of the first layer where it has two.
- In the generator both vectors are added to the blank's own, which is 0. Its product with the word table is then about
  M[before, x] + M[x, after]. The bias of the vocabulary is log P(x).
- In the discriminator both vectors go to columns of their own. The feed-forward block of the last layer multiplies them
  with the token's own vectors, by a b = ((a + b)^2 - (a - b)^2) / 4 and gelu(z) + gelu(-z) ~ sqrt(2 / pi) z^2. The sum
  of the products goes to one column, and the head reads that column: a token that goes badly with its neighbours is
  suspected.

All other weights stay as they were drawn, some of them smaller. Only values differ from other initial weights; the
files are those of any ELECTRA.

Source: word vectors as factors of such a table, Levy and Goldberg, NeurIPS 2014; that sines and cosines let a head
attend at a distance, Vaswani et al., NeurIPS 2017, section 3.5; initial weights of attention that are chosen rather
than drawn, Trockman and Kolter, ICML 2023. The products in the discriminator are this project's.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast.data.ngrams import NGrams
from electra_fast.model.encoder import Embeddings, Encoder
from electra_fast.model.networks import Discriminator, Generator
from electra_fast.model.residual_embeddings import ResidualEmbeddings

WAVES = 32  # columns of an embedding, at most, for the position
SPREAD = 0.02  # root mean square of an embedding's numbers
FOCUS = 16.0  # a head's score of the neighbour it attends to, above the mean of the other tokens' scores
QUIET = 0.1  # what drawn weights beside chosen ones are multiplied by
SHARPNESS = 2.0  # LayerNorm's weight in the generator's head: how far its logits spread
SLOPE = 0.5  # of a unit's input in the discriminator's block, where gelu(z) + gelu(-z) is still near z^2
DEVIATION = 3.0  # of the sum of the products, which LayerNorm leaves between 2 and 3
NEARLY_LINEAR = 0.25  # of the vectors that enter the generator's gelu around 1, a range in which it is nearly linear
SCALE, BIAS, PRIOR = 0.5, 3.0, -4.0  # the discriminator's logit is gelu(BIAS - SCALE s) + PRIOR


class Columns(NamedTuple):
    """Which columns of the hidden states hold what: positions, left vectors, right vectors.

    The left vectors that a head brings go to `brought_left`, the right vectors to `brought_right`.
    """

    waves: int
    rank: int  # the length of a left vector, and of a right one
    left: int
    right: int
    brought_left: int
    brought_right: int


@torch.no_grad()
def start_from_counts(discriminator: Discriminator | None, generator: Generator | None, ngrams: NGrams) -> None:
    """Set initial weights of the networks from counts of neighbouring tokens, in place.

    discriminator: may be None. Of embeddings that both networks share, the discriminator's width decides how many
        columns words have.
    generator: the masked language model; may be None.
    ngrams: the counts, over the vocabulary of the networks.

    Raises ValueError for networks with a single head in all, or too narrow to hold a vector of 1.
    Cost: a truncated singular value decomposition of a sparse (V, V) table; 0.2 s for 1,000 words, some seconds for
    30,000.
    """
    own = None if generator is None else generator.encoder.embeddings
    tables = None if discriminator is None else discriminator.encoder.embeddings
    if isinstance(tables, ResidualEmbeddings):
        tables.token_type.weight.copy_(tables.tables()[2])
    if discriminator is not None and tables is not None:
        waves, rank = _embed(tables, ngrams, discriminator.config.hidden_size, apart=True)
        _discriminate(discriminator, _attend(discriminator.encoder, waves, rank, apart=True))
    if generator is not None and own is not None:
        if own is not tables:
            waves, rank = _embed(own, ngrams, generator.config.hidden_size, apart=False)
        _generate(generator, _attend(generator.encoder, waves, rank, apart=False), rank, ngrams)
    if isinstance(tables, ResidualEmbeddings):  # until here they hold what the network is to read
        tables.represent((tables.word.weight, tables.position.weight, tables.token_type.weight))


def frequencies(number: int) -> Tensor:
    """Angles a position (number,), spread evenly over (0, pi) by the golden ratio."""
    return math.pi * ((torch.arange(1, number + 1) * ((math.sqrt(5) - 1) / 2)) % 1.0)


def neighbour_vectors(ngrams: NGrams, rank: int) -> tuple[Tensor, Tensor]:
    """Left and right vectors of all words, each (V, rank), of length 1, or 0 where a word was never counted there.

    ngrams: counts of pairs. rank: at most V.
    """
    pairs, size = ngrams.pairs, ngrams.vocab_size
    before, after = pairs.keys // size, pairs.keys % size
    kinds = pairs.kinds[np.searchsorted(pairs.histories, before)]
    values = np.log1p(pairs.counts / (kinds * ngrams.unigram(after))).astype(np.float32)
    places = torch.from_numpy(np.stack([before, after]))
    table = torch.sparse_coo_tensor(
        places, torch.from_numpy(values), (size, size), is_coalesced=True, check_invariants=False
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, strength, right = torch.svd_lowrank(table, min(rank + 8, size), niter=4)
    vectors = []
    for side, counted in ((left, before), (right, after)):
        seen = torch.zeros(size, 1)
        seen[torch.from_numpy(np.unique(counted))] = 1.0
        vectors.append(F.normalize(side[:, :rank] * strength[:rank].sqrt(), dim=1) * seen)
    return vectors[0], vectors[1]


def _embed(tables: Embeddings, ngrams: NGrams, hidden: int, apart: bool) -> tuple[int, int]:
    """Write word and position vectors -> columns of positions, length of a left or right vector.

    hidden: the hidden size of the network. apart: whether that needs columns for what the heads bring.
    """
    width = tables.word.weight.shape[1]
    waves = min(WAVES, width // 4) // 2 * 2
    rank = min((width - waves) // 2, (hidden - waves - 1) // 4 if apart else (hidden - waves) // 2, ngrams.vocab_size)
    if waves < 2 or rank < 1:
        raise ValueError(
            f"embedding_size is {width} and hidden_size {hidden}, too narrow for initial weights from counts; take "
            f"initial_weights='random' (--initial-weights random), or sizes of at least 16"
        )
    left, right = neighbour_vectors(ngrams, rank)
    tables.word.weight.zero_()
    tables.word.weight[: len(left), waves : waves + 2 * rank] = (
        torch.cat([left, right], 1) * SPREAD * (width / 2) ** 0.5
    )
    angles = torch.arange(len(tables.position.weight)).outer(frequencies(waves // 2))
    tables.position.weight.zero_()
    tables.position.weight[:, :waves] = torch.stack([angles.cos(), angles.sin()], 2).flatten(1) * SPREAD * math.sqrt(2)
    tables.token_type.weight.mul_(QUIET)
    return waves, rank


def _attend(encoder: Encoder, waves: int, rank: int, apart: bool) -> Columns:
    """Make two heads bring the neighbours' vectors, into columns of their own (apart) or onto the token's own.

    Of vectors of `rank` numbers a narrower network uses the first, which are those of the largest singular values.
    """
    config, width, size = encoder.config, encoder.config.hidden_size, encoder.config.head_dim
    layers: Any = encoder.layers
    kept = min(rank, (width - waves - 1) // 4 if apart else (width - waves) // 2)
    right = waves + rank
    if encoder.embeddings_projection is not None:
        projection = encoder.embeddings_projection.weight.mul_(QUIET)
        own = torch.cat([torch.arange(waves + kept), right + torch.arange(kept)])
        projection[torch.arange(len(own)), own] = 1.0
        right = waves + kept
    shift = right + kept - waves if apart else 0
    columns = Columns(waves, kept, waves, right, right + shift, waves + shift)

    places = [(layer, head) for layer in range(config.num_hidden_layers) for head in range(config.num_attention_heads)]
    if len(places) < 2:
        raise ValueError(
            "num_hidden_layers and num_attention_heads are 1; initial weights from counts need two heads in all: take "
            "initial_weights='random' (--initial-weights random), or more layers"
        )
    used = min(waves, size) // 2  # angles that fit in a head
    even, moved = torch.arange(used) * 2, torch.arange(min(kept, size))
    strength = math.sqrt(FOCUS * math.sqrt(size) / (2 * used))
    for offset, source, target, (layer, head) in zip(
        (-1, 1), (columns.left, columns.right), columns[4:], places, strict=False
    ):
        turn = frequencies(used) * offset
        query, key = torch.zeros(size, width), torch.eye(size, width)
        key[2 * used :] = 0
        query[even, even], query[even, even + 1] = turn.cos(), -turn.sin()
        query[even + 1, even], query[even + 1, even + 1] = turn.sin(), turn.cos()
        qkv, out = layers[layer].qkv.weight, layers[layer].out.weight
        rows = slice(head * size, (head + 1) * size)
        queries, keys, values = qkv.view(3, width, width)[:, rows]
        queries += strength * query
        keys += strength * key
        values *= QUIET
        values[moved, source + moved] = 1.0
        out[:, rows] *= QUIET
        out[target + moved, head * size + moved] = 1.0
    return columns


def _generate(network: Generator, columns: Columns, rank: int, ngrams: NGrams) -> None:
    """Make the generator's head pass on the vectors in the columns, and its bias the words' frequencies.

    The bias puts the vectors around 1, and LayerNorm takes it away again.
    """
    dense, kept = network.transform.dense, torch.arange(columns.rank)
    dense.weight.mul_(QUIET)
    dense.weight[columns.waves + kept, columns.left + kept] += NEARLY_LINEAR
    dense.weight[columns.waves + rank + kept, columns.right + kept] += NEARLY_LINEAR
    dense.bias.fill_(1.0)
    network.transform.norm.weight.fill_(SHARPNESS)
    words = np.arange(ngrams.vocab_size)
    network.vocabulary_bias[: len(words)] = torch.from_numpy(np.log(ngrams.unigram(words))).to(network.vocabulary_bias)


def _discriminate(network: Discriminator, columns: Columns) -> None:
    """Make the last feed-forward block compare a token with its neighbours, and the head read what it finds.

    Of vectors that are too long for the block, the first numbers are compared. A column then holds -s, where s is the
    sum of their products, and the head turns it into the logit gelu(BIAS - SCALE s) + PRIOR, about -1 - s / 2: the
    better a token goes with its neighbours, the lower.
    """
    layer: Any = network.encoder.layers[-1]
    width = network.config.hidden_size
    each = min(columns.rank, network.config.intermediate_size // 8)
    kept = torch.arange(each)
    own = torch.cat([columns.left + kept, columns.right + kept])
    brought = torch.cat([columns.brought_right + kept, columns.brought_left + kept])
    units = torch.arange(len(own))
    last = width - 1  # the column of the sum
    layer.down.weight[:, : 4 * len(own)] *= QUIET
    share = DEVIATION / (SLOPE**2 * 4 * math.sqrt(2 / math.pi) * math.sqrt(len(own)))
    for block, (first, second) in enumerate(((1, 1), (-1, -1), (1, -1), (-1, 1))):
        rows = block * len(own) + units
        layer.up.weight[rows] = 0.0
        layer.up.weight[rows, own] = first * SLOPE
        layer.up.weight[rows, brought] = second * SLOPE
        layer.down.weight[last, rows] = -share if first == second else share
    network.dense.weight.mul_(QUIET)
    network.dense.weight[0, last] = SCALE
    network.dense.bias[0] = BIAS
    network.out.weight.mul_(QUIET)
    network.out.weight[0, 0] = 1.0
    network.out.bias.fill_(PRIOR)
