"""Tiny networks and examples for the tests of models that write."""

from pathlib import Path

import torch

from electra_fast.config import NetworkConfig
from electra_fast.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from electra_fast.model.networks import Discriminator, Generator

WORDS = "red green blue cat dog bird sees likes hears one two six".split()
TINY = NetworkConfig(
    vocab_size=32,
    embedding_size=16,
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=64,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def networks(folder: Path) -> tuple[Path, Path]:
    """A discriminator's and a generator's directory, with one tokenizer whose words are whole."""
    torch.manual_seed(0)
    discriminator = Discriminator(TINY)
    generator = Generator(TINY, discriminator.encoder.embeddings)
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *WORDS, ".", "?"]) + "\n")
    tokenizer = Tokenizer.load(folder / "vocab.txt")
    for name, network in (("discriminator", discriminator), ("generator", generator)):
        network.save_pretrained(folder / name)
        tokenizer.save(folder / name)
    return folder / "discriminator", folder / "generator"


def sentences(count: int, seed: int) -> list[str]:
    """Random sentences of three to six words."""
    draws = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(WORDS), (count, 6), generator=draws).tolist()
    lengths = torch.randint(3, 7, (count,), generator=draws).tolist()
    return [" ".join(WORDS[i] for i in row[:length]) for row, length in zip(picks, lengths, strict=True)]


def parallel(folder: Path, name: str, count: int, seed: int) -> tuple[Path, Path]:
    """Two files: sentences, and the same sentences, which is what is to be learned."""
    lines = "".join(f"{sentence}\n" for sentence in sentences(count, seed))
    for side in ("a", "b"):
        (folder / f"{name}.{side}").write_text(lines)
    return folder / f"{name}.a", folder / f"{name}.b"
