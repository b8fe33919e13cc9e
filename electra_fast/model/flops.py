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
    return scoring_flops(config.discriminator, lengths) + (generator if learning == "both" else generator // 3)


def scoring_flops(config: NetworkConfig, lengths: Sequence[int]) -> int:
    """The discriminator's part of `step_flops`."""
    head = 2 * sum(lengths) * (config.hidden_size**2 + config.hidden_size)
    return 3 * (encoder_flops(config, lengths) + head)


def generator_flops(config: NetworkConfig, lengths: Sequence[int], slots: int) -> int:
    """The generator's part of `step_flops`, which is the whole step of a masked language model."""
    return 3 * (encoder_flops(config, lengths) + word_head_flops(config, slots))


def word_head_flops(config: NetworkConfig, rows: int) -> int:
    """Operations of the forward pass of a head over the vocabulary, for `rows` tokens."""
    return 2 * rows * config.embedding_size * (config.hidden_size + config.vocab_size)
