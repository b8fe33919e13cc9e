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
from electra_fast.model.seeds import DISCRIMINATOR, HEAD
from electra_fast.ops._philox import derive_seeds
from electra_fast.storage.atomic import read_json
from electra_fast.storage.digests import verify, write_files
from electra_fast.storage.names import from_huggingface, to_huggingface
from electra_fast.storage.network import enlarge, match, read_network, write_network
from electra_fast.tasks.batch import TaskBatch
from electra_fast.tasks.benchmarks import BENCHMARKS
from electra_fast.tasks.examples import check_kind
from electra_fast.tasks.heads import Dropout, make_head
from electra_fast.tasks.settings import FinetuneConfig

if TYPE_CHECKING:
    from typing_extensions import Self

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
    """What a model was fine-tuned for.

    Attributes:
        kind: one of examples.KINDS.
        benchmark: a key of BENCHMARKS, or None.
        labels: classes, labels or tags, in the order of the logits. Empty for regression and qa.
        scale: predicted numbers are this times the head's. regression only.
        null_threshold: a question has no answer if its null odds are above this. SQuAD v2.0 only.
        texts: how many texts an example has, 1 or 2; None if that is not known.
    """

    kind: str
    benchmark: str | None
    labels: tuple[str, ...]
    scale: float = 1.0
    null_threshold: float = 0.0
    texts: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_kind(self.kind)
        if self.benchmark is not None and self.benchmark not in BENCHMARKS:
            raise ValueError(f"benchmark is {self.benchmark!r}; it must be None or one of {', '.join(BENCHMARKS)}")
        if not isinstance(self.labels, tuple | list) or not all(isinstance(label, str) for label in self.labels):
            raise ValueError("labels must be a list of strings")


class TaskModel(nn.Module):
    """A pre-trained encoder and the head of a task.

    Attributes:
        config: of the encoder.
        task: what it is fine-tuned for.
        settings: of the fine-tuning.
    """

    def __init__(self, encoder: Encoder, task: Task, settings: FinetuneConfig) -> None:
        """The head is new: its weights are drawn from torch's generator."""
        super().__init__()
        self.config, self.task, self.settings = encoder.config, task, settings
        self.encoder = encoder
        weight = settings.answerable_weight if task.benchmark == "squad2" else 0.0
        self.head: Any = make_head(encoder.config, task.kind, max(1, len(task.labels)), settings.head, weight)

    @property
    def max_length(self) -> int:
        """Tokens of a sequence, at most: the settings', else 128 (512 for qa) or the positions the model has."""
        usual = 512 if self.task.kind == "qa" else 128
        return self.settings.max_length or min(usual, self.config.max_position_embeddings)

    def hidden(self, batch: TaskBatch, seed: Tensor, step: Tensor) -> Tensor:
        """The encoder's hidden rows.

        seed, step: (1,) int64, which key dropout in training. Returns (T, D) for T packed tokens.
        """
        return self.encoder(batch.batch, batch.batch.input_ids, seed, step, DISCRIMINATOR)

    def losses(self, batch: TaskBatch, seed: Tensor, step: Tensor) -> Tensor:
        """The loss of each sequence, or of each word for tagging.

        seed, step: (1,) int64, which key dropout in training. Returns (W,), or (N,) for qa.
        """
        p = self.config.hidden_dropout_prob if self.training else 0.0
        return self.head.losses(self.hidden(batch, seed, step), batch, Dropout(p, derive_seeds(seed, step, HEAD, 2)))

    @classmethod
    def load(cls, path: Path) -> tuple[Self, Tokenizer]:
        """Reads a model and its tokenizer from a directory.

        path: what `save` wrote, or what transformers saved of an ElectraForSequenceClassification,
        ElectraForTokenClassification or ElectraForQuestionAnswering.

        Returns: (the model in evaluation mode on the CPU, its tokenizer).

        Raises:
            ValueError: a file is missing or damaged, or the files do not fit each other; the message names them.
        """
        config, tensors = read_network(path)
        tokenizer = Tokenizer.load(path)
        check_tokenizer(path, tokenizer, config)
        values = read_json(path / "config.json")
        if (path / "task.json").exists():
            task, settings = _read_task(path / "task.json")
        else:
            _check_names(path, values)
            task, settings = _task_of(path, values), FinetuneConfig(head="huggingface")
        model = cls(Encoder(config), task, settings)
        names = _head_names(task.kind, settings.head)
        ours = _renamed(from_huggingface(tensors), {theirs: own for own, theirs in names.items()})
        shapes = {name: t.shape for name, t in _renamed(to_huggingface(model.state_dict()), names).items()}
        match(shapes, _renamed(to_huggingface(ours), names), str(path))
        model.load_state_dict(ours)
        return model.eval(), tokenizer

    def save(self, path: Path, tokenizer: Tokenizer) -> None:
        """Writes config.json, model.safetensors, task.json and the tokenizer's files to a directory.

        transformers' class loads it if the head is "huggingface"; its encoder is loaded in any case.
        """
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
        """Writes task.json alone: the task, whose threshold may have changed since `save`, and the settings."""
        values = {"task": asdict(self.task), "settings": asdict(self.settings)}
        write_files(path, {"task.json": json.dumps(values, indent=2).encode() + b"\n"})


