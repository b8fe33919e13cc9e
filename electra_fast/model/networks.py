"""The networks: Encoder, Generator, Discriminator, and Electra, which trains the two together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from electra_fast import ops
from electra_fast.config import NetworkConfig
from electra_fast.data.batch import Batch
from electra_fast.model.encoder import Embeddings, Encoder, initialise
from electra_fast.storage.names import from_huggingface, to_huggingface
from electra_fast.storage.network import match, read_network, write_network

if TYPE_CHECKING:
    from typing_extensions import Self


class Network(nn.Module):
    """What generator and discriminator have in common: an encoder, and their files."""

    architecture: str  # transformers' class of the same weights

    def __init__(self, config: NetworkConfig, embeddings: Embeddings | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, embeddings)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """From a Hugging Face directory (config.json, model.safetensors). Raises ValueError with what does not fit."""
        return cls.from_tensors(*read_network(Path(path)), str(path))

    @classmethod
    def from_tensors(cls, config: NetworkConfig, tensors: dict[str, Tensor], source: str) -> Self:
        """From tensors under transformers' names. Raises ValueError with what of the source does not fit."""
        network = cls(config)
        own = network.state_dict()
        found = from_huggingface(tensors)
        match({name: t.shape for name, t in to_huggingface(own).items()}, to_huggingface(found), source)
        network.load_state_dict(found)
        return network.eval()

    def save_pretrained(self, path: str | Path) -> None:
        """To a directory that `from_pretrained` and transformers load: config.json and model.safetensors."""
        write_network(Path(path), self.config, self.architecture, to_huggingface(self.state_dict()))

    def encode_padded(
        self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None, seed: int | None
    ) -> tuple[Batch, Tensor]:
        """(B, S) -> the packed batch and its hidden rows (T, D). In training, a seed not given is drawn from torch."""
        batch = Batch.from_padded(input_ids, attention_mask, token_type_ids)
        if seed is None:
            seed = int(torch.randint(2**62, ())) if self.training else 0
        key = torch.full((1,), seed, dtype=torch.int64, device=input_ids.device)
        return batch, self.encoder(batch, batch.input_ids, key, torch.zeros_like(key), 0)


class Transform(nn.Module):
    """What makes the generator's hidden rows (M, D) ready for the word table: dense, GELU, LayerNorm -> (M, E)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.embedding_size)
        self.norm = nn.LayerNorm(config.embedding_size, config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(ops.linear(hidden, self.dense.weight, self.dense.bias, gelu=True))


class Generator(Network):
    """The masked language model that fills the blanks: hidden -> dense, GELU, LayerNorm -> the word table."""

    architecture = "ElectraForMaskedLM"

    def __init__(self, config: NetworkConfig, embeddings: Embeddings | None = None) -> None:
        super().__init__(config, embeddings)
        self.transform = Transform(config)
        self.vocabulary_bias = nn.Parameter(torch.zeros(config.vocab_size))
        initialise(self, config.initializer_range, embeddings)

    def head(self, rows: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """rows (M, E), labels (M,) -> loss (M,), sampled (M,); options as in ops.generator_head."""
        return ops.generator_head(rows, self.encoder.embeddings.word.weight, self.vocabulary_bias, labels, **options)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """(B, S) -> logits (B, S, V), 0 at padding; equal to transformers' ElectraForMaskedLM."""
        batch, hidden = self.encode_padded(input_ids, attention_mask, token_type_ids, seed)
        return batch.pad(F.linear(self.transform(hidden), self.encoder.embeddings.word.weight, self.vocabulary_bias))


class Discriminator(Network):
    """Says of every token whether it was replaced: hidden -> dense, GELU -> one logit."""

    architecture = "ElectraForPreTraining"

    def __init__(self, config: NetworkConfig, embeddings: Embeddings | None = None) -> None:
        super().__init__(config, embeddings)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, 1)
        initialise(self, config.initializer_range, embeddings)

    def score(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """hidden (T, D), labels (T,) bool -> loss (T,), logits (T,)."""
        dense, out = self.dense, self.out
        return ops.discriminator_head(hidden, dense.weight, dense.bias, out.weight, out.bias, labels)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """(B, S) -> logits (B, S), above 0 where a token looks replaced: transformers' ElectraForPreTraining."""
        batch, hidden = self.encode_padded(input_ids, attention_mask, token_type_ids, seed)
        _, logits = self.score(hidden, torch.zeros_like(batch.input_ids, dtype=torch.bool))
        return batch.pad(logits)
