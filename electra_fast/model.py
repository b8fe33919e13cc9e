"""The networks: Encoder, Generator, Discriminator, and Electra, which trains the two together."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from electra_fast import ops
from electra_fast.batch import Batch
from electra_fast.config import ElectraConfig, NetworkConfig
from electra_fast.flops import step_flops
from electra_fast.huggingface import from_huggingface, to_huggingface
from electra_fast.objective import DISCRIMINATOR, ElectraOutput, Objective, scalars
from electra_fast.ops._philox import derive_seeds
from electra_fast.ops.masking import Masked
from electra_fast.weights import match, read_json, read_network, write_network

if TYPE_CHECKING:
    from typing_extensions import Self


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
            batch.row_ids,
            config.layer_norm_eps,
            config.hidden_dropout_prob if self.training else 0.0,
            seeds[0:1],
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


class Electra(Objective):
    """Generator and discriminator with one set of embeddings (Clark et al., ICLR 2020).

    Given networks are taken as they are, the discriminator's embeddings for both; else they are made from the config.
    """

    leading = "discriminator"

    def __init__(
        self, config: ElectraConfig, generator: Generator | None = None, discriminator: Discriminator | None = None
    ) -> None:
        super().__init__(config)
        given = discriminator or generator
        embeddings = None if given is None else given.encoder.embeddings
        self.discriminator = discriminator or Discriminator(config.discriminator, embeddings)
        self.generator = generator or Generator(config.generator, self.discriminator.encoder.embeddings)
        shapes = [
            {name: tuple(p.shape) for name, p in network.encoder.embeddings.named_parameters()}
            for network in (self.discriminator, self.generator)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the discriminator's embeddings are {shapes[0]}, the generator's {shapes[1]}; "
                f"ELECTRA's networks share them: take a pair that was trained together"
            )
        if shapes[0]["word.weight"][0] != config.vocab_size:
            raise ValueError(
                f"the networks know {shapes[0]['word.weight'][0]} words, vocab_size is {config.vocab_size}; "
                f"use the tokenizer they were trained with"
            )
        self.generator.encoder.embeddings = self.discriminator.encoder.embeddings

    def forward(
        self,
        batch: Batch,
        seed: int | Tensor = 0,
        step: int | Tensor = 0,
        masked: Masked | None = None,
        denominators: tuple[Tensor, int | Tensor] | None = None,
    ) -> ElectraOutput:
        """Mask, fill, corrupt, score."""
        config = self.config
        key, at = scalars(batch, seed, step)
        masked = self.mask(batch, key, at) if masked is None else masked
        used, tokens = denominators or ((masked.labels != -100).sum(), batch.tokens)
        generator_loss, sampled, rows = self.fill(batch, masked, key, at, used)

        corrupted, is_replaced = ops.corrupt(batch.input_ids, masked.positions, masked.labels, sampled, config.faithful)
        hidden = self.discriminator.encoder(batch, corrupted, key, at, DISCRIMINATOR)
        losses, logits = self.discriminator.score(hidden, is_replaced)
        discriminator_loss = batch.counted(losses).sum(dtype=generator_loss.dtype) / (tokens + 1e-6)

        loss = config.gen_weight * generator_loss + config.disc_weight * discriminator_loss
        found = (corrupted, is_replaced, logits.detach(), masked, sampled, rows.detach())
        return ElectraOutput(loss, generator_loss, discriminator_loss, *found)

    def step_flops(self, lengths: list[int], slots: int) -> int:
        return step_flops(self.config, lengths, slots)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """From a directory with generator/ and discriminator/, each a Hugging Face directory.

        electra.json beside them holds the objective; without it the config's defaults hold. Raises ValueError with what
        does not fit.
        """
        path = Path(path)
        generator = Generator.from_pretrained(path / "generator")
        discriminator = Discriminator.from_pretrained(path / "discriminator")
        settings = asdict(discriminator.config) | dict(
            generator_size=generator.config.hidden_size / discriminator.config.hidden_size,
            generator_layers=generator.config.num_hidden_layers / discriminator.config.num_hidden_layers,
        )
        if (path / "electra.json").exists():
            settings |= read_json(path / "electra.json")
        try:
            config = ElectraConfig.small(**settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}; correct electra.json there, or save the model again") from None
        return cls(config, generator, discriminator).eval()

    def save_pretrained(self, path: str | Path) -> None:
        """To a directory with generator/ and discriminator/, each of which transformers loads, and electra.json."""
        self.generator.save_pretrained(Path(path) / "generator")
        self.discriminator.save_pretrained(Path(path) / "discriminator")
        (Path(path) / "electra.json").write_text(json.dumps(asdict(self.config), indent=2) + "\n")
