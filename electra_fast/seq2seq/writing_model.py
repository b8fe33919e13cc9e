"""WritingModel: an encoder-decoder with its tokenizers, which writes summaries, translations and answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from electra_fast.data.batch import Batch
from electra_fast.data.tokenizer import Tokenizer
from electra_fast.decoding.settings import WritingConfig
from electra_fast.model.encoder_decoder import EncoderDecoder
from electra_fast.objectives.seq2seq import PairBatch, token_losses
from electra_fast.seq2seq.batches import by_length
from electra_fast.seq2seq.learner import AT_ONCE, TASK, Advance, Feature, Learner, WritingTask
from electra_fast.seq2seq.pairs import Pair
from electra_fast.tasks.files import plural
from electra_fast.tasks.windows import truncate

if TYPE_CHECKING:
    from typing_extensions import Self

SOURCE, TARGET = "source_tokenizer", "target_tokenizer"  # folders of two tokenizers; one alone stands beside the model


class WritingModel(Learner):
    """An encoder-decoder for a task.

    model: the networks. source, target: their tokenizers. task: what is written, and how.

    Raises ValueError if the lengths of the task are more than the networks have positions.
    """

    def __init__(self, model: EncoderDecoder, source: Tokenizer, target: Tokenizer, task: WritingTask) -> None:
        super().__init__()
        self.model, self.source, self.target, self.task = model, source, target, task
        for name, length, config in (
            ("max_source_length", task.settings.max_source_length, model.config.encoder),
            ("max_length", task.writing.max_length, model.config.decoder),
        ):
            if length is not None and length > config.max_position_embeddings:
                raise ValueError(
                    f"{name} is {length}, and the network has {config.max_position_embeddings} positions; lower "
                    f"--{name.replace('_', '-')}"
                )

    @property
    def max_source_length(self) -> int:
        """Tokens of a source at most."""
        positions = self.model.config.encoder.max_position_embeddings
        return self.task.settings.max_source_length or min(512, positions)

    def features(self, pairs: Sequence[Pair], training: bool) -> tuple[list[Feature], list[str]]:
        cut = {"source": 0, "target": 0}
        tokenizer, room = self.target, self.task.writing.max_length - 2
        sources = self._sources(pairs, cut)
        features = []
        for pair, (ids, second) in zip(pairs, sources, strict=True):
            references = pair.references if training else pair.references[:1]
            for target in tokenizer.encode(list(references)) if references else [None]:
                if target is None:
                    features.append(Feature(ids, second))
                    continue
                cut["target"] += len(target) > room
                whole = [tokenizer.cls_token_id, *target[:room], tokenizer.sep_token_id]
                features.append(Feature(ids, second, whole))
        lengths = {"source": self.max_source_length, "target": self.task.writing.max_length}
        notes = [
            f"{plural(count, side)} longer than {lengths[side]} tokens {'is' if count == 1 else 'are'} cut"
            for side, count in cut.items()
            if count
        ]
        return features, notes

    def _sources(self, pairs: Sequence[Pair], cut: dict[str, int]) -> list[tuple[list[int], int]]:
        """For each pair [CLS] text [SEP], or [CLS] question [SEP] context [SEP], and where the second part begins."""
        tokenizer = self.source
        pieces = iter(tokenizer.encode([text for pair in pairs for text in pair.texts]))
        sources = []
        for pair in pairs:
            parts = [next(pieces) for _ in pair.texts]
            room = self.max_source_length - 1 - len(parts)
            if sum(map(len, parts)) > room:
                cut["source"] += 1
                parts = truncate(parts, room)
            first, *rest = parts
            ids = [tokenizer.cls_token_id, *first, tokenizer.sep_token_id]
            second = len(ids)
            sources.append((ids + [id for part in rest for id in (*part, tokenizer.sep_token_id)], second))
        return sources

    def losses(
        self, features: Sequence[Feature], names: Sequence[int], seed: Tensor, step: Tensor, smoothing: float
    ) -> Tensor:
        batch = PairBatch.of([(f.ids, f.second) for f in features], [f.target for f in features], names)
        return token_losses(self.model, batch.to(self.device), seed, step, smoothing)

    def write(
        self,
        pairs: Sequence[Pair],
        writing: WritingConfig | None = None,
        seed: int = 0,
        names: Sequence[int] | None = None,
        advance: Advance = lambda n: None,
    ) -> list[str]:
        writing = writing or self.task.writing
        names = range(len(pairs)) if names is None else names
        sources = self._sources(pairs, {"source": 0})
        texts = [""] * len(pairs)
        for indices in by_length([len(ids) * writing.num_beams for ids, _ in sources], AT_ONCE):
            examples = [(np.asarray(sources[i][0]), sources[i][1]) for i in indices]
            batch = Batch.from_examples(examples, [names[i] for i in indices]).to(self.device)
            for i, ids in zip(indices, self.model.write(batch, writing, seed).tolist(), strict=True):
                texts[i] = self._text(ids)
            advance(len(indices))
        return texts

    def _text(self, ids: list[int]) -> str:
        """The text of a target, without its special tokens."""
        ends = {self.target.sep_token_id, self.target.pad_token_id}
        body = ids[1:]
        stop = next((i for i, id in enumerate(body) if id in ends), len(body))
        special = {self.target.cls_token_id, self.target.mask_token_id}
        return self.target.decode(id for id in body[:stop] if id not in special)

    def save(self, path: Path) -> None:
        self.model.save_pretrained(path)
        if self.source.sha256 == self.target.sha256:
            self.source.save(path)
        else:
            self.source.save(path / SOURCE)
            self.target.save(path / TARGET)
        self.task.save(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote, or transformers' EncoderDecoderModel with its tokenizer, in evaluation mode."""
        model = EncoderDecoder.from_pretrained(path)
        folders = (path / SOURCE, path / TARGET) if (path / SOURCE).is_dir() else (path, path)
        source, target = (Tokenizer.load(folder) for folder in folders)
        task = WritingTask.load(path) if (path / TASK).exists() else WritingTask("summarization")
        for name, tokenizer, config in (
            ("source", source, model.config.encoder),
            ("target", target, model.config.decoder),
        ):
            if tokenizer.vocab_size > config.vocab_size:
                raise ValueError(
                    f"{path}: the {name}'s tokenizer has {tokenizer.vocab_size} entries and its network "
                    f"{config.vocab_size}; put the tokenizer there that the model was trained with"
                )
        return cls(model, source, target, task).eval()

    @classmethod
    def new(cls, encoder: Path, decoder: Path | None, task: WritingTask, shared: bool | None, random: bool) -> Self:
        """Make a model of pre-trained networks; see EncoderDecoder.from_networks. Drawn weights are of torch's
        generator."""
        options: dict[str, bool | None] = dict(share_embeddings=shared)
        model = EncoderDecoder.from_networks(
            encoder, decoder, random_init=random, dropout=task.settings.dropout, **options
        )
        return cls(model, Tokenizer.load(encoder), Tokenizer.load(decoder or encoder), task)
