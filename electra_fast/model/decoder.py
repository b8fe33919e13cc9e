"""The decoder of an encoder-decoder: causal self-attention, attention to the encoder's output, and the word table."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from electra_fast import ops
from electra_fast.config import NetworkConfig
from electra_fast.data.batch import Batch
from electra_fast.model.encoder import Embeddings, Layer, initialise
from electra_fast.model.networks import Transform
from electra_fast.model.seeds import DECODER
from electra_fast.ops._philox import derive_seeds


class Memory(NamedTuple):
    """The keys and values that the cross-attention reads: those of the source's Ts packed tokens, for each layer."""

    keys_values: list[Tensor]
    """For each layer (Ts, 2, H, head dim): keys, then values."""

    cu_seqlens: Tensor
    """Offsets of the sources, (N + 1,) int32."""

    max_seqlen: int
    """Tokens of the longest source."""


class DecoderLayer(Layer):
    """The parameters of one decoder layer: those of an encoder's layer, and a cross-attention block in the middle.

        x = LayerNorm(x + out(causal_attention(qkv(x))))
        x = LayerNorm(x + cross_out(attention(cross_query(x), cross_keys_values(encoder's output))))
        x = LayerNorm(x + down(gelu(up(x))))

    cross_query is (D, D), cross_keys_values (2 D, D), cross_out (D, D). D is hidden_size.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.cross_query = nn.Linear(width, width)
        self.cross_keys_values = nn.Linear(width, 2 * width)
        self.cross_out = nn.Linear(width, width)
        self.cross_norm = nn.LayerNorm(width, config.layer_norm_eps)

    @property
    def step_tensors(self) -> list[Tensor]:
        """The eighteen parameters that ops.decoder_step takes, in its order."""
        own = (self.qkv, self.out, self.attention_norm)
        modules = (*own, self.cross_query, self.cross_out, self.cross_norm, self.up, self.down, self.ffn_norm)
        return [t for module in modules for t in (module.weight, module.bias)]


class Decoder(nn.Module):
    """A network that predicts the next token of a target, from the target so far and the encoder's output.

        logits = word_table transform(hidden) + vocabulary_bias

    config: its sizes, in Hugging Face's names.
    embeddings: the encoder's embeddings, to share them; new ones by default.

    Weights are drawn from torch's generator. transformers' class of the same weights is ElectraForCausalLM with
    add_cross_attention. Source: Vaswani et al., NeurIPS 2017, section 3 (the decoder; LayerNorm after each block).
    """

    def __init__(self, config: NetworkConfig, embeddings: Embeddings | None = None) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config) if embeddings is None else embeddings
        narrow = config.embedding_size != config.hidden_size
        self.embeddings_projection = nn.Linear(config.embedding_size, config.hidden_size) if narrow else None
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.transform = Transform(config)
        self.vocabulary_bias = nn.Parameter(torch.zeros(config.vocab_size))
        initialise(self, config.initializer_range, embeddings)

    def memory(self, encoded: Tensor, source: Batch) -> Memory:
        """Compute the cross-attention's keys and values.

        encoded: (Ts, D), the encoder's output in the decoder's width.
        source: the layout of its rows.
        """
        layers: Any = self.layers
        heads = (2, self.config.num_attention_heads, self.config.head_dim)
        projections = [layer.cross_keys_values for layer in layers]
        keys_values = [ops.linear(encoded, each.weight, each.bias).unflatten(1, heads) for each in projections]
        return Memory(keys_values, source.cu_seqlens, source.max_seqlen)

    def forward(self, target: Batch, memory: Memory, seed: Tensor, step: Tensor) -> Tensor:
        """Compute the hidden states of whole targets.

        target: N packed targets of T tokens, each of which begins with the start token.
        memory: keys and values of the N sources, in the same order.
        seed, step: (1,) int64; dropout's random numbers are a function of them and of the row ids.

        Returns (T, D), in the parameters' dtype; row t depends on the tokens of its target up to t.

        Raises ValueError if a target is longer than the position table, IndexError for an id outside the word table.
        """
        config = self.config
        if target.width > config.max_position_embeddings:
            raise ValueError(
                f"the targets are {target.width} columns wide, the decoder's max_position_embeddings is "
                f"{config.max_position_embeddings}; cut the targets shorter"
            )
        seeds = derive_seeds(seed, step, DECODER, 1 + 3 * len(self.layers))
        heads = (config.num_attention_heads, config.head_dim)
        own: Any = (target.cu_seqlens, target.max_seqlen)
        across: Any = (memory.cu_seqlens, memory.max_seqlen)
        training = 1.0 if self.training else 0.0
        rule: Any = dict(eps=config.layer_norm_eps, dropout_p=training * config.hidden_dropout_prob)
        drop = training * config.attention_probs_dropout_prob
        layers: Any = self.layers
        x = self.embed(target.input_ids, target.token_type_ids, target.position_ids, target.row_ids, seeds[:1])
        for i, layer in enumerate(layers):
            first, second, third = seeds[1 + 3 * i : 4 + 3 * i].split(1)
            query, keys, values = ops.linear(x, layer.qkv.weight, layer.qkv.bias).unflatten(1, (3, *heads)).unbind(1)
            dropout: Any = dict(dropout_p=drop, seed=first, row_ids=target.row_ids)
            context = ops.attention(query, keys, values, *own, causal=True, **dropout)
            x = finish_attention(layer.out, layer.attention_norm, context, x, target.row_ids, seed=first, **rule)
            query = ops.linear(x, layer.cross_query.weight, layer.cross_query.bias).unflatten(1, heads)
            dropout["seed"] = second
            keys, values = memory.keys_values[i].unbind(1)
            context = ops.attention(query, keys, values, *own, *across, **dropout)
            x = finish_attention(layer.cross_out, layer.cross_norm, context, x, target.row_ids, seed=second, **rule)
            up, down, norm = layer.up, layer.down, layer.ffn_norm
            weights = (up.weight, up.bias, down.weight, down.bias, norm.weight, norm.bias)
            x = ops.ffn_block(x, *weights, target.row_ids, seed=third, **rule)
        return x

    def embed(self, ids: Tensor, types: Tensor, places: Tensor, row_ids: Tensor, seed: int | Tensor = 0) -> Tensor:
        """Compute the embeddings (T, D) of tokens.

        ids, types, places, row_ids: (T,) int64. seed: of dropout in training mode, an int or (1,) int64.
        """
        tables, projection = self.embeddings, self.embeddings_projection
        return ops.embedding(
            ids,
            types,
            places,
            tables.word.weight,
            tables.position.weight,
            tables.token_type.weight,
            tables.norm.weight,
            tables.norm.bias,
            None if projection is None else projection.weight,
            None if projection is None else projection.bias,
            row_ids=row_ids,
            eps=self.config.layer_norm_eps,
            dropout_p=self.config.hidden_dropout_prob if self.training else 0.0,
            seed=seed,
        )

    def head(self, rows: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Compute each row's cross-entropy and draw a token from its distribution, without storing any logits.

        rows: (M, E), what `transform` returns. labels: (M,) int64, the next tokens; -100 where there is none.
        options: those of ops.generator_head, such as label_smoothing.

        Returns loss (M,) in nats, 0 where the label is -100, and sampled (M,) int64.
        """
        return ops.generator_head(rows, self.embeddings.word.weight, self.vocabulary_bias, labels, **options)

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits (T, V) of the next token from hidden states (T, D)."""
        return F.linear(self.transform(hidden), self.embeddings.word.weight, self.vocabulary_bias)


def finish_attention(
    out: nn.Linear, norm: nn.LayerNorm, context: Tensor, x: Tensor, row_ids: Tensor, **rule: Any
) -> Tensor:
    """The end of an attention block: LayerNorm(x + dropout(out(context))); context: (T, H, head dim)."""
    projected = ops.linear(context.flatten(1), out.weight, out.bias)
    return ops.dropout_add_layer_norm(projected, x, norm.weight, norm.bias, row_ids, **rule)
