"""Our names of weights and Hugging Face's, and the translation in both directions.

One difference is more than a name: our query, key and value projections are one (3 D, D) matrix, as the kernels read
it, where Hugging Face has three (D, D) matrices. A decoder's cross-attention has its keys and values in one matrix.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

NAMES = {  # ours -> Hugging Face's; {} stands for the number of a layer
    "encoder.embeddings.word.weight": "electra.embeddings.word_embeddings.weight",
    "encoder.embeddings.position.weight": "electra.embeddings.position_embeddings.weight",
    "encoder.embeddings.token_type.weight": "electra.embeddings.token_type_embeddings.weight",
    "encoder.embeddings.norm": "electra.embeddings.LayerNorm",
    "encoder.embeddings_projection": "electra.embeddings_project",
    "encoder.layers.{}.out": "electra.encoder.layer.{}.attention.output.dense",
    "encoder.layers.{}.attention_norm": "electra.encoder.layer.{}.attention.output.LayerNorm",
    "encoder.layers.{}.cross_query": "electra.encoder.layer.{}.crossattention.self.query",
    "encoder.layers.{}.cross_out": "electra.encoder.layer.{}.crossattention.output.dense",
    "encoder.layers.{}.cross_norm": "electra.encoder.layer.{}.crossattention.output.LayerNorm",
    "encoder.layers.{}.up": "electra.encoder.layer.{}.intermediate.dense",
    "encoder.layers.{}.down": "electra.encoder.layer.{}.output.dense",
    "encoder.layers.{}.ffn_norm": "electra.encoder.layer.{}.output.LayerNorm",
    "dense": "discriminator_predictions.dense",
    "out": "discriminator_predictions.dense_prediction",
    "transform.dense": "generator_predictions.dense",
    "transform.norm": "generator_predictions.LayerNorm",
    "vocabulary_bias": "generator_lm_head.bias",
}
_FUSED = {  # our fused projections -> the module of Hugging Face that has their parts, and the parts
    "qkv": ("attention", ("query", "key", "value")),
    "cross_keys_values": ("crossattention", ("key", "value")),
}
_PART = re.compile(
    r"electra\.encoder\.layer\.(\d+)\.(attention|crossattention)\.self\.(query|key|value)\.(weight|bias)"
)
_SELF = "electra.encoder.layer.{}.{}.self.{}.{}"
_TIED = ("generator_lm_head.weight", "electra.embeddings.word_embeddings.weight")
_IGNORED = ("electra.embeddings.position_ids", _TIED[0])  # a constant, and a second copy of the word table


def to_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state dict of a network to transformers' keys.

    state: our names -> tensors. Names that are not ours stay as they are.

    Returns transformers' names -> the same tensors; query, key and value are views of the fused projection.
    """
    renamed = {}
    for name, tensor in state.items():
        if fused := re.fullmatch(rf"encoder\.layers\.(\d+)\.({'|'.join(_FUSED)})\.(weight|bias)", name):
            module, parts = _FUSED[fused[2]]
            for part, rows in zip(parts, tensor.chunk(len(parts)), strict=True):
                renamed[_SELF.format(fused[1], module, part, fused[3])] = rows
        else:
            renamed[_rename(name, NAMES)] = tensor
    return renamed


def from_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename transformers' tensors to our state dict's keys: the inverse of `to_huggingface`.

    state: transformers' names -> tensors. Names that are not known here stay as they are, so that the caller can report
    them together with other differences; so do a query, key and value that do not fit each other.

    Returns our names -> tensors; query, key and value are copied into one fused projection.

    Raises ValueError if a generator's output matrix is not equal to its word table: ELECTRA ties the two.
    """
    if all(name in state for name in _TIED) and not torch.equal(*(state[name] for name in _TIED)):
        raise ValueError(f"{_TIED[0]} differs from {_TIED[1]}; ELECTRA's generator ties them: this is another model")
    ours = {theirs: name for name, theirs in NAMES.items()}
    renamed: dict[str, Tensor] = {}
    fused: dict[tuple[str, str, str], dict[str, tuple[str, Tensor]]] = {}
    for name, tensor in state.items():
        part = _PART.fullmatch(name)
        if part and (part[2], part[3]) != ("crossattention", "query"):
            fused.setdefault((part[1], part[2], part[4]), {})[part[3]] = (name, tensor)
        elif name not in _IGNORED:
            renamed[_rename(name, ours)] = tensor
    for (layer, module, kind), parts in fused.items():
        projection, wanted = next((ours, names) for ours, (theirs, names) in _FUSED.items() if theirs == module)
        whole = [parts[part][1] for part in wanted if part in parts]
        if len(whole) == len(wanted) and len({t.shape for t in whole}) == 1:
            renamed[f"encoder.layers.{layer}.{projection}.{kind}"] = torch.cat(whole)
        else:
            renamed |= dict(parts.values())
    return renamed


def _rename(name: str, names: dict[str, str]) -> str:
    """Translate a whole name, or its part before .weight or .bias, by the table; the name itself if it is not there."""
    if name in names:
        return names[name]
    number = re.search(r"\.(\d+)\.", name)
    stem, _, kind = re.sub(r"\.\d+\.", ".{}.", name, count=1).rpartition(".")
    return f"{names[stem].format(number[1] if number else '')}.{kind}" if stem in names else name
