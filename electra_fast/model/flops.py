"""Floating-point operations of a training step, counted from the config; a multiply-add counts as two.

Only matrix products are counted. What an implementation recomputes or leaves out changes nothing, so that a share of
the machine's peak compares implementations.
"""

from __future__ import annotations

from collections.abc import Sequence

from electra_fast.config import ElectraConfig, Learning, NetworkConfig


def encoder_flops(config: NetworkConfig, lengths: Sequence[int]) -> int:
    """Operations of one encoder's forward pass.

    config: its sizes. lengths: the tokens of each sequence.
    """
    tokens, width = sum(lengths), config.hidden_size
    projection = 2 * config.embedding_size * width if config.embedding_size != width else 0
    layer = tokens * 2 * (4 * width * width + 2 * width * config.intermediate_size)
    attention = 4 * width * sum(length * length for length in lengths)
    return tokens * projection + config.num_hidden_layers * (layer + attention)


def step_flops(config: ElectraConfig, lengths: Sequence[int], slots: int, learning: Learning = "both") -> int:
    """Operations of a training step of ELECTRA: three times those of the forward pass of what learns.

    Both encoders and the discriminator's head see every token, the generator's head sees the masked positions.

    config: the sizes of both networks.
    lengths: the tokens of each sequence.
    slots: the masked positions of all sequences together.
    learning: which network learns. A generator that learns alone is all that is computed; one that does not learn has
        its forward pass only.
    """
    generator = generator_flops(config.generator, lengths, slots)
    if learning == "generator":
        return generator
    discriminator = config.discriminator
    head = 2 * sum(lengths) * (discriminator.hidden_size**2 + discriminator.hidden_size)
    scoring = 3 * (encoder_flops(discriminator, lengths) + head)
    return scoring + (generator if learning == "both" else generator // 3)


def generator_flops(config: NetworkConfig, lengths: Sequence[int], slots: int) -> int:
    """The generator's part of `step_flops`, which is the whole step of a masked language model."""
    head = 2 * slots * config.embedding_size * (config.hidden_size + config.vocab_size)
    return 3 * (encoder_flops(config, lengths) + head)
