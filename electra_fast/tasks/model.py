"""TaskModel: an encoder with the head of a task, and its directory, which transformers reads as well."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from electra_fast.config import NetworkConfig, check_fields
from electra_fast.data.tokenizer import Tokenizer
from electra_fast.model.encoder import Encoder, initialise
from electra_fast.model.seeds import DISCRIMINATOR
from electra_fast.ops._philox import derive_seeds
from electra_fast.storage.atomic import read_json
from electra_fast.storage.digests import verify, write_files
from electra_fast.storage.names import from_huggingface, to_huggingface
from electra_fast.storage.network import match, read_network, write_network
from electra_fast.tasks.batch import TaskBatch
from electra_fast.tasks.benchmarks import BENCHMARKS
from electra_fast.tasks.examples import check_kind
from electra_fast.tasks.heads import Dropout, make_head
from electra_fast.tasks.settings import FinetuneConfig

if TYPE_CHECKING:
    from typing_extensions import Self

HEAD = 3 << 16  # the stream of a head's dropout
ARCHITECTURES = {
    "classification": "ElectraForSequenceClassification",
    "multilabel": "ElectraForSequenceClassification",
    "regression": "ElectraForSequenceClassification",
    "tagging": "ElectraForTokenClassification",
    "qa": "ElectraForQuestionAnswering",
}
PROBLEM_TYPES = {  # transformers' names for what ElectraForSequenceClassification is trained on
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}


@dataclass(frozen=True)
class Task:
    """What a model was fine-tuned for."""

    kind: str
    benchmark: str | None
    labels: tuple[str, ...]
    scale: float = 1.0  # numbers are this times the head's
    null_threshold: float = 0.0  # of qa with impossible questions: odds above it mean no answer

    def __post_init__(self) -> None:
        check_fields(self)
        check_kind(self.kind)
        if self.benchmark is not None and self.benchmark not in BENCHMARKS:
            raise ValueError(f"benchmark is {self.benchmark!r}; it must be None or one of {', '.join(BENCHMARKS)}")
        if not isinstance(self.labels, tuple | list) or not all(isinstance(label, str) for label in self.labels):
            raise ValueError("labels must be a list of strings")


class TaskModel(nn.Module):
    """An encoder, of a network that was pre-trained, and the head of a task, which is not."""

    def __init__(self, encoder: Encoder, task: Task, settings: FinetuneConfig) -> None:
        super().__init__()
        self.config, self.task, self.settings = encoder.config, task, settings
        self.encoder = encoder
        weight = settings.answerable_weight if task.benchmark == "squad2" else 0.0
        self.head: Any = make_head(encoder.config, task.kind, max(1, len(task.labels)), settings.head, weight)

    @property
    def max_length(self) -> int:
        """Tokens of a sequence, at most."""
        usual = 512 if self.task.kind == "qa" else 128
        return self.settings.max_length or min(usual, self.config.max_position_embeddings)

    def hidden(self, asked: TaskBatch, seed: Tensor, step: Tensor) -> Tensor:
        """(T, D)"""
        batch = asked.batch
        return self.encoder(batch, batch.input_ids, seed, step, DISCRIMINATOR)

    def losses(self, asked: TaskBatch, seed: Tensor, step: Tensor) -> Tensor:
        """One for each sequence, word or number asked for; dropout, in training, is keyed by (seed, step)."""
        p = self.config.hidden_dropout_prob if self.training else 0.0
        return self.head.losses(self.hidden(asked, seed, step), asked, Dropout(p, derive_seeds(seed, step, HEAD, 2)))

    @classmethod
    def load(cls, path: Path) -> tuple[Self, Tokenizer]:
        """What `save` wrote, or what transformers did: a classification, token or question-answering model.

        Raises ValueError with what does not fit.
        """
        config, tensors = read_network(path)
        tokenizer = fitting_tokenizer(path, config)
        values = read_json(path / "config.json")
        if (path / "task.json").exists():
            task, settings = _read_task(path / "task.json")
        else:
            _check_names(path, values)
            task, settings = _task_of(path, values), FinetuneConfig(head="huggingface")
        model = cls(Encoder(config), task, settings)
        names = _head_names(task.kind, settings.head)
        found = _renamed(from_huggingface(tensors), {theirs: ours for ours, theirs in names.items()})
        shapes = {name: t.shape for name, t in _renamed(to_huggingface(model.state_dict()), names).items()}
        match(shapes, _renamed(to_huggingface(found), names), str(path))
        model.load_state_dict(found)
        return model.eval(), tokenizer

    def save(self, path: Path, tokenizer: Tokenizer) -> None:
        """To a directory: config.json, model.safetensors, task.json and the tokenizer's files."""
        task, settings = self.task, self.settings
        labels = task.labels or (("LABEL_0",) if task.kind == "regression" else ())
        more: dict[str, Any] = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
        if task.kind in PROBLEM_TYPES:
            more["problem_type"] = PROBLEM_TYPES[task.kind]
        tensors = _renamed(to_huggingface(self.state_dict()), _head_names(task.kind, settings.head))
        write_network(path, self.config, ARCHITECTURES[task.kind], tensors, more if labels else None)
        tokenizer.save(path)
        self.save_task(path)

    def save_task(self, path: Path) -> None:
        """Writes task.json to a directory, as `save` does: the task with its threshold, and the settings."""
        values = {"task": asdict(self.task), "settings": asdict(self.settings)}
        write_files(path, {"task.json": json.dumps(values, indent=2).encode() + b"\n"})


