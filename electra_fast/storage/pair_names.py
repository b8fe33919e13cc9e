"""The names of an encoder-decoder's weights, ours and those of transformers' EncoderDecoderModel."""

from __future__ import annotations

from torch import Tensor

from electra_fast.storage.names import from_huggingface, to_huggingface

PROJECTION = {"projection": "enc_to_dec_proj"}  # our name of the layer between the two networks -> transformers'
OF_STACK = ("embeddings.", "embeddings_projection.", "layers.")  # parameters that a decoder has as an encoder has them


def pair_to_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename our state dict to the keys of transformers' EncoderDecoderModel."""
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
    renamed = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if part in PROJECTION:
            renamed[f"{PROJECTION[part]}.{rest}"] = tensor
        elif part in parts:
            parts[part][f"encoder.{rest}" if rest.startswith(OF_STACK) else rest] = tensor
        else:
            renamed[name] = tensor
    encoder, decoder = (to_huggingface(part) for part in parts.values())
    renamed |= {f"encoder.{name.removeprefix('electra.')}": t for name, t in encoder.items()}
    return renamed | {f"decoder.{name}": t for name, t in decoder.items()}


def pair_from_huggingface(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of transformers' EncoderDecoderModel to our keys; names that are not known stay."""
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
    renamed = {}
    projections = {theirs: ours for ours, theirs in PROJECTION.items()}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part in projections:
            renamed[f"{projections[part]}.{rest}"] = tensor
        elif part in parts:
            parts[part][f"electra.{rest}" if part == "encoder" else rest] = tensor
        else:
            renamed[name] = tensor
    for part, theirs in parts.items():
        renamed |= {f"{part}.{name.removeprefix('encoder.')}": t for name, t in from_huggingface(theirs).items()}
    return renamed
