"""Writing of targets by an encoder-decoder, one token of each at a time, with a cache of keys and values."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast import ops
from electra_fast.decoding.cache import PAGE, Cache
from electra_fast.decoding.candidates import Vocabulary
from electra_fast.decoding.search import Draws, search
from electra_fast.decoding.settings import WritingConfig
from electra_fast.model.decoder import Decoder, Memory
from electra_fast.model.seeds import SAMPLING
from electra_fast.ops._philox import derive_seeds
from electra_fast.ops.decoder_step import Paged
from electra_fast.ops.top_k_words import MOST


class Writer:
    """A decoder that reads one new token of each target at a time.

    decoder: in evaluation mode.
    memory: keys and values of N sources.
    """

    def __init__(self, decoder: Decoder, memory: Memory) -> None:
        self.decoder, self.source = decoder, paged(memory)
        layers: Any = decoder.layers
        self.layers = [layer.step_tensors for layer in layers]
        self.cache = Cache(self.source.pool[:, :0], 0)

    def step(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Feed a token to each target.

        tokens: (R,) int64. parents: (R,) int64, the row of the step before that each row continues, or its source in
        the first step.

        Returns (R, D), the hidden states that predict the next token.
        """
        source = self.source
        self.source = source._replace(table=source.table[parents], lengths=source.lengths[parents])
        if self.cache.length == 0:
            self.cache = Cache(self.cache.pool, len(tokens))
        else:
            self.cache.select(parents)
        rows = torch.arange(len(tokens), device=tokens.device)
        places = torch.full_like(tokens, self.cache.length)
        x = self.decoder.embed(tokens, torch.zeros_like(tokens), places, rows)
        return ops.decoder_step(
            x, self.layers, self.cache.extend(), self.source, eps=self.decoder.config.layer_norm_eps
        )


def paged(memory: Memory) -> Paged:
    """The keys and values of the sources in pages, a row for each source."""
    starts, first = memory.cu_seqlens[:-1].long(), memory.keys_values[0]
    lengths = memory.cu_seqlens.diff()
    blocks = (lengths.long() + PAGE - 1) // PAGE
    pages = blocks.cumsum(0) - blocks  # the first page of each source
    total, most = int(blocks.sum()), int(blocks.max()) if len(blocks) else 0
    count, _, heads, width = first.shape
    source = torch.repeat_interleave(lengths.long(), output_size=count)
    place = torch.arange(count, device=first.device) - starts[source]
    pool = first.new_zeros(len(memory.keys_values), total, 2, heads, PAGE, width)
    for layer, keys_values in zip(pool, memory.keys_values, strict=True):
        layer[pages[source] + place // PAGE, :, :, place % PAGE] = keys_values
    table = (pages[:, None] + torch.arange(most, device=first.device)).clamp(max=max(0, total - 1))
    return Paged(pool, table.int(), lengths)


@torch.no_grad()
def write(
    decoder: Decoder,
    memory: Memory,
    row_ids: Tensor,
    vocabulary: Vocabulary,
    options: WritingConfig,
    seed: Tensor,
) -> Tensor:
    """Write a target for each source; EncoderDecoder.generate describes the options and the result.

    decoder: in evaluation mode. memory: keys and values of N sources. row_ids: (N,) int64, that of each target's start
    token. vocabulary: the decoder's. seed: (1,) int64.

    Raises ValueError if max_length is more than the decoder's positions.
    """
    positions = decoder.config.max_position_embeddings
    if options.max_length > positions:
        raise ValueError(
            f"max_length is {options.max_length}, and the decoder has {positions} positions; lower max_length"
        )
    writer = Writer(decoder, memory)
    draws = Draws(derive_seeds(seed, torch.zeros_like(seed), SAMPLING, 1), row_ids)
    word = decoder.embeddings.word.weight

    def step(tokens: Tensor, parents: Tensor) -> Tensor:
        return decoder.transform(writer.step(tokens, parents))

    def top(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if k <= MOST:
            return ops.top_k_words(rows, word, decoder.vocabulary_bias, k)
        log_probs = F.linear(rows, word, decoder.vocabulary_bias).log_softmax(1)  # sampling without top_k
        return torch.topk(log_probs, k, dim=1)

    targets = search(step, top, len(row_ids), vocabulary, options, draws)
    longest = max((len(target) for target in targets), default=0)
    padded = [target + [vocabulary.pad] * (longest - len(target)) for target in targets]
    return torch.tensor(padded, dtype=torch.int64, device=row_ids.device).view(len(targets), longest)
