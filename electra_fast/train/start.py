"""What a pre-training run starts from: its corpus and its model."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from electra_fast.config import ElectraConfig
from electra_fast.data.corpus import Corpus
from electra_fast.data.prepare import prepare
from electra_fast.data.shards import MANIFEST
from electra_fast.data.tokenizer import Tokenizer
from electra_fast.model.networks import Discriminator, Generator, Network
from electra_fast.objectives.base import Objective
from electra_fast.objectives.corrective import Corrective
from electra_fast.objectives.electra import Electra
from electra_fast.objectives.electric import Electric
from electra_fast.objectives.mlm import MaskedLanguageModel
from electra_fast.objectives.one_network import OneNetwork
from electra_fast.objectives.uniform import Uniform
from electra_fast.report.terminal import say
from electra_fast.special_ids import SpecialIds
from electra_fast.storage import checkpoint
from electra_fast.storage.atomic import check_free, read_json, write_file
from electra_fast.storage.network import enlarge, read_network
from electra_fast.train.recipes import ObjectiveName
from electra_fast.train.settings import RunConfig

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")
OBJECTIVES: dict[ObjectiveName, type[Objective]] = {
    "electra": Electra,
    "mlm": MaskedLanguageModel,
    "electric": Electric,
    "uniform": Uniform,
    "two-stage": Electra,
    "frozen-generator": Electra,
    "corrective": Corrective,
    "decoupled": Electra,
    "electra+mlm": OneNetwork,
}
OF_OBJECTIVE = (  # settings of the objective that a run has under the same name
    "mask_unit", "temperature", "temperature_fall", "disallow_correct", "label_smoothing", "generator_dropout", "noise"
)  # fmt: skip
OF_EMBEDDINGS = ("vocab_size", "embedding_size", "max_position_embeddings", "type_vocab_size")  # which networks share


def open_corpus(run: RunConfig) -> Corpus:
    """Open the corpus of a run: the prepared directory it names, or its text, which is prepared into OUT/data first.

    A later start of the same run finds OUT/data and takes it, if it was made of the same files and settings.

    Raises ValueError if a prepared directory is named beside others or does not fit the run's settings, if OUT/data was
    made with other settings, or if weights to start from come without a tokenizer and none is named.
    """
    if len(run.data) == 1 and (run.data[0] / MANIFEST).exists():
        return _prepared(run)
    for path in run.data:
        if (path / MANIFEST).exists():
            raise ValueError(
                f"data holds {path}, which is prepared, and {len(run.data) - 1} more; one prepared directory alone can "
                f"be read: prepare the text of all into one"
            )
    tokenizer = run.tokenizer
    weights = [path for path in (run.init_discriminator, run.init_generator) if path is not None]
    if tokenizer is None and weights:
        named = ("tokenizer.json", "vocab.txt")
        tokenizer = next((path for path in weights if any((path / name).is_file() for name in named)), None)
        if tokenizer is None:
            raise ValueError(
                f"{weights[0]} holds neither tokenizer.json nor vocab.txt; name the tokenizer that these weights were "
                f"trained with: --tokenizer PATH"
            )
    # The text that Python carries is small: fewer words, so that each is seen often, and a larger share held out.
    words, share = (8192, 0.01) if run.data else (1000, 0.05)
    vocab_size = run.vocab_size or words if tokenizer is None else run.vocab_size
    length = run.chosen("max_length")
    packing = run.chosen("packing")
    files = [f"{path.name}, {path.stat().st_size if path.exists() else 0} bytes" for path in run.data]
    settings = {
        "data": files,
        "tokenizer": tokenizer and str(tokenizer),
        "vocab_size": vocab_size,
        "max_length": length,
        "packing": packing,
    }
    prepared, source = run.out / "data", run.out / "data.json"
    if (prepared / MANIFEST).exists() and source.exists():
        changed = checkpoint.differences(read_json(source), settings)
        if refused := [line for line in changed if line.split(":")[0] not in run.allow_change]:
            raise ValueError(
                f"{prepared} was prepared by an earlier start, with other settings than these:\n  "
                + "\n  ".join(refused)
                + f"\npass the old values, take it as it is by --allow-change NAME, give another --out, or remove it: "
                f"rm -r {prepared}"
            )
        return Corpus(prepared)
    check_free(prepared, MANIFEST)
    write_file(source, [json.dumps(settings, indent=1).encode()])
    return prepare(
        list(run.data) or None,
        prepared,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        max_length=length,
        packing=packing,
        heldout=share,
    )


def _prepared(run: RunConfig) -> Corpus:
    """Open the prepared directory that a run names; raises ValueError if it was prepared with other settings."""
    corpus = Corpus(run.data[0])
    if run.max_length not in (None, corpus.max_length):
        raise ValueError(
            f"{run.data[0]} holds examples of {corpus.max_length} tokens, max_length is {run.max_length}; "
            f"pass --max-length {corpus.max_length}, or prepare the text again"
        )
    if run.vocab_size is not None and run.vocab_size < corpus.vocab_size:  # more: the text may have given less
        raise ValueError(
            f"{run.data[0]} was prepared with a vocabulary of {corpus.vocab_size} entries, vocab_size is "
            f"{run.vocab_size}; leave --vocab-size out, or prepare the text again"
        )
    builder = corpus.manifest.get("builder")
    if run.packing not in (None, builder):
        raise ValueError(
            f"{run.data[0]} was prepared with packing {builder}, and packing is {run.packing}; leave --packing out, or "
            f"prepare the text again with it"
        )
    if run.tokenizer is not None and Tokenizer.load(run.tokenizer).sha256 != corpus.tokenizer.sha256:
        raise ValueError(
            f"{run.data[0]} was prepared with another tokenizer than {run.tokenizer}; leave --tokenizer out, "
            f"or prepare the text again with it"
        )
    return corpus


def build_model(run: RunConfig, corpus: Corpus, seed: int, steps: int = 1_000_000) -> Objective:
    """Make the model of a run: its preset, fitted to the tokenizer, with the weights to start from if it names some.

    run: names the preset, the objective, the directories of weights, and changes to the preset.
    corpus: gives the tokenizer and the length of the examples.
    seed: new weights are a function of it.
    steps: of the run; the temperature falls within half of them, if it falls and the run does not say.

    Raises ValueError if weights do not fit the tokenizer or each other.
    """
    torch.manual_seed(seed)
    tokenizer = corpus.tokenizer
    dropout = {} if run.dropout is None else dict.fromkeys(DROPOUTS, run.dropout)
    networks: dict[str, Any] = {}
    if run.init_generator is not None:
        own = dropout if run.generator_dropout is None else dict.fromkeys(DROPOUTS, run.generator_dropout)
        networks["generator"] = _network(Generator, run.init_generator, own, tokenizer)
    if run.init_discriminator is not None:
        networks["discriminator"] = _network(Discriminator, run.init_discriminator, dropout, tokenizer)
    differ = len(networks) == 2 and not _equal_words(*networks.values())
    sharing = run.chosen("embedding_sharing")
    if differ and run.embedding_sharing is None and sharing == "tied":
        sharing = "none"
    changes: dict[str, Any] = {name: getattr(run, name) for name in OF_OBJECTIVE}
    changes |= {"share_embeddings": sharing != "none", "disentangled": sharing == "disentangled"}
    if (first := run.chosen("temperature_from")) is not None:
        changes |= {"temperature_from": first, "temperature_steps": run.temperature_steps or max(1, steps // 2)}
    if run.mask_prob is not None:
        changes["mask_prob"] = run.mask_prob
    if not networks and run.chosen("dropout") is not None:
        dropout = dict.fromkeys(DROPOUTS, run.chosen("dropout"))
    preset = getattr(ElectraConfig, run.model)(
        vocab_size=corpus.vocab_size,
        faithful=run.faithful,
        max_position_embeddings=max(512, corpus.max_length),
        **SpecialIds.of(tokenizer).token_ids | changes | dropout,
    )
    if run.faithful:
        preset = dataclasses.replace(preset, max_predictions=int((preset.mask_prob + 0.005) * corpus.max_length))
    for network in networks.values():
        preset = dataclasses.replace(preset, **{size: getattr(network.config, size) for size in OF_EMBEDDINGS})
    objective = OBJECTIVES[run.objective]
    if leading := networks.get(objective.leading):
        preset = dataclasses.replace(preset, **asdict(leading.config))
    if differ and preset.share_embeddings and not preset.disentangled:
        say("note: the two networks come with different embeddings; the discriminator's are taken for both")
    model = objective(preset, **networks)
    model.continues = torch.tensor(tokenizer.continues(preset.vocab_size))
    if isinstance(model, Electra) and len(networks) == 1 and not preset.share_embeddings:
        other, given = (model.generator, model.discriminator)[:: 1 if "discriminator" in networks else -1]
        other.encoder.embeddings.load_state_dict(given.encoder.embeddings.state_dict())
    return model


def starts_from_counts(run: RunConfig) -> bool:
    """Whether a run's networks begin with what counts know: not those that begin with given weights."""
    return run.given_weights is None and run.chosen("initial_weights") == "counts"


