"""Convert published weights to ours: Google's TensorFlow checkpoints, and directories of transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from electra_fast.data.tokenizer import Tokenizer
from electra_fast.interop.google import HEADS, NETWORKS, read_google
from electra_fast.model.networks import Network
from electra_fast.report.terminal import bytes_bar
from electra_fast.special_ids import SpecialIds
from electra_fast.storage.atomic import check_free, staged_directory
from electra_fast.storage.digests import record, write_files
from electra_fast.storage.names import to_huggingface
from electra_fast.storage.network import read_network, write_network
from electra_fast.storage.weights import write_tensors


def convert(source: Path, out: Path, tokenizer: Path | None = None) -> list[str]:
    """Convert weights to OUT/generator and OUT/discriminator, as far as the source holds them.

    The sizes follow from the tensors' shapes. The width of a head does not; it is taken from a config.json beside a
    checkpoint, and is 64 without one. Adam's moments go to OUT/optimizer.safetensors under the names of Pretrainer's
    optimiser.

    source: a checkpoint of Google's TensorFlow code (a directory with one, or its path with or without .index), or a
        directory of transformers (config.json and model.safetensors, or generator/ and discriminator/ with those).
    out: the directory to write, which must not exist, or be empty.
    tokenizer: a tokenizer.json, a vocab.txt or a directory with one, which is saved with each network; by default that
        beside the weights, if there is one.

    Returns lines that say what was written and left out.

    Raises ValueError if the source is damaged, is no ELECTRA, or does not fit the tokenizer, and if OUT holds files.
    Then nothing is written.
    """
    check_free(out)
    if not source.is_dir():
        prefix = source.with_name(source.name.removesuffix(".index"))
        if source.is_file() and source.suffix != ".index":
            raise ValueError(f"{source} is no checkpoint; name PREFIX.index of a TensorFlow checkpoint, or a directory")
        networks, moments, lines = read_google(prefix)
        beside = prefix.parent
    elif indexes := sorted(source.glob("*.index")):
        if len(indexes) > 1:
            names = ", ".join(path.name for path in indexes)
            raise ValueError(f"{source} holds several checkpoints ({names}); name one of them")
        networks, moments, lines = read_google(indexes[0].with_suffix(""))
        beside = source
    else:
        pair = [source / name for name in NETWORKS if (source / name).is_dir()]
        networks, moments, lines = dict(map(read_transformers, pair or [source])), {}, []
        beside = (pair or [source])[-1]
    if tokenizer is None and any((beside / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        tokenizer = beside
    words = None if tokenizer is None else Tokenizer.load(tokenizer)
    for name, network in networks.items():
        if words is not None and words.vocab_size > network.config.vocab_size:  # a word table may have spare rows
            raise ValueError(
                f"{tokenizer} has {words.vocab_size} entries and the {name} knows {network.config.vocab_size} words; "
                f"name the tokenizer that it was trained with: --tokenizer PATH"
            )
    _write(out, networks, moments, words)
    lines += [f"{out / name}: {network.config}" for name, network in networks.items()]
    if moments:
        lines.append(f"{out / 'optimizer.safetensors'}: Adam's moments, {len(moments)} tensors")
    if words is None:
        lines.append("no tokenizer.json or vocab.txt was found beside the weights; name one: --tokenizer PATH")
    return lines


def _write(out: Path, networks: Mapping[str, Network], moments: Mapping[str, Tensor], words: Tokenizer | None) -> None:
    """Write everything, or nothing if something fails."""
    states = {name: to_huggingface(network.state_dict()) for name, network in networks.items()}
    total = sum(t.nbytes for group in (*states.values(), moments) for t in group.values())
    with staged_directory(out) as staging, bytes_bar(total, "writing") as bar:
        for name, network in networks.items():
            architecture = network.architecture
            write_network(staging / name, network.config, architecture, states[name], progress=bar.update)
            if words is not None:
                words.save(staging / name)
        if moments:
            path = staging / "optimizer.safetensors"
            record(staging, {path.name: write_tensors(path, moments, bar.update)})
        if words is not None:
            ids = SpecialIds.of(words).token_ids
            write_files(staging, {"electra.json": json.dumps(ids, indent=2).encode() + b"\n"})


def read_transformers(directory: Path) -> tuple[str, Network]:
    """Load the network of a transformers directory; its head tells whether it is a generator or a discriminator.

    Returns "generator" or "discriminator", and the network. Raises ValueError if it is neither.
    """
    _, tensors = read_network(directory)
    for name, head in HEADS.items():
        if any(key.startswith(head) for key in tensors):
            return name, NETWORKS[name].from_pretrained(directory)
    raise ValueError(
        f"{directory} has neither {' nor '.join(HEADS.values())} among its {len(tensors)} tensors; a model fine-tuned "
        f"for a task is not converted: take the pre-trained one"
    )
