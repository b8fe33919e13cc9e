"""The two-tower generator: a network from each side predicts every token of a text, none of which is hidden."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from electra_fast import ops
from electra_fast.config import NetworkConfig
from electra_fast.data.batch import Batch
from electra_fast.model.decoder import finish_attention
from electra_fast.model.encoder import Embeddings, Encoder, initialise
from electra_fast.model.networks import Transform, word_head
from electra_fast.model.seeds import GENERATOR, RIGHT_TO_LEFT
from electra_fast.ops._philox import derive_seeds
from electra_fast.ops.masking import Masked


class Tower(Encoder):
    """An encoder whose tokens see themselves and the tokens before them in their sequence, and none after them."""

    def forward(
        self, batch: Batch, input_ids: Tensor, seed: Tensor, step: Tensor, stream: int, masked: Masked | None = None
    ) -> Tensor:
        """Compute hidden states (T, D); the arguments and errors are those of Encoder.forward, `masked` is not used."""
        config = self.config
        layers: Any = self.layers
        seeds = derive_seeds(seed, step, stream, 1 + 3 * len(layers))
        x = self.embed(batch, input_ids, seeds[:1])
        heads = (3, config.num_attention_heads, config.head_dim)
        drop = config.attention_probs_dropout_prob if self.training else 0.0
        rule: Any = dict(eps=config.layer_norm_eps, dropout_p=config.hidden_dropout_prob if self.training else 0.0)
        rows = batch.row_ids
        for i, layer in enumerate(layers):
            first, second, third = seeds[1 + 3 * i : 4 + 3 * i].split(1)
            q, k, v = ops.linear(x, layer.qkv.weight, layer.qkv.bias).unflatten(1, heads).unbind(1)
            dropout: Any = dict(dropout_p=drop, seed=first, row_ids=rows)
            context = ops.attention(q, k, v, batch.cu_seqlens, batch.max_seqlen, causal=True, **dropout)
            x = finish_attention(layer.out, layer.attention_norm, context, x, rows, seed=second, **rule)
            up, down, norm = layer.up, layer.down, layer.ffn_norm
            weights = (up.weight, up.bias, down.weight, down.bias, norm.weight, norm.bias)
            x = ops.ffn_block(x, *weights, rows, seed=third, **rule)
        return x


class TwoTowers(nn.Module):
    """A generator that predicts each token from those before it, by one tower, and those after it, by another.

        logits_t = word_table transform([left_to_right_{t-1}, right_to_left_{t+1}]) + vocabulary_bias

    A tower has zeros where its side of the sequence is empty. transformers has no class of such weights.

    config: the sizes of one tower. embeddings: another network's, to share them; new ones by default.

    Source: Clark et al., "Pre-Training Transformers as Energy-Based Cloze Models" (Electric), EMNLP 2020, section 2.2.
    """

    def __init__(self, config: NetworkConfig, embeddings: Embeddings | None = None) -> None:
        super().__init__()
        self.config = config
        self.left_to_right = Tower(config, embeddings)
        self.right_to_left = Tower(config, self.left_to_right.embeddings)
        self.transform = Transform(dataclasses.replace(config, hidden_size=2 * config.hidden_size))
        self.vocabulary_bias = nn.Parameter(torch.zeros(config.vocab_size))
        initialise(self, config.initializer_range, embeddings)

    def forward(self, batch: Batch, seed: Tensor, step: Tensor) -> Tensor:
        """Compute the rows that enter the word table, (T, E): that of a token does not depend on the token.

        batch: the packed text. seed, step: (1,) int64, of dropout.
        """
        at = torch.arange(len(batch.input_ids), device=batch.input_ids.device)
        owner = torch.searchsorted(batch.cu_seqlens[1:].contiguous(), at.to(batch.cu_seqlens.dtype), right=True)
        start, end = batch.cu_seqlens[owner].long(), batch.cu_seqlens[owner + 1].long()
        mirror = start + end - 1 - at  # the place of each token in its sequence read backwards
        names = ("token_type_ids", "position_ids", "row_ids")
        backwards = dataclasses.replace(batch, **{name: getattr(batch, name)[mirror] for name in names})
        left = self.left_to_right(batch, batch.input_ids, seed, step, GENERATOR)
        right = self.right_to_left(backwards, batch.input_ids[mirror], seed, step, RIGHT_TO_LEFT)[mirror]
        left = torch.where((at > start)[:, None], left.roll(1, 0), 0.0)
        right = torch.where((at + 1 < end)[:, None], right.roll(-1, 0), 0.0)
        return self.transform(torch.cat([left, right], 1))

    def head(self, rows: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Compute each row's cross-entropy and draw a token from its distribution, as Generator.head does."""
        return word_head(rows, self.left_to_right.embeddings.tables()[0], self.vocabulary_bias, labels, **options)
