"""Google's TensorFlow 1 checkpoints: their names, their shapes, Adam's moments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from electra_fast.config import NetworkConfig
from electra_fast.interop.tensorflow import Bundle
from electra_fast.model.networks import Discriminator, Generator, Network
from electra_fast.storage.names import from_huggingface
from electra_fast.storage.network import read_config

NETWORKS: dict[str, type[Network]] = {"generator": Generator, "discriminator": Discriminator}
HEADS = {"generator": "generator_predictions", "discriminator": "discriminator_predictions"}
_SLOT = re.compile(r"(.*)/(adam_[mv])")
_MOMENTS = {"adam_m": "exp_avg", "adam_v": "exp_avg_sq"}
_RENAMED = {
    "discriminator_predictions/dense_1": "discriminator_predictions/dense_prediction",
    "generator_predictions/output_bias": "generator_lm_head/bias",
}
_KINDS = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}
_KERAS = ".ATTRIBUTES/VARIABLE_VALUE"


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
    scopes = {name: head for name, head in HEADS.items() if any(key.startswith(f"{head}/") for key in names)}
    if not scopes:
        raise ValueError(
            f"{prefix}.index has neither {' nor '.join(HEADS.values())} among its {len(names)} variables "
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
