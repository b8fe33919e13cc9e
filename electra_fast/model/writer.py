"""Writing of targets by an encoder-decoder, one token of each at a time, with a cache of keys and values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast import ops
from electra_fast.data.batch import Batch
from electra_fast.decoding.cache import PAGE, Cache
from electra_fast.decoding.candidates import Vocabulary
from electra_fast.decoding.search import Draws, search
from electra_fast.decoding.settings import WritingConfig
from electra_fast.model.decoder import Decoder, Memory
from electra_fast.model.seeds import SAMPLING
from electra_fast.ops._cu_seqlens import cu_seqlens_of
from electra_fast.ops._philox import derive_seeds
from electra_fast.ops.top_k_words import MOST


class Writer:
    """A decoder that reads one new token of each target at a time.

    decoder: in evaluation mode.
    memory: keys and values of N sources.
    """

    def __init__(self, decoder: Decoder, memory: Memory) -> None:
        self.decoder, self.memory = decoder, memory
        sources, first = len(memory.cu_seqlens) - 1, memory.keys_values[0]
        self.cache = Cache(first.new_empty(len(decoder.layers), 0, PAGE, *first.shape[1:]), 0)
        self.source_of = torch.arange(sources, device=memory.cu_seqlens.device)  # the source of each row

    def step(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Feed a token to each target.

        tokens: (R,) int64. parents: (R,) int64, the row of the step before that each row continues, or its source in
        the first step; the sources of the rows must not fall.

        Returns (R, D), the hidden states that predict the next token.
        """
        self.source_of = self.source_of[parents]
        if self.cache.length == 0:
            self.cache = Cache(self.cache.pool, len(tokens))
        else:
            self.cache.select(parents)
        counts = torch.bincount(self.source_of, minlength=len(self.memory.cu_seqlens) - 1)
        queries, most = cu_seqlens_of(counts), int(counts.max())
        rows = torch.arange(len(tokens), device=tokens.device)
        batch = Batch(
            tokens, torch.zeros_like(tokens), torch.full_like(tokens, self.cache.length), rows, queries, counts.cpu(), 1
        )
        seeds = torch.zeros(1 + 3 * len(self.decoder.layers), dtype=torch.int64, device=tokens.device)

        def attend_across(i: int, query: Tensor) -> Tensor:
            keys, values = self.memory.keys_values[i].unbind(1)
            return ops.attention(query, keys, values, queries, most, self.memory.cu_seqlens, self.memory.max_seqlen)

        x = self.decoder.embed(batch, seeds[:1])
        self.cache.extend()
        return self.decoder.run(x, rows, seeds, self.cache.attend, attend_across)


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
