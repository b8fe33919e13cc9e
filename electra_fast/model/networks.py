"""Generator and Discriminator, the two networks of ELECTRA."""

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
    """The part that generator and discriminator share: an encoder, a forward of padded sequences, loading and saving.

    config: the network's sizes, in Hugging Face's names.
    embeddings: another network's embeddings, to share them; new ones by default.
    """

    architecture: str
    """The class of transformers that has the same weights."""

    def __init__(self, config: NetworkConfig, embeddings: Embeddings | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, embeddings)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Load a network from a Hugging Face directory, in evaluation mode and on the CPU.

        path: a directory with config.json and model.safetensors, ours or transformers'.

        Raises ValueError, naming the file, if one is missing, damaged, or of another kind of network; pickled weights
        are never opened.
        """
        return cls.from_tensors(*read_network(Path(path)), str(path))

    @classmethod
    def from_tensors(cls, config: NetworkConfig, tensors: dict[str, Tensor], source: str) -> Self:
        """Make a network from tensors, in evaluation mode.

        config: its sizes.
        tensors: weights under transformers' names.
        source: what an error calls them, such as their path.

        Raises ValueError, which lists every tensor that is missing, unexpected or of another shape.
        """
        network = cls(config)
        expected = {name: t.shape for name, t in to_huggingface(network.state_dict()).items()}
        state = from_huggingface(tensors)
        match(expected, to_huggingface(state), source)
        network.load_state_dict(state)
        return network.eval()

    def save_pretrained(self, path: str | Path) -> None:
        """Save the network to a directory that `from_pretrained` and transformers load.

        Writes config.json, model.safetensors and SHA256SUMS, each complete or not at all; the directory is made if need
        be. Raises OSError if the disk is full or not writable.
        """
        state = dict(self.state_dict())
        read = zip(("word", "position", "token_type"), self.encoder.embeddings.tables(), strict=True)
        state |= {f"encoder.embeddings.{name}.weight": table.detach() for name, table in read}  # with what is added
        write_network(Path(path), self.config, self.architecture, to_huggingface(state))

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits of packed tokens (T, ...) from their hidden states (T, D)."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Compute logits of padded sequences; in evaluation mode they equal those of transformers' class.

        input_ids: (B, S) int64.
        attention_mask: (B, S), 0 at padding, which may be on either side or inside; all tokens are real by default.
        token_type_ids: (B, S) int64, 0 by default.
        seed: of dropout in training mode; drawn from torch's generator by default.

        Returns logits in the parameters' dtype, 0 at padding: (B, S, V) of a generator, (B, S) of a discriminator.

        Raises ValueError if S exceeds max_position_embeddings, and on the CPU IndexError for an id outside the word
        table.

        Cost: that of the real tokens alone, since padding is left out of the computation.
        """
        batch = Batch.from_padded(input_ids, attention_mask, token_type_ids)
        if seed is None:
            seed = int(torch.randint(2**62, ())) if self.training else 0
        key = torch.full((1,), seed, dtype=torch.int64, device=input_ids.device)
        return batch.pad(self.logits(self.encoder(batch, batch.input_ids, key, torch.zeros_like(key), 0)))


class Transform(nn.Module):
    """The generator's head before the word table: LayerNorm(gelu(dense(hidden))), from (M, D) to (M, E)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.embedding_size)
        self.norm = nn.LayerNorm(config.embedding_size, config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(ops.linear(hidden, self.dense.weight, self.dense.bias, gelu=True))


def word_head(
    rows: Tensor, words: Tensor, bias: Tensor, labels: Tensor, sharpness: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """ops.generator_head of logits that are multiplied by a number that lies on the device.

    rows, words, bias, labels: (M, E), (V, E), (V,) and (M,), as there.
    sharpness: (1,), 1 / temperature; it divides the loss's logits too. None for 1.
    options: temperature, seed, row_ids, disallow_correct and label_smoothing, as there.

    Returns loss (M,) in nats and sampled (M,) int64.
    """
    if sharpness is not None:
        rows, bias = rows * sharpness.to(rows.dtype), bias * sharpness.to(bias.dtype)
    return ops.generator_head(rows, words, bias, labels, **options)


class Generator(Network):
    """ELECTRA's generator: a masked language model, whose output matrix is its word table.

        logits = word_table transform(hidden) + vocabulary_bias

    config: its sizes, as ElectraConfig.generator gives them.
    embeddings: the discriminator's embeddings, to share them; new ones by default.

    Weights are drawn from torch's generator. Source: Clark et al., "ELECTRA", ICLR 2020, section 2; the head is that of
    google-research/electra's run_pretraining.py, and transformers' class of the same weights is ElectraForMaskedLM.
    """

    architecture = "ElectraForMaskedLM"

    def __init__(self, config: NetworkConfig, embeddings: Embeddings | None = None) -> None:
        super().__init__(config, embeddings)
        self.transform = Transform(config)
        self.vocabulary_bias = nn.Parameter(torch.zeros(config.vocab_size))
        initialise(self, config.initializer_range, embeddings)

    def head(self, rows: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Compute each row's cross-entropy and draw a token from its distribution, without storing any logits.

        rows: (M, E), what `transform` returns.
        labels: (M,) int64, the original tokens; -100 where there is none.
        options: those of `word_head`.

        Returns loss (M,) in nats, 0 where the label is -100, and sampled (M,) int64.
        """
        return word_head(rows, self.encoder.embeddings.tables()[0], self.vocabulary_bias, labels, **options)

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits of every word of the vocabulary.

        hidden: (T, D), what the encoder returns.

        Returns (T, V).
        """
        return F.linear(self.transform(hidden), self.encoder.embeddings.tables()[0], self.vocabulary_bias)


class Discriminator(Network):
    """ELECTRA's discriminator: one logit a token, above 0 if the token looks replaced.

        logit = out(gelu(dense(hidden)))

    config: its sizes, as ElectraConfig.discriminator gives them.
    embeddings: the generator's embeddings, to share them; new ones by default.

    Weights are drawn from torch's generator. Source: Clark et al., "ELECTRA", ICLR 2020, section 2; transformers' class
    of the same weights is ElectraForPreTraining.
    """

    architecture = "ElectraForPreTraining"

    def __init__(self, config: NetworkConfig, embeddings: Embeddings | None = None) -> None:
        super().__init__(config, embeddings)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, 1)
        initialise(self, config.initializer_range, embeddings)

    def score(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute each token's logit and binary cross-entropy.

        hidden: (T, D), what the encoder returns.
        labels: (T,) bool, True where the token was replaced.

        Returns loss (T,) in nats and logits (T,).
        """
        dense, out = self.dense, self.out
        return ops.discriminator_head(hidden, dense.weight, dense.bias, out.weight, out.bias, labels)

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the logit of each token.

        hidden: (T, D), what the encoder returns.

        Returns (T,).
        """
        return self.score(hidden, torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device))[1]
