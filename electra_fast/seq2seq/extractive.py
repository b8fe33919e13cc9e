"""SentenceModel: a discriminator that chooses the sentences of a text that make the best summary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from electra_fast.data.batch import Batch
from electra_fast.data.tokenizer import Tokenizer
from electra_fast.decoding.settings import WritingConfig
from electra_fast.model.encoder import Encoder
from electra_fast.model.encoder_decoder import with_dropout
from electra_fast.model.seeds import DISCRIMINATOR
from electra_fast.seq2seq.batches import by_length
from electra_fast.seq2seq.learner import AT_ONCE, TASK, Advance, Feature, Learner, WritingTask
from electra_fast.seq2seq.pairs import Pair
from electra_fast.seq2seq.sentences import oracle
from electra_fast.storage.atomic import read_json
from electra_fast.storage.names import from_huggingface, to_huggingface
from electra_fast.storage.network import match, read_network, write_network
from electra_fast.tasks.model import load_encoder

if TYPE_CHECKING:
    from typing_extensions import Self

ARCHITECTURE = "ElectraForTokenClassification"  # transformers' class of the same weights
NAMES = ("out.", "classifier.")  # how the names of the scores' layer begin: ours, and transformers'


class SentenceModel(Learner):
    """An encoder with a score for each sentence of a text: how likely the summary has it.

        text = [CLS] sentence [SEP] [CLS] sentence [SEP] ...        score = sigmoid(out(hidden at the sentence's [CLS]))

    encoder: that of a discriminator or a generator. tokenizer: its own. task: how many sentences are chosen.

    The layer of the scores is new: its weights are drawn from torch's generator. Source: Liu and Lapata, "Text
    Summarization with Pretrained Encoders", EMNLP 2019, section 3.1 (a [CLS] for each sentence).
    """

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer, task: WritingTask) -> None:
        super().__init__()
        self.encoder, self.tokenizer, self.task = encoder, tokenizer, task
        self.out = nn.Linear(encoder.config.hidden_size, 1)
        positions = encoder.config.max_position_embeddings
        self.max_length = task.settings.max_source_length or min(512, positions)
        if self.max_length > positions:
            raise ValueError(
                f"max_source_length is {self.max_length}, and the network has {positions} positions; lower "
                "--max-source-length"
            )

    def features(self, pairs: Sequence[Pair], training: bool) -> tuple[list[Feature], list[str]]:
        """One feature a text; sentences beyond the longest source are left out."""
        features, cut = [], 0
        for pair in pairs:
            ids, positions = self._tokens(pair)
            cut += len(positions) < len(pair.sentences)
            chosen = oracle(pair.sentences, pair.references) if pair.references else []
            labels = [float(i in chosen) for i in range(len(positions))]
            features.append(Feature(ids, len(ids), [], positions, labels))
        notes = [f"the last sentences of {cut} texts longer than {self.max_length} tokens are left out"] if cut else []
        return features, notes

    def _tokens(self, pair: Pair) -> tuple[list[int], list[int]]:
        """The ids of a text, and the place of each sentence's [CLS]; the first sentence is cut if it is too long."""
        ids: list[int] = []
        positions: list[int] = []
        for sentence in self.tokenizer.encode(list(pair.sentences)):
            room = self.max_length - len(ids) - 2
            if positions and len(sentence) > room:
                break
            positions.append(len(ids))
            ids += [self.tokenizer.cls_token_id, *sentence[:room], self.tokenizer.sep_token_id]
        return ids, positions

    def losses(
        self, features: Sequence[Feature], names: Sequence[int], seed: Tensor, step: Tensor, smoothing: float
    ) -> Tensor:
        """The binary cross-entropy of each sentence; labels are not smoothed."""
        labels = torch.tensor([label for feature in features for label in feature.labels], device=self.device)
        logits = self._logits(features, names, seed, step)
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")

    def _logits(self, features: Sequence[Feature], names: Sequence[int], seed: Tensor, step: Tensor) -> Tensor:
        """The logits of all sentences of the features, in order."""
        batch = Batch.from_examples([(np.asarray(f.ids), f.second) for f in features], names)
        starts = batch.cu_seqlens.tolist()
        places = [start + place for start, f in zip(starts, features, strict=False) for place in f.positions]
        batch = batch.to(self.device)
        hidden = self.encoder(batch, batch.input_ids, seed, step, DISCRIMINATOR)
        return self.out(hidden[torch.tensor(places, device=self.device)])[:, 0]

    def write(
        self,
        pairs: Sequence[Pair],
        writing: WritingConfig | None = None,
        seed: int = 0,
        names: Sequence[int] | None = None,
        advance: Advance = lambda n: None,
    ) -> list[str]:
        """The best sentences of each text, in its order; nothing of it is drawn."""
        texts = [""] * len(pairs)
        for i, scores in self.scores(pairs):
            best = sorted(scores.topk(min(self.task.sentences, len(scores))).indices.tolist())
            texts[i] = " ".join(pairs[i].sentences[place] for place in best)
            advance(1)
        return texts

    @torch.no_grad()
    def scores(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Tensor]]:
        """(index of the text, the logit of each of its sentences that are read), in any order."""
        self.eval()
        zero = torch.zeros(1, dtype=torch.int64, device=self.device)
        read = [Feature(ids, len(ids), [], positions) for ids, positions in map(self._tokens, pairs)]
        for indices in by_length([feature.size for feature in read], AT_ONCE):
            features = [read[i] for i in indices]
            logits = self._logits(features, indices, zero, zero).cpu()
            yield from zip(indices, logits.split([len(f.positions) for f in features]), strict=True)

    def save(self, path: Path) -> None:
        tensors = _renamed(self.state_dict(), *NAMES)
        more = {"id2label": {"0": "in summary"}, "label2id": {"in summary": 0}}
        write_network(path, self.encoder.config, ARCHITECTURE, to_huggingface(tensors), more)
        self.tokenizer.save(path)
        self.task.save(path)

    @staticmethod
    def is_saved(path: Path) -> bool:
        """Whether a directory holds what `save` wrote."""
        file = path / TASK
        return file.exists() and read_json(file).get("task") == "extractive"

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote, in evaluation mode. Raises ValueError if a file is missing or damaged."""
        config, tensors = read_network(path)
        model = cls(Encoder(config), Tokenizer.load(path), WritingTask.load(path))
        ours = _renamed(from_huggingface(tensors), *reversed(NAMES))
        match({name: t.shape for name, t in model.state_dict().items()}, ours, str(path))
        model.load_state_dict(ours)
        return model.eval()

    @classmethod
    def new(cls, path: Path, task: WritingTask, random: bool) -> Self:
        """Make a model of a pre-trained network, or of its size alone."""
        encoder, tokenizer = load_encoder(path, random)
        encoder.config = with_dropout(encoder.config, task.settings.dropout)
        return cls(encoder, tokenizer, task)


def average_sentences(pairs: Sequence[Pair]) -> int:
    """How many sentences the oracle takes of a text on average, at least 1."""
    return max(1, round(sum(len(oracle(pair.sentences, pair.references)) for pair in pairs) / len(pairs)))


def _renamed(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    """The tensors, with names that begin with `old` beginning with `new`."""
    return {new + name.removeprefix(old) if name.startswith(old) else name: t for name, t in tensors.items()}
