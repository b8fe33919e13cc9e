"""The encoder that both networks are made of: embeddings, transformer layers, and their initial weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from electra_fast import ops
from electra_fast.config import NetworkConfig
from electra_fast.data.batch import Batch
from electra_fast.ops._philox import derive_seeds
from electra_fast.ops.masking import Masked


class Embeddings(nn.Module):
    """The embedding tables that the two networks share: words, positions, token types, and the LayerNorm of their sum.

    word: (V, E) = (vocab_size, embedding_size). position: (P, E) = (max_position_embeddings, embedding_size).
    token_type: (type_vocab_size, E). norm: weight and bias of (E,).
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.embedding_size
        self.word = nn.Embedding(config.vocab_size, width)
        self.position = nn.Embedding(config.max_position_embeddings, width)
        self.token_type = nn.Embedding(config.type_vocab_size, width)
        self.norm = nn.LayerNorm(width, config.layer_norm_eps)

    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """The word, position and token type tables that the network reads."""
        return self.word.weight, self.position.weight, self.token_type.weight


class Layer(nn.Module):
    """The parameters of one transformer layer with LayerNorm after each block (post-LN).

        x = LayerNorm(x + out(attention(qkv(x))))        x = LayerNorm(x + down(gelu(up(x))))

    Query, key and value are one projection, qkv, of (3 D, D); up is (F, D), down (D, F). D is hidden_size and F
    intermediate_size. The layers are computed together, by ops.encoder.
    """

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
        """The twelve parameters in the order in which ops.encoder takes them."""
        modules = (self.qkv, self.out, self.attention_norm, self.up, self.down, self.ffn_norm)
        return [t for module in modules for t in (module.weight, module.bias)]


class Encoder(nn.Module):
    """Embeddings, a projection to the hidden size if it differs from theirs, and the layers.

    config: the sizes and dropout probabilities.
    embeddings: another network's tables, to share them; new ones by default.
    """

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
        """Compute hidden states.

        batch: the layout of the packed tokens (sequence offsets, positions, token types).
        input_ids: (T,) int64, the tokens, which may differ from the batch's own.
        seed, step: (1,) int64; dropout's random numbers are a function of them, of `stream` and of the row ids.
        stream: a number that keeps the dropout of several networks apart (see model/seeds.py).
        masked: if given, only the hidden states of its positions are computed in the last layer.

        Returns hidden (T, D), or (M, D) with `masked`, in the parameters' dtype.

        Raises ValueError if a sequence is longer than the position table, IndexError for an id outside the word table.
        """
        config = self.config
        layers: Any = self.layers
        seeds = derive_seeds(seed, step, stream, 1 + 2 * len(layers))
        x = self.embed(batch, input_ids, seeds[0:1])
        queries: dict[str, Any] = {}
        if masked is not None:
            queries = dict(rows=masked.positions, cu_rows=masked.slots, max_rows=masked.max_slots)
        return ops.encoder(
            x,
            [layer.tensors for layer in layers],
            batch.cu_seqlens,
            batch.max_seqlen,
            batch.row_ids,
            num_heads=config.num_attention_heads,
            **queries,
            eps=config.layer_norm_eps,
            attention_dropout_p=config.attention_probs_dropout_prob if self.training else 0.0,
            dropout_p=config.hidden_dropout_prob if self.training else 0.0,
            seeds=seeds[1:],
        )

    def embed(self, batch: Batch, input_ids: Tensor, seed: Tensor) -> Tensor:
        """Compute the rows that enter the first layer, (T, D), from (T,) int64 tokens.

        seed: (1,) int64, of dropout. The other arguments and the errors are those of `forward`.
        """
        config, tables, projection = self.config, self.embeddings, self.embeddings_projection
        if batch.width > config.max_position_embeddings:
            raise ValueError(
                f"the batch is {batch.width} columns wide, max_position_embeddings is "
                f"{config.max_position_embeddings}; cut the text into shorter sequences"
            )
        return ops.embedding(
            input_ids,
            batch.token_type_ids,
            batch.position_ids,
            *tables.tables(),
            tables.norm.weight,
            tables.norm.bias,
            None if projection is None else projection.weight,
            None if projection is None else projection.bias,
            row_ids=batch.row_ids,
            eps=config.layer_norm_eps,
            dropout_p=config.hidden_dropout_prob if self.training else 0.0,
            seed=seed,
        )


def initialise(network: nn.Module, spread: float, shared: Embeddings | None = None) -> None:
    """Draw a network's initial weights from torch's generator, as Google's code does.

    Matrices and tables are normal with standard deviation `spread`, truncated at two deviations. The projection of the
    embeddings and a last layer of one output are Glorot-uniform. Biases are 0.

    network: any module of linear layers and embeddings.
    spread: the config's initializer_range.
    shared: embeddings that belong to another network too, and are left as they are.
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
