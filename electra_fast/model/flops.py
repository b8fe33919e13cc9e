"""Arithmetic of a training step, counted from the config: what a share of the machine's peak is measured against."""

from __future__ import annotations

from collections.abc import Sequence

from electra_fast.config import ElectraConfig, NetworkConfig


def encoder_flops(config: NetworkConfig, lengths: Sequence[int]) -> int:
    """Forward flops of one encoder on sequences of these lengths: 2 a multiply-add, products alone."""
    tokens, width = sum(lengths), config.hidden_size
    projection = 2 * config.embedding_size * width if config.embedding_size != width else 0
    layer = tokens * 2 * (4 * width * width + 2 * width * config.intermediate_size)
    attention = 4 * width * sum(length * length for length in lengths)
    return tokens * projection + config.num_hidden_layers * (layer + attention)


def step_flops(config: ElectraConfig, lengths: Sequence[int], slots: int) -> int:
    """Flops of a training step on sequences of these lengths with so many prediction slots: three times the forward.

    Both encoders over all tokens, the generator's head over the slots, the discriminator's over all tokens; nothing
    recomputed counts, nor what an implementation saves by leaving rows out.
    """
    discriminator = config.discriminator
    head = 2 * sum(lengths) * (discriminator.hidden_size**2 + discriminator.hidden_size)
    return generator_flops(config.generator, lengths, slots) + 3 * (encoder_flops(discriminator, lengths) + head)


def generator_flops(config: NetworkConfig, lengths: Sequence[int], slots: int) -> int:
    """The generator's part of it, which is all of a masked language model's step."""
    head = 2 * slots * config.embedding_size * (config.hidden_size + config.vocab_size)
    return 3 * (encoder_flops(config, lengths) + head)
