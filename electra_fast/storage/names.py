"""Our names of weights and Hugging Face's, each way.

Ours differ in one thing that is not a name: Q, K and V are one matrix, as the kernels read them.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

NAMES = {  # ours -> Hugging Face's; in a layer, {} is its number
    "encoder.embeddings.word.weight": "electra.embeddings.word_embeddings.weight",
    "encoder.embeddings.position.weight": "electra.embeddings.position_embeddings.weight",
    "encoder.embeddings.token_type.weight": "electra.embeddings.token_type_embeddings.weight",
    "encoder.embeddings.norm": "electra.embeddings.LayerNorm",
    "encoder.embeddings_projection": "electra.embeddings_project",
    "encoder.layers.{}.out": "electra.encoder.layer.{}.attention.output.dense",
    "encoder.layers.{}.attention_norm": "electra.encoder.layer.{}.attention.output.LayerNorm",
    "encoder.layers.{}.up": "electra.encoder.layer.{}.intermediate.dense",
    "encoder.layers.{}.down": "electra.encoder.layer.{}.output.dense",
    "encoder.layers.{}.ffn_norm": "electra.encoder.layer.{}.output.LayerNorm",
    "dense": "discriminator_predictions.dense",
    "out": "discriminator_predictions.dense_prediction",
    "transform.dense": "generator_predictions.dense",
    "transform.norm": "generator_predictions.LayerNorm",
    "vocabulary_bias": "generator_lm_head.bias",
}
_PART = re.compile(r"electra\.encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.(weight|bias)")
_QKV = "electra.encoder.layer.{}.attention.self.{}.{}"
_TIED = ("generator_lm_head.weight", "electra.embeddings.word_embeddings.weight")
_IGNORED = ("electra.embeddings.position_ids", _TIED[0])  # a constant, and the word table once more


def to_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a Generator or Discriminator under transformers' keys. Copies nothing but what it splits."""
    found = {}
    for name, tensor in state.items():
        if fused := re.fullmatch(r"encoder\.layers\.(\d+)\.qkv\.(weight|bias)", name):
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[_QKV.format(fused[1], part, fused[2])] = rows
        else:
            found[_rename(name, NAMES)] = tensor
    return found


def from_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reverse. A key that has no name here is kept as it is, for the caller to refuse with all the others.

    Raises ValueError where the generator's output matrix is not the word table: ELECTRA's is tied to it.
    """
    if all(name in state for name in _TIED) and not torch.equal(*(state[name] for name in _TIED)):
        raise ValueError(f"{_TIED[0]} differs from {_TIED[1]}; ELECTRA's generator ties them: this is another model")
    theirs = {value: key for key, value in NAMES.items()}
    found: dict[str, Tensor] = {}
    fused: dict[tuple[str, str], dict[str, tuple[str, Tensor]]] = {}
    for name, tensor in state.items():
        if part := re.fullmatch(
            r"electra\.encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.(weight|bias)", name
        ):
            fused.setdefault((part[1], part[3]), {})[part[2]] = (name, tensor)
        elif name not in _IGNORED:
            found[_rename(name, theirs)] = tensor
    for (layer, kind), parts in fused.items():
        whole = [parts[part][1] for part in ("query", "key", "value") if part in parts]
        if len(whole) == 3 and len({t.shape for t in whole}) == 1:
            found[f"encoder.layers.{layer}.qkv.{kind}"] = torch.cat(whole)
        else:
            found |= dict(parts.values())
    return found


def _rename(name: str, names: dict[str, str]) -> str:
    if name in names:
        return names[name]
    number = re.search(r"\.(\d+)\.", name)
    stem, _, kind = re.sub(r"\.\d+\.", ".{}.", name, count=1).rpartition(".")
    return f"{names[stem].format(number[1] if number else '')}.{kind}" if stem in names else name
