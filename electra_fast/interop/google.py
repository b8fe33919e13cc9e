"""Google's TensorFlow 1 checkpoints of ELECTRA: networks and Adam's moments, under the names of transformers and
ours."""

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
from electra_fast.report.terminal import bytes_bar
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
    """Read a pre-trained ELECTRA of Google's TensorFlow 1 code.

    Names and shapes are those of modeling.py and run_pretraining.py in github.com/google-research/electra. Dense
    kernels are (in, out) there and are transposed.

    prefix: the path of the checkpoint without .index.

    Returns the networks by name ("generator", "discriminator", as far as the checkpoint holds them), Adam's moments
    under the names of AdamW.state_dict, and lines that say which variables were left out and after which step it is.

    Raises ValueError if the checkpoint is damaged, is Keras's (TensorFlow 2), holds no pre-trained ELECTRA, or is
    another network than a config.json beside it describes.
    """
    bundle = Bundle(prefix)
    names = [name for name in bundle.entries if not _SLOT.fullmatch(name)]
    if any(_KERAS in name for name in names):
        raise ValueError(
            f"{prefix}.index is a checkpoint of Keras objects (TensorFlow 2, as NVIDIA's); only those of Google's "
            f"TensorFlow 1 code are read: export its networks to transformers with the code that trained it"
        )
    variables = _variables(names)
    if not variables:
        raise ValueError(
            f"{prefix}.index has neither {' nor '.join(HEADS.values())} among its {len(names)} variables "
            f"({', '.join(names[:3])}, ...); only a pre-trained ELECTRA is converted, no model fine-tuned for a task"
        )
    beside = read_config(prefix.parent) if (prefix.parent / "config.json").is_file() else None
    networks: dict[str, Network] = {}
    moments: dict[str, Tensor] = {}
    with bytes_bar(_bytes(bundle, variables), "reading") as bar:
        for network, theirs_of in variables.items():
            tensors = {}
            for name, theirs in theirs_of.items():
                tensors[theirs] = _tensor(bundle, name, name)
                bar.update(bundle.entries[name].size)
                for slot, moment in _MOMENTS.items():
                    if (moment_name := f"{name}/{slot}") in bundle.entries:
                        moments[f"{network}.{moment}.{theirs}"] = _tensor(bundle, moment_name, name)
                        bar.update(bundle.entries[moment_name].size)
            config = _config(tensors, beside, f"{prefix}.index")
            networks[network] = NETWORKS[network].from_tensors(config, tensors, f"{prefix}.index")
    if beside is not None and beside not in [network.config for network in networks.values()]:
        named, loaded = asdict(beside), asdict([*networks.values()][-1].config)
        unlike = [name for name in loaded if named[name] != loaded[name]]
        differ = ", ".join(f"{name} is {named[name]}, not {loaded[name]}" for name in unlike)
        raise ValueError(
            f"{prefix.parent / 'config.json'} describes another network than the checkpoint holds ({differ}); "
            f"correct it, or put another there"
        )
    rest = sorted(set(names) - {name for group in variables.values() for name in group} - {"global_step"})
    lines = [f"left out: {', '.join(rest[:5])}{', ...' if len(rest) > 5 else ''}"] if rest else []
    if "global_step" in names:
        lines.append(f"{prefix}: after step {int(bundle.tensor('global_step'))}")
    return networks, _optimiser(moments), lines


def _variables(names: list[str]) -> dict[str, dict[str, str]]:
    """The variables of each network: "generator" or "discriminator" -> Google's name -> transformers' name.

    The generator's variables have the scope "generator", or, if both networks are of one size, it shares the encoder
    "electra" with the discriminator. Its embedding tables are the discriminator's unless its own scope has some.
    """
    has_generator = any(name.startswith("generator/") for name in names)
    variables: dict[str, dict[str, str]] = {}
    for network, head in HEADS.items():
        if not any(name.startswith(f"{head}/") for name in names):
            continue
        scope = "generator" if network == "generator" and has_generator else "electra"
        tables = scope if f"{scope}/embeddings/word_embeddings" in names else "electra"
        variables[network] = {
            name: _name(name.replace(f"{scope}/", "electra/", 1) if name.startswith(f"{scope}/") else name)
            for name in names
            if name.startswith((f"{head}/", f"{tables}/embeddings/"))
            or (name.startswith(f"{scope}/") and not name.startswith(f"{scope}/embeddings/"))
        }
    return variables


def _bytes(bundle: Bundle, variables: Mapping[str, Mapping[str, str]]) -> int:
    """The bytes of these variables and of their moments."""
    suffixes = ("", *(f"/{slot}" for slot in _MOMENTS))
    read = [f"{name}{suffix}" for group in variables.values() for name in group for suffix in suffixes]
    return sum(bundle.entries[name].size for name in read if name in bundle.entries)


def _name(google: str) -> str:
    """The name that transformers gives to a variable of Google's."""
    for old, new in _RENAMED.items():
        google = google.replace(old, new)
    *scopes, kind = re.sub(r"/layer_(\d+)/", r"/layer/\1/", google).split("/")
    return ".".join([*scopes, _KINDS.get(kind, f"{kind}.weight")])


def _tensor(bundle: Bundle, name: str, variable: str) -> Tensor:
    """A variable or one of its moments in float32, transposed if `variable` is the kernel of a dense layer."""
    tensor = bundle.tensor(name).float()
    return tensor.t().contiguous() if variable.endswith("/kernel") and tensor.ndim == 2 else tensor


def _config(tensors: Mapping[str, Tensor], beside: NetworkConfig | None, source: str) -> NetworkConfig:
    """The config of a network: sizes from the shapes of its tensors, and all else from `beside`, or the defaults.

    tensors: the weights under transformers' names.
    beside: the config.json beside the checkpoint, if there is one.
    source: what an error calls the checkpoint.
    """
    base = beside or NetworkConfig()

    def shape(name: str) -> tuple[int, int]:
        name = f"electra.{name}.weight"
        if name not in tensors or tensors[name].ndim != 2:
            raise ValueError(f"{source} has no matrix for {name}; take a whole checkpoint of an ELECTRA")
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
    """Adam's moments under the names of AdamW.state_dict: exp_avg.NAME and exp_avg_sq.NAME.

    moments: "network.moment.NAME" -> tensor, with transformers' names. Tables that both networks share are listed once,
    as the discriminator's.
    """
    state: dict[str, Tensor] = {}
    for which in ("discriminator", "generator"):
        for moment in _MOMENTS.values():
            prefix = f"{which}.{moment}."
            own = {key.removeprefix(prefix): t for key, t in moments.items() if key.startswith(prefix)}
            for name, tensor in from_huggingface(own).items():
                twin = state.get(f"{moment}.discriminator.{name}") if ".embeddings." in name else None
                if which == "generator" and twin is not None and torch.equal(twin, tensor):
                    continue
                state[f"{moment}.{which}.{name}"] = tensor
    return state