def _equal_words(one: Network, other: Network) -> bool:
    """Whether two networks have the same word table."""
    return torch.equal(one.encoder.embeddings.word.weight, other.encoder.embeddings.word.weight)


def _check_words(path: Path, rows: int, tokenizer: Tokenizer) -> None:
    """Check that the weights to start from belong to the tokenizer of the data.

    A word table may have more rows than the tokenizer has entries: published ones are filled up to a round number. The
    tokenizer may have further entries that were added to those of the weights.

    path: the directory of the weights.
    rows: how many its word table has.
    tokenizer: the tokenizer that made the data.

    Raises ValueError if the table has fewer rows than the tokenizer has entries without the added ones, or if the
    directory holds a tokenizer with other words.
    """
    if rows < tokenizer.base_size:
        raise ValueError(
            f"{path} has a word table of {rows} rows, and the tokenizer of the data has {tokenizer.vocab_size} "
            f"entries; prepare the text with the tokenizer that these weights were trained with: --tokenizer PATH"
        )
    if not any((path / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return
    own = Tokenizer.load(path)
    shared = min(own.vocab_size, tokenizer.vocab_size)
    pairs = ((i, own.token(i), tokenizer.token(i)) for i in range(shared))
    differing = next(((i, theirs, ours) for i, theirs, ours in pairs if theirs != ours), None)
    if not tokenizer.base_size <= own.vocab_size <= tokenizer.vocab_size or differing is not None:
        where = f"{own.vocab_size} entries there and {tokenizer.vocab_size} in the data"
        if differing is not None:
            where += f", and {differing[0]} is {differing[1]!r} there and {differing[2]!r} in the data"
        raise ValueError(
            f"{path} has another tokenizer than the data ({where}), so its weights would stand for other words; "
            f"prepare the text with --tokenizer {path}"
        )


def _network(kind: type[Network], path: Path, dropout: dict[str, Any], tokenizer: Tokenizer) -> Network:
    """Load a network from a Hugging Face directory, with embeddings for tokens that were added to its tokenizer.

    dropout: the probabilities to change, by name. tokenizer: that of the data. Raises as `_check_words` does.
    """
    config, tensors = read_network(path)
    _check_words(path, config.vocab_size, tokenizer)
    config, tensors = enlarge(config, tensors, tokenizer.vocab_size)
    return kind.from_tensors(dataclasses.replace(config, **dropout), tensors, str(path))
