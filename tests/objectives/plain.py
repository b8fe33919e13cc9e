"""The networks in plain PyTorch on one sequence at a time, with the parameters of ours."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from electra_fast.config import ElectraConfig
from electra_fast.data.batch import Batch
from electra_fast.model.encoder import Encoder
from electra_fast.model.networks import Discriminator, Generator

SIZES = dict(vocab_size=90, embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
STILL = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
SMALL = ElectraConfig.small(**SIZES, **STILL, intermediate_size=64, generator_size=0.5, max_position_embeddings=40)


def text(lengths: tuple[int, ...] = (9, 7, 24, 3, 17)) -> Batch:
    """Sequences of words, each between [CLS] and [SEP]."""
    ids = torch.randint(5, 90, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = SMALL.cls_token_id
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = SMALL.sep_token_id
    return Batch.from_padded(ids * mask, mask.long())


def sequences(batch: Batch) -> list[slice]:
    ends = batch.cu_seqlens.tolist()
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def hidden(encoder: Encoder, ids: Tensor, tables: tuple[Tensor, ...] | None = None, causal: bool = False) -> Tensor:
    """Hidden states (n, D) of one sequence; its token types are 0, its places 0 to n - 1, in the order of `ids`."""
    words, positions, types = tables or encoder.embeddings.tables()
    at = torch.arange(len(ids))
    x = normed(words[ids] + positions[at] + types[0], encoder.embeddings.norm)
    if encoder.embeddings_projection is not None:
        x = encoder.embeddings_projection(x)
    for layer in encoder.layers:
        q, k, v = layer.qkv(x).unflatten(1, (3, encoder.config.num_attention_heads, -1)).permute(1, 2, 0, 3)
        scores = q @ k.transpose(1, 2) / q.shape[2] ** 0.5
        if causal:
            scores = scores.masked_fill(at[None] > at[:, None], -torch.inf)
        read = (scores.softmax(2) @ v).transpose(0, 1).flatten(1)
        x = normed(x + layer.out(read), layer.attention_norm)
        x = normed(x + layer.down(F.gelu(layer.up(x))), layer.ffn_norm)
    return x


def over(encoder: Encoder, batch: Batch, ids: Tensor, tables: tuple[Tensor, ...] | None = None) -> Tensor:
    """Hidden states (T, D) of packed sequences."""
    return torch.cat([hidden(encoder, ids[part], tables) for part in sequences(batch)])


def word_logits(network: Generator, states: Tensor) -> Tensor:
    rows = normed(F.gelu(network.transform.dense(states)), network.transform.norm)
    return rows @ network.encoder.embeddings.tables()[0].T + network.vocabulary_bias


def scores(network: Discriminator, states: Tensor) -> Tensor:
    return network.out(F.gelu(network.dense(states))).squeeze(1)


def same_gradients(model: nn.Module, ours: Tensor, plain: Tensor) -> None:
    """The loss and every gradient, in float64."""
    assert abs(ours - plain) < 1e-9 * abs(plain)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found, wanted = (
        torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
        for loss in (ours, plain)
    )
    for name, one, two in zip(named, found, wanted, strict=True):
        assert (one - two).abs().max() <= 1e-8 * two.abs().max() + 1e-13, name