def load_encoder(path: Path, random_init: bool = False) -> tuple[Encoder, Tokenizer]:
    """Reads the encoder and the tokenizer of a Hugging Face directory, and leaves its head.

    Where tokens were added to the tokenizer and the model has no embeddings for them, it gets new ones (see `enlarge`).

    Args:
        path: a directory of ElectraForMaskedLM (a generator), ElectraForPreTraining (a discriminator), ElectraModel or
            a fine-tuned model.
        random_init: take its sizes and tokenizer alone, and draw the weights from torch's generator.

    Raises:
        ValueError: a file is missing or damaged, or the files do not fit each other; the message names them.
    """
    config, tensors = read_network(path)
    tokenizer = Tokenizer.load(path)
    config, tensors = enlarge(config, tensors, tokenizer.vocab_size if tokenizer.base_size <= config.vocab_size else 0)
    check_tokenizer(path, tokenizer, config)
    encoder = Encoder(config)
    if random_init:
        initialise(encoder, config.initializer_range)
        return encoder, tokenizer
    if not any(name.startswith("electra.") for name in tensors):
        tensors = {f"electra.{name}": t for name, t in tensors.items()}
    saved = {name: t for name, t in from_huggingface(tensors).items() if name.startswith("encoder.")}
    own = {f"encoder.{name}": t for name, t in encoder.state_dict().items()}
    match({name: t.shape for name, t in to_huggingface(own).items()}, to_huggingface(saved), str(path))
    encoder.load_state_dict({name.removeprefix("encoder."): t for name, t in saved.items()})
    return encoder, tokenizer


def check_tokenizer(path: Path, tokenizer: Tokenizer, config: NetworkConfig) -> None:
    """Raises ValueError if a tokenizer has ids that its model has no embedding for.

    A model may have more embeddings than its tokenizer has ids: many are padded to a round number.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{path} has a tokenizer of {tokenizer.vocab_size} entries and a model of {config.vocab_size}; put the "
            "tokenizer there that the model was trained with"
        )


def _read_task(path: Path) -> tuple[Task, FinetuneConfig]:
    verify(path.parent, path.name)
    values = read_json(path)
    try:
        task = Task(**values["task"])
        return dataclasses.replace(task, labels=tuple(task.labels)), FinetuneConfig(**values["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}; finetune did not write it so: restore it, or fine-tune again") from None


def _check_names(path: Path, values: dict[str, Any]) -> None:
    """Raises ValueError unless config.json names its classes and architectures as transformers does."""
    named, architectures = values.get("id2label") or {}, values.get("architectures") or []
    if not isinstance(named, dict) or not all(re.fullmatch(r"\d{1,9}", key) for key in named):
        raise ValueError(f'{path / "config.json"} has an odd "id2label"; it maps 0, 1, ... to the names of the classes')
    if not isinstance(architectures, list):
        raise ValueError(f'{path / "config.json"} has an odd "architectures"; it is a list with one name')


def _task_of(path: Path, values: dict[str, Any]) -> Task:
    """The task of a model of transformers, from its config.json."""
    architecture = (values.get("architectures") or [None])[0]
    kind = next((kind for kind, name in ARCHITECTURES.items() if name == architecture), None)
    if kind is None:
        raise ValueError(
            f"{path} holds {architecture}; a fine-tuned model is wanted: "
            f"{', '.join(sorted(set(ARCHITECTURES.values())))}. Fine-tune this one first: electra-fast finetune "
            f"--model {path}"
        )
    named = values.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    labels = tuple(str(named[key]) for key in sorted(named, key=int))
    if kind == "classification" and values.get("problem_type") == PROBLEM_TYPES["multilabel"]:
        kind = "multilabel"
    elif kind == "classification" and (values.get("problem_type") == "regression" or len(labels) == 1):
        kind = "regression"
    return Task(kind, None, labels if kind in ("classification", "multilabel", "tagging") else ())


def _head_names(kind: str, style: str) -> dict[str, str]:
    """Our names of the head's layers -> transformers'."""
    if kind == "qa":
        return {"head.out": "qa_outputs"} if style == "huggingface" else {}
    if style == "huggingface" and kind != "tagging":
        return {"head.dense": "classifier.dense", "head.out": "classifier.out_proj"}
    return {"head.out": "classifier"}


def _renamed(tensors: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """The tensors, with the layers in `names` (old -> new) renamed."""
    renamed = {}
    for name, tensor in tensors.items():
        layer, _, parameter = name.rpartition(".")
        renamed[f"{names[layer]}.{parameter}" if layer in names else name] = tensor
    return renamed
