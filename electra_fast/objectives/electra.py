"""Electra: generator and discriminator trained together on replaced token detection."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from electra_fast.config import ElectraConfig
from electra_fast.data.batch import Batch
from electra_fast.model.flops import step_flops
from electra_fast.model.networks import Discriminator, Generator
from electra_fast.model.residual_embeddings import ResidualEmbeddings
from electra_fast.objectives.base import ElectraOutput
from electra_fast.objectives.detection import Detection
from electra_fast.ops.masking import Masked
from electra_fast.storage.atomic import read_json
from electra_fast.storage.digests import verify, write_files

if TYPE_CHECKING:
    from typing_extensions import Self


class Electra(Detection):
    """ELECTRA: a generator and a discriminator, which share their embeddings unless the config says otherwise.

    The generator predicts hidden tokens, samples of it replace them in the text, and the discriminator tells of every
    token whether it was replaced. No gradient passes through the samples.

        generator_loss     = sum over used slots of -log p(original token) / (used slots + 1e-6)
        discriminator_loss = sum over tokens of BCE(logit, is_replaced) / (tokens + 1e-6)
        loss               = gen_weight * generator_loss + disc_weight * discriminator_loss

    In training mode the attribute `learning` says which network learns. "both" is the paper's. With "generator" the
    discriminator is not computed and its loss is 0; with "discriminator" the generator has no dropout and no gradient.

    config: the sizes of the networks and the settings of the objective.
    generator, discriminator: trained networks to start from, which are used as they are; by default new ones with
        random weights. Where embeddings are shared, both get the discriminator's; where they are disentangled, each
        keeps its own, the discriminator's as what it adds to the generator's.

    Raises ValueError if embeddings that are to be shared differ in shape, or if a network has another vocabulary than
    the config.

    Source: Clark et al., "ELECTRA", ICLR 2020, section 2.
    """

    generator: Generator

    def __init__(
        self, config: ElectraConfig, generator: Generator | None = None, discriminator: Discriminator | None = None
    ) -> None:
        super().__init__(config)
        trained = discriminator or generator
        shared = None if trained is None or not config.share_embeddings else trained.encoder.embeddings
        self.discriminator = discriminator or Discriminator(config.discriminator, shared)
        if config.share_embeddings:
            shared = self.discriminator.encoder.embeddings
        self.generator = generator or Generator(config.generator, shared)
        if generator is not None and config.disentangled:
            shared = generator.encoder.embeddings
        shapes = [
            {name: tuple(p.shape) for name, p in network.encoder.embeddings.named_parameters()}
            for network in (self.discriminator, self.generator)
        ]
        if config.share_embeddings and shapes[0] != shapes[1]:
            raise ValueError(
                f"the discriminator's embeddings are {shapes[0]}, the generator's {shapes[1]}; "
                f"ELECTRA's networks share them: take a pair that was trained together"
            )
        for shape in shapes:
            if shape["word.weight"][0] != config.vocab_size:
                raise ValueError(
                    f"the networks know {shape['word.weight'][0]} words, vocab_size is {config.vocab_size}; "
                    f"use the tokenizer they were trained with"
                )
        if config.disentangled:
            assert shared is not None
            own = self.discriminator.encoder.embeddings
            self.discriminator.encoder.embeddings = ResidualEmbeddings(config.discriminator, shared, own)
        elif config.share_embeddings:
            self.generator.encoder.embeddings = self.discriminator.encoder.embeddings

    def train(self, mode: bool = True) -> Self:
        """Put both networks in training mode, or in evaluation mode; a generator that does not learn has no dropout."""
        super().train(mode)
        if self.learning == "discriminator":
            self.generator.eval()
        return self

    def losses(
        self, batch: Batch, masked: Masked, key: Tensor, at: Tensor, denominators: tuple[Tensor, int | Tensor]
    ) -> ElectraOutput:
        learning = self.learning if self.training else "both"
        with torch.set_grad_enabled(torch.is_grad_enabled() and learning != "discriminator"):
            filled = self.fill(batch, masked, key, at, denominators[0])
        if learning == "generator":
            return self.nothing_detected(filled, batch, masked, self.config.gen_weight)
        return self.detect(batch, masked, filled, key, at, denominators)

    @torch.no_grad()
    def start_from_generator(self) -> None:
        """Copy the generator's encoder to the discriminator's, each tensor that has the same name and shape there."""
        source = dict(self.generator.encoder.named_parameters())
        for name, p in self.discriminator.encoder.named_parameters():
            is_own = not (self.config.disentangled and name.startswith("embeddings."))
            if is_own and name in source and source[name].shape == p.shape:
                p.copy_(source[name])

    def step_flops(self, lengths: list[int], slots: int) -> int:
        return step_flops(self.config, lengths, slots, self.learning)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Load both networks and the objective's settings, in evaluation mode and on the CPU.

        path: a directory with generator/ and discriminator/, each a Hugging Face directory, and with electra.json,
            which holds the settings. Without that file they are ElectraConfig's defaults.

        Raises ValueError, naming the file, if one is missing or damaged or does not fit the others.
        """
        path = Path(path)
        generator = Generator.from_pretrained(path / "generator")
        discriminator = Discriminator.from_pretrained(path / "discriminator")
        settings = asdict(discriminator.config) | dict(
            generator_size=generator.config.hidden_size / discriminator.config.hidden_size,
            generator_layers=generator.config.num_hidden_layers / discriminator.config.num_hidden_layers,
        )
        if (path / "electra.json").exists():
            verify(path, "electra.json")
            settings |= read_json(path / "electra.json")
        try:
            config = ElectraConfig.small(**settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}; correct electra.json there, or save the model again") from None
        return cls(config, generator, discriminator).eval()

    def save_pretrained(self, path: str | Path) -> None:
        """Save both networks and the objective's settings to a directory that `from_pretrained` loads.

        Writes generator/ and discriminator/, each of which transformers loads too, and electra.json. The directory is
        made if need be. Raises OSError if the disk is full or not writable.
        """
        super().save_pretrained(path)
        write_files(Path(path), {"electra.json": json.dumps(asdict(self.config), indent=2).encode() + b"\n"})