def load_encoder(path: Path, random_init: bool = False) -> tuple[Encoder, Tokenizer]:
    """The encoder and the tokenizer of a Hugging Face directory, whatever head stands on it.

    A generator's (ElectraForMaskedLM), a discriminator's, a bare ElectraModel's or a fine-tuned one's. random_init:
    only its sizes and tokenizer, the weights drawn anew from torch's generator. Raises ValueError with what does not
    fit.
    """
    config, tensors = read_network(path)
    tokenizer = fitting_tokenizer(path, config)
    encoder = Encoder(config)
    if random_init:
        initialise(encoder, config.initializer_range)
        return encoder, tokenizer
    if not any(name.startswith("electra.") for name in tensors):
        tensors = {f"electra.{name}": t for name, t in tensors.items()}
    tensors = from_huggingface(tensors)
    found = {name: t for name, t in tensors.items() if name.startswith("encoder.")}
    own = {f"encoder.{name}": t for name, t in encoder.state_dict().items()}
    match({name: t.shape for name, t in to_huggingface(own).items()}, to_huggingface(found), str(path))
    encoder.load_state_dict({name.removeprefix("encoder."): t for name, t in found.items()})
    return encoder, tokenizer


def fitting_tokenizer(path: Path, config: NetworkConfig) -> Tokenizer:
    """The tokenizer in the directory. Raises ValueError where it has ids that the model lacks."""
    tokenizer = Tokenizer.load(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{path} has a tokenizer of {tokenizer.vocab_size} entries and a model of {config.vocab_size}; put the "
            f"tokenizer there that the model was trained with"
        )
    return tokenizer


def _read_task(path: Path) -> tuple[Task, FinetuneConfig]:
    verify(path.parent, path.name)
    values = read_json(path)
    try:
        task = Task(**values["task"])
        return dataclasses.replace(task, labels=tuple(task.labels)), FinetuneConfig(**values["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}; it is not as finetune wrote it: fine-tune again") from None


def _check_names(path: Path, values: dict[str, Any]) -> None:
    """Raises ValueError unless config.json names its classes and architectures as transformers does."""
    named, architectures = values.get("id2label") or {}, values.get("architectures") or []
    if not isinstance(named, dict) or not all(re.fullmatch(r"\d{1,9}", key) for key in named):
        raise ValueError(f'{path / "config.json"} has an odd "id2label"; it maps 0, 1, ... to the names of the classes')
    if not isinstance(architectures, list):
        raise ValueError(f'{path / "config.json"} has an odd "architectures"; it is a list with one name')


def _task_of(path: Path, values: dict[str, Any]) -> Task:
    """From what transformers writes into config.json."""
    found = (values.get("architectures") or [None])[0]
    kind = next((kind for kind, name in ARCHITECTURES.items() if name == found), None)
    if kind is None:
        raise ValueError(
            f"{path} holds {found}; a fine-tuned model is wanted: {', '.join(sorted(set(ARCHITECTURES.values())))}. "
            f"Fine-tune this one first: electra-fast finetune --model {path}"
        )
    named = values.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    labels = tuple(str(named[key]) for key in sorted(named, key=int))
    if kind == "classification" and values.get("problem_type") == PROBLEM_TYPES["multilabel"]:
        kind = "multilabel"
    elif kind == "classification" and (values.get("problem_type") == "regression" or len(labels) == 1):
        kind = "regression"
    return Task(kind, None, labels if kind in ("classification", "multilabel", "tagging") else ())


def _head_names(kind: str, style: str) -> dict[str, str]:
    if kind == "qa":
        return {"head.out": "qa_outputs"} if style == "huggingface" else {}
    if style == "huggingface" and kind != "tagging":
        return {"head.dense": "classifier.dense", "head.out": "classifier.out_proj"}
    return {"head.out": "classifier"}


def _renamed(tensors: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        found[f"{names[stem]}.{kind}" if stem in names else name] = tensor
    return found
