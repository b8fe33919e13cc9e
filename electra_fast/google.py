"""Other people's weights to ours: Google's TensorFlow checkpoints, and directories of transformers."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from electra_fast.bundle import Bundle
from electra_fast.config import NetworkConfig
from electra_fast.convert import from_huggingface
from electra_fast.corpus import check_free
from electra_fast.model import Discriminator, Generator, Network
from electra_fast.tokenizer import Tokenizer
from electra_fast.weights import read_config, read_network, sync_directory, write_file, write_tensors

NETWORKS: dict[str, type[Network]] = {"generator": Generator, "discriminator": Discriminator}
_HEADS = {"generator": "generator_predictions", "discriminator": "discriminator_predictions"}
_SLOT = re.compile(r"(.*)/(adam_[mv])")
_MOMENTS = {"adam_m": "exp_avg", "adam_v": "exp_avg_sq"}
_RENAMED = {
    "discriminator_predictions/dense_1": "discriminator_predictions/dense_prediction",
    "generator_predictions/output_bias": "generator_lm_head/bias",
}
_KINDS = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}
_KERAS = ".ATTRIBUTES/VARIABLE_VALUE"


def convert(source: Path, out: Path, tokenizer: Path | None = None) -> list[str]:
    """Write OUT/generator and OUT/discriminator, as far as the source holds them; returns a line on each thing done.

    source: a checkpoint of Google's TensorFlow code (a directory with one, or the path with or without .index), or a
    directory of transformers' (config.json and model.safetensors, or generator/ and discriminator/ with those). The
    sizes are read off the shapes; what these do not tell is taken from a config.json beside a checkpoint, else heads
    are 64 wide. tokenizer goes with each network; None: that beside the weights, if there is one. Adam's moments go to
    OUT/optimizer.safetensors under the names of Pretrainer's optimiser. Raises ValueError where the source is damaged,
    is no ELECTRA or does not fit the tokenizer, and where OUT exists; then nothing is written.
    """
    check_free(out)
    if not source.is_dir():
        prefix = source.with_name(source.name.removesuffix(".index"))
        if source.is_file() and source.suffix != ".index":
            raise ValueError(
                f"{source} is no checkpoint that is read; name PREFIX.index of a TensorFlow checkpoint or a directory"
            )
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
        if words is not None and words.vocab_size != network.config.vocab_size:
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
    """All of it or nothing, in one rename."""
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.with_name(f".tmp-{out.name}-{os.getpid()}")
    try:
        for name, network in networks.items():
            network.save_pretrained(staging / name)
            if words is not None:
                words.save(staging / name)
        if moments:
            write_tensors(staging / "optimizer.safetensors", moments)
        if words is not None:
            names = ("pad", "unk", "cls", "sep", "mask")
            ids = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in names}
            write_file(staging / "electra.json", [json.dumps(ids, indent=2).encode() + b"\n"])
        os.rename(staging, out)  # over an empty directory at most
        sync_directory(out.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # renamed, it is not there any more


def read_transformers(directory: Path) -> tuple[str, Network]:
    """Which network a transformers directory holds, by its head, and the network."""
    _, tensors = read_network(directory)
    for name, head in _HEADS.items():
        if any(key.startswith(head) for key in tensors):
            return name, NETWORKS[name].from_pretrained(directory)
    raise ValueError(
        f"{directory} has neither {' nor '.join(_HEADS.values())} among its {len(tensors)} tensors; a model fine-tuned "
        f"for a task is not converted: take the pre-trained one"
    )


def read_google(prefix: Path) -> tuple[dict[str, Network], dict[str, Tensor], list[str]]:
    """The networks of a checkpoint, Adam's moments by the optimiser's names, and a line on what was left out.

    Names and shapes: modeling.py and run_pretraining.py of google-research/electra. Dense kernels are transposed there.
    """
    bundle = Bundle(prefix)
    names = [name for name in bundle.entries if not _SLOT.fullmatch(name)]
    if any(_KERAS in name for name in names):
        raise ValueError(
            f"{prefix}.index is a checkpoint of Keras objects (TensorFlow 2, as NVIDIA's); only those of Google's "
            f"TensorFlow 1 code are read: export its networks to transformers with the code that trained it"
        )
    scopes = {name: head for name, head in _HEADS.items() if any(key.startswith(f"{head}/") for key in names)}
    if not scopes:
        raise ValueError(
            f"{prefix}.index has neither {' nor '.join(_HEADS.values())} among its {len(names)} variables "
            f"({', '.join(names[:3])}, ...); only a pre-trained ELECTRA is converted, no model fine-tuned for a task"
        )
    given = read_config(prefix.parent) if (prefix.parent / "config.json").is_file() else None
    twofold = any(name.startswith("generator/") for name in names)  # else one encoder serves both
    found: dict[str, Network] = {}
    moments: dict[str, Tensor] = {}
    used: set[str] = set()
    for which, head in scopes.items():
        scope = "generator" if which == "generator" and twofold else "electra"
        tables = "generator" if f"{scope}/embeddings/word_embeddings" in names and scope == "generator" else "electra"
        own = {
            name: _name(name.replace(f"{scope}/", "electra/", 1) if name.startswith(f"{scope}/") else name)
            for name in names
            if name.startswith((f"{head}/", f"{tables}/embeddings/"))
            or (name.startswith(f"{scope}/") and not name.startswith(f"{scope}/embeddings/"))
        }
        tensors = {theirs: _tensor(bundle, name) for name, theirs in own.items()}
        config = _config(tensors, given, f"{prefix}.index")
        found[which] = NETWORKS[which].from_tensors(config, tensors, f"{prefix}.index")
        used |= own.keys()
        for name, theirs in own.items():
            for slot, moment in _MOMENTS.items():
                if f"{name}/{slot}" in bundle.entries:
                    moments[f"{which}.{moment}.{theirs}"] = _tensor(bundle, f"{name}/{slot}", name)
    if given is not None and given not in [network.config for network in found.values()]:
        there, here = asdict(given), asdict([*found.values()][-1].config)
        differ = ", ".join(f"{name} is {there[name]}, not {here[name]}" for name in here if there[name] != here[name])
        raise ValueError(
            f"{prefix.parent / 'config.json'} describes another network than the checkpoint holds ({differ}); "
            f"correct it, or put another there"
        )
    rest = sorted(set(names) - used - {"global_step"})
    lines = [f"left out: {', '.join(rest[:5])}{', ...' if len(rest) > 5 else ''}"] if rest else []
    if "global_step" in names:
        lines.append(f"{prefix}: after step {int(bundle.tensor('global_step'))}")
    return found, _optimiser(moments), lines


def _name(google: str) -> str:
    """Google's name under transformers' convention."""
    for old, new in _RENAMED.items():
        google = google.replace(old, new)
    *scopes, kind = re.sub(r"/layer_(\d+)/", r"/layer/\1/", google).split("/")
    return ".".join([*scopes, _KINDS.get(kind, f"{kind}.weight")])


def _tensor(bundle: Bundle, name: str, variable: str | None = None) -> Tensor:
    tensor = bundle.tensor(name).float()
    return tensor.t().contiguous() if (variable or name).endswith("/kernel") and tensor.ndim == 2 else tensor


def _config(tensors: Mapping[str, Tensor], given: NetworkConfig | None, source: str) -> NetworkConfig:
    base = given or NetworkConfig()

    def shape(name: str) -> tuple[int, int]:
        name = f"electra.{name}.weight"
        if name not in tensors or tensors[name].ndim != 2:
            raise ValueError(f"{source} has no matrix that would be {name}; take a whole checkpoint of an ELECTRA")
        return tensors[name].shape[0], tensors[name].shape[1]

    vocab_size, embedding_size = shape("embeddings.word_embeddings")
    intermediate_size, hidden_size = shape("encoder.layer.0.intermediate.dense")
    numbers = {int(key.split(".")[3]) for key in tensors if key.startswith("electra.encoder.layer.")}
    return replace(
        base,
        vocab_size=vocab_size,
        embedding_size=embedding_size,
        hidden_size=hidden_size,
        num_hidden_layers=len(numbers),
        num_attention_heads=max(1, hidden_size // base.head_dim),
        intermediate_size=intermediate_size,
        max_position_embeddings=shape("embeddings.position_embeddings")[0],
        type_vocab_size=shape("embeddings.token_type_embeddings")[0],
    )


def _optimiser(moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """exp_avg.NAME and exp_avg_sq.NAME, as AdamW.state_dict of a Pretrainer; shared tables are the discriminator's."""
    found: dict[str, Tensor] = {}
    for which in ("discriminator", "generator"):
        for moment in _MOMENTS.values():
            prefix = f"{which}.{moment}."
            own = {key.removeprefix(prefix): t for key, t in moments.items() if key.startswith(prefix)}
            for name, tensor in from_huggingface(own).items():
                twin = found.get(f"{moment}.discriminator.{name}") if ".embeddings." in name else None
                if which == "generator" and twin is not None and torch.equal(twin, tensor):
                    continue
                found[f"{moment}.{which}.{name}"] = tensor
    return found
