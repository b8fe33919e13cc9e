"""The encoder both networks are made of: embeddings, layers, and how they are initialised."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from electra_fast import ops
from electra_fast.config import NetworkConfig
from electra_fast.data.batch import Batch
from electra_fast.ops._philox import derive_seeds
from electra_fast.ops.masking import Masked


class Embeddings(nn.Module):
    """The tables the two networks share: word (V, E), position (P, E), token type (2, E), and their LayerNorm."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.embedding_size
        self.word = nn.Embedding(config.vocab_size, width)
        self.position = nn.Embedding(config.max_position_embeddings, width)
        self.token_type = nn.Embedding(config.type_vocab_size, width)
        self.norm = nn.LayerNorm(width, config.layer_norm_eps)


class Layer(nn.Module):
    """One post-LN transformer layer: attention block, then FFN block. Q, K and V are one (3 D, D) projection."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.ffn_norm = nn.LayerNorm(width, config.layer_norm_eps)

    @property
    def tensors(self) -> list[Tensor]:
        """As ops.encoder takes them."""
        modules = (self.qkv, self.out, self.attention_norm, self.up, self.down, self.ffn_norm)
        return [t for module in modules for t in (module.weight, module.bias)]


class Encoder(nn.Module):
    """Embeddings, their projection to the width where it differs, and the layers."""

    def __init__(self, config: NetworkConfig, embeddings: Embeddings | None = None) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config) if embeddings is None else embeddings
        narrow = config.embedding_size != config.hidden_size
        self.embeddings_projection = nn.Linear(config.embedding_size, config.hidden_size) if narrow else None
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self, batch: Batch, input_ids: Tensor, seed: Tensor, step: Tensor, stream: int, masked: Masked | None = None
    ) -> Tensor:
        """input_ids (T,) in the batch's layout -> hidden (T, D); with `masked`, of its positions alone: (M, D).

        Raises ValueError on sequences longer than the position table.
        """
        config, tables, projection = self.config, self.embeddings, self.embeddings_projection
        layers: Any = self.layers
        if batch.width > config.max_position_embeddings:
            raise ValueError(
                f"the batch is {batch.width} columns wide, max_position_embeddings is "
                f"{config.max_position_embeddings}; cut the text into shorter sequences"
            )
        seeds = derive_seeds(seed, step, stream, 1 + 2 * len(layers))
        x = ops.embedding(
            input_ids,
            batch.token_type_ids,
            batch.position_ids,
            tables.word.weight,
            tables.position.weight,
            tables.token_type.weight,
            tables.norm.weight,
            tables.norm.bias,
            None if projection is None else projection.weight,
            None if projection is None else projection.bias,
            row_ids=batch.row_ids,
            eps=config.layer_norm_eps,
            dropout_p=config.hidden_dropout_prob if self.training else 0.0,
            seed=seeds[0:1],
        )
        asking: dict[str, Any] = {}
        if masked is not None:
            asking = dict(rows=masked.positions, cu_rows=masked.slots, max_rows=masked.max_slots)
        return ops.encoder(
            x,
            [layer.tensors for layer in layers],
            batch.cu_seqlens,
            batch.max_seqlen,
            batch.row_ids,
            config.num_attention_heads,
            **asking,
            eps=config.layer_norm_eps,
            attention_dropout_p=config.attention_probs_dropout_prob if self.training else 0.0,
            dropout_p=config.hidden_dropout_prob if self.training else 0.0,
            seeds=seeds[1:],
        )


def initialise(network: nn.Module, spread: float, shared: Embeddings | None = None) -> None:
    """As Google's code: truncated normal at two deviations; Glorot for the projection and the last layer; biases 0.

    Shared embeddings are left as the other network has them.
    """
    kept = set() if shared is None else set(shared.modules())
    for name, module in network.named_modules():
        if module in kept:
            continue
        if isinstance(module, nn.Linear) and (name.endswith("embeddings_projection") or module.out_features == 1):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.trunc_normal_(module.weight, std=spread, a=-2 * spread, b=2 * spread)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
