"""EncoderDecoder: an encoder that reads a source and a decoder that writes a target, made of ELECTRA's networks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from electra_fast import ops
from electra_fast.config import NetworkConfig
from electra_fast.data.batch import Batch
from electra_fast.data.tokenizer import Tokenizer
from electra_fast.decoding.candidates import Vocabulary
from electra_fast.decoding.settings import WritingConfig
from electra_fast.model.decoder import Decoder, Memory
from electra_fast.model.encoder import Encoder, initialise
from electra_fast.model.encoder_decoder_config import (
    EncoderDecoderConfig,
    read_encoder_decoder_config,
    write_encoder_decoder_config,
)
from electra_fast.model.seeds import DISCRIMINATOR, scalars
from electra_fast.model.writer import write
from electra_fast.storage.names import from_huggingface
from electra_fast.storage.network import match, read_network, read_weights, write_weights
from electra_fast.storage.pair_names import OF_STACK, pair_from_huggingface, pair_to_huggingface

if TYPE_CHECKING:
    from typing_extensions import Self


class EncoderDecoder(nn.Module):
    """An encoder-decoder for summaries, translations and answers in words.

        logits[t] = word_table transform(decoder(target[:t + 1], encoder(source))) + vocabulary_bias

    config: the sizes of both networks. If their hidden sizes differ, a linear layer projects the encoder's output.

    Weights are drawn from torch's generator; `from_networks` takes them from pre-trained networks. transformers' class
    of the same weights is EncoderDecoderModel, of an ElectraModel and an ElectraForCausalLM with cross-attention.

    Source: Clark et al., ICLR 2020 (the two networks); Rothe et al., TACL 2020 (encoder-decoders of such networks).
    """

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder)
        initialise(self.encoder, config.encoder.initializer_range)
        widths = (config.encoder.hidden_size, config.decoder.hidden_size)
        self.projection = nn.Linear(*widths) if widths[0] != widths[1] else None
        if self.projection is not None:
            initialise(self.projection, config.decoder.initializer_range)
        self.decoder = Decoder(config.decoder, self.encoder.embeddings if config.share_embeddings else None)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Load an encoder-decoder from a directory, in evaluation mode and on the CPU.

        path: a directory with config.json and model.safetensors, ours or that of transformers' EncoderDecoderModel.

        Raises ValueError, naming the file, if one is missing, damaged, or of another kind of model.
        """
        directory = Path(path)
        model = cls(read_encoder_decoder_config(directory))
        tensors = read_weights(directory)
        state = pair_from_huggingface(tensors)
        expected = {name: t.shape for name, t in pair_to_huggingface(model.state_dict()).items()}
        match(expected, pair_to_huggingface(state), str(path))
        model.load_state_dict(state)
        return model.eval()

    @classmethod
    def from_networks(
        cls,
        encoder: str | Path,
        decoder: str | Path | None = None,
        *,
        share_embeddings: bool | None = None,
        random_init: bool = False,
        dropout: float | None = None,
    ) -> Self:
        """Make an encoder-decoder of pre-trained networks, in evaluation mode and on the CPU.

        Weights that a network does not have are drawn from torch's generator: the cross-attention, the projection
        between networks of different widths, and the layers before the word table if the decoder is no generator.

        encoder: the directory of a discriminator or a generator, with its tokenizer.
        decoder: the directory of a generator or a discriminator, with its tokenizer; the encoder's by default.
        share_embeddings: whether the decoder has the encoder's embeddings; by default if their weights are equal, as
            those of a generator and a discriminator that were trained together.
        random_init: take the sizes and tokenizers alone, and draw all weights from torch's generator.
        dropout: of both networks in training; that of their configs by default.

        Raises ValueError, naming the file, if one is missing, damaged or of another kind of network, if a tokenizer has
        more tokens than its network, or if embeddings of different sizes are to be shared.
        """
        decoder = encoder if decoder is None else decoder
        read = [read_network(Path(path)) for path in (encoder, decoder)]
        tokenizers = [Tokenizer.load(Path(path)) for path in (encoder, decoder)]
        for path, tokenizer, (network, _) in zip((encoder, decoder), tokenizers, read, strict=True):
            _check_tokenizer(path, tokenizer, network)
        states = [_stack_of(tensors) for _, tensors in read]
        if share_embeddings is None:
            same_text = tokenizers[0].sha256 == tokenizers[1].sha256
            share_embeddings = same_text and _equal_embeddings(*states)
        config = EncoderDecoderConfig(
            with_dropout(read[0][0], dropout),
            with_dropout(read[1][0], dropout),
            share_embeddings,
            tokenizers[1].cls_token_id,
            tokenizers[1].sep_token_id,
        )
        model = cls(config)
        if not random_init:
            _load(model.encoder, states[0], str(encoder))
            _load(model.decoder, states[1], str(decoder), share_embeddings)
        return model.eval()

    def save_pretrained(self, path: str | Path) -> None:
        """Save the model to a directory that `from_pretrained` and transformers' EncoderDecoderModel load.

        Writes config.json, generation_config.json, model.safetensors and SHA256SUMS, each complete or not at all; the
        directory is made if need be. Raises OSError if the disk is full or not writable.
        """
        write_weights(Path(path), pair_to_huggingface(self.state_dict()))
        write_encoder_decoder_config(Path(path), self.config)

    def encode(self, source: Batch, seed: Tensor, step: Tensor) -> Memory:
        """Read packed sources; returns the keys and values that the decoder's cross-attention reads.

        seed, step: (1,) int64, which key dropout in training mode.
        """
        encoded = self.encoder(source, source.input_ids, seed, step, DISCRIMINATOR)
        if self.projection is not None:
            encoded = ops.linear(encoded, self.projection.weight, self.projection.bias)
        return self.decoder.memory(encoded, source)

    def hidden(self, source: Batch, target: Batch, seed: int | Tensor, step: int | Tensor) -> Tensor:
        """Compute the decoder's hidden states (T, D) of packed targets, which begin with the start token.

        seed, step: ints or (1,) int64, which key dropout in training mode.
        """
        key, at = scalars(source, seed, step)
        return self.decoder(target, self.encode(source, key, at), key, at)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        decoder_input_ids: Tensor,
        decoder_attention_mask: Tensor | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Compute the logits of padded targets; in evaluation mode they equal those of transformers' class.

        input_ids: (B, S) int64, the sources. attention_mask: (B, S), 0 at padding; None if all tokens are real.
        decoder_input_ids: (B, L) int64, the targets from their start token on.
        decoder_attention_mask: (B, L), 0 at padding; all tokens are real by default.
        seed: of dropout in training mode; drawn from torch's generator by default.

        Returns (B, L, V) in the parameters' dtype, 0 at padding: row l has the logits of token l + 1.

        Raises ValueError if S or L exceed the networks' max_position_embeddings, or their B differ.
        """
        if len(input_ids) != len(decoder_input_ids):
            raise ValueError(
                f"there are {len(input_ids)} sources and {len(decoder_input_ids)} targets; give one target a source"
            )
        source = Batch.from_padded(input_ids, attention_mask)
        target = Batch.from_padded(decoder_input_ids, decoder_attention_mask)
        if seed is None:
            seed = int(torch.randint(2**62, ())) if self.training else 0
        return target.pad(self.decoder.logits(self.hidden(source, target, seed, 0)))

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        num_beams: int = 1,
        max_length: int = 128,
        length_penalty: float = 1.0,
        *,
        min_length: int = 0,
        no_repeat_ngram_size: int = 0,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 50,
        top_p: float = 1.0,
        seed: int = 0,
        row_ids: Tensor | None = None,
    ) -> Tensor:
        """Write a target for each source: greedily, by beam search, or by sampling.

        Greedy and beam search give the tokens of transformers' generate with the same options. A sample is a function
        of (seed, row id, source), whatever the batch.

        input_ids: (B, S) int64, the sources. attention_mask: (B, S), 0 at padding; all tokens are real by default.
        num_beams: targets that beam search keeps for each source; 1 is greedy.
        max_length: tokens of a target at most, the start token among them.
        length_penalty: beam search ranks finished targets by log-probability / length ** length_penalty.
        min_length: tokens of a target at least, the start token among them.
        no_repeat_ngram_size: no run of so many tokens stands twice in a target; 0 allows all.
        do_sample: draw each token, with temperature, among the top_k likeliest, or the fewest of them that have top_p
            of their probability; top_k 0 takes the whole vocabulary. num_beams must be 1.
        seed, row_ids: of the samples; row_ids (B,) int64 name the sources, 0 to B - 1 by default.

        Returns (B, L) int64: the targets from start to end token, filled up with the padding token.

        Raises ValueError for an option out of its range or a source without tokens.
        """
        options = WritingConfig(
            num_beams=num_beams,
            max_length=max_length,
            length_penalty=length_penalty,
            min_length=min_length,
            no_repeat_ngram_size=no_repeat_ngram_size,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
        source = Batch.from_padded(input_ids, attention_mask, example_ids=row_ids)
        return self.write(source, options, seed)

    @torch.no_grad()
    def write(self, source: Batch, options: WritingConfig, seed: int = 0) -> Tensor:
        """Write a target for each packed source, without dropout; `generate` describes options, seed and result."""
        if len(source) and int(source.lengths.min()) == 0:
            empty = int((source.lengths == 0).nonzero()[0])
            raise ValueError(f"source {empty} has no tokens; leave it out, or give it [CLS] and [SEP] at least")
        config, was_training = self.config, self.training
        key, zero = scalars(source, seed, 0)
        tokens = (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id)
        vocabulary = Vocabulary(config.decoder.vocab_size, *tokens)
        self.eval()
        try:
            row_ids = source.row_ids[source.cu_seqlens[:-1].long()]
            return write(self.decoder, self.encode(source, key, zero), row_ids, vocabulary, options, key)
        finally:
            self.train(was_training)


def with_dropout(config: NetworkConfig, dropout: float | None) -> NetworkConfig:
    """The config with another dropout, of rows and of attention probabilities; the same config for None."""
    if dropout is None:
        return config
    return dataclasses.replace(config, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)


def _check_tokenizer(path: str | Path, tokenizer: Tokenizer, config: NetworkConfig) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{path} has a tokenizer of {tokenizer.vocab_size} entries and a network of {config.vocab_size}; put the "
            "tokenizer there that the network was trained with"
        )


def _stack_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a network's directory under the names that Encoder and Decoder have for them."""
    if not any(name.startswith("electra.") for name in tensors):
        tensors = {f"electra.{name}": t for name, t in tensors.items()}
    return {name.removeprefix("encoder."): t for name, t in from_huggingface(tensors).items()}


def _equal_embeddings(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    names = [name for name in first if name.startswith("embeddings.")]
    return all(
        name in second and first[name].shape == second[name].shape and torch.equal(first[name], second[name])
        for name in names
    )


def _load(network: Encoder | Decoder, state: dict[str, Tensor], source: str, shared: bool = False) -> None:
    """Copy the tensors that a network has in common with a pre-trained one.

    shared: whether its embeddings are another network's and are left as they are.

    Raises ValueError, which lists every tensor of the common part that is missing or of another shape.
    """
    own = {name: t for name, t in network.state_dict().items() if not (shared and name.startswith("embeddings."))}
    wanted = {name: t.shape for name, t in own.items() if name in state or _is_of_stack(name)}
    match(wanted, {name: t for name, t in state.items() if name in wanted}, source)
    network.load_state_dict({name: state[name] for name in wanted}, strict=False)


def _is_of_stack(name: str) -> bool:
    """Whether an encoder and a decoder both have a parameter of this name."""
    return name.startswith(OF_STACK) and "cross_" not in name
