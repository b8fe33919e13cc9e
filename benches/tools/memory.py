"""python benches memory: count the bytes that a layer keeps for its backward on CUDA, ours and transformers'.

No GPU is needed: both encoders run on meta tensors, which have shapes and no memory, in training mode with dropout 0.1,
weights and activations in bfloat16. (Under autocast transformers would keep more: the LayerNorms' inputs in float32.)
Each storage that autograd saves is counted once, and parameters are not counted. A layer's bytes are those of an
encoder of three layers less those of one of two, so a tensor that one layer returns and the next saves is counted once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from racing.command import MODELS, plain_shape
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from electra_fast import ElectraConfig
from electra_fast.config import NetworkConfig
from electra_fast.model.encoder import Encoder
from tools.launches import Counting, meta_batch

CASES = [("small", 128, 128), ("base", 256, 512)]  # model, sequences, tokens of each


def kept(module: nn.Module, forward: Callable[[], object]) -> int:
    """The bytes that `forward` saves for the backward, without the module's parameters."""
    storages: dict[int, Any] = {}

    def keep(t: Tensor) -> Tensor:
        storages[t.untyped_storage()._cdata] = (
            t.untyped_storage()
        )  # referenced, so that no other storage gets its address
        return t

    with saved_tensors_hooks(keep, lambda t: t):
        out = forward()
    for p in module.parameters():
        storages.pop(p.untyped_storage()._cdata, None)
    del out
    return sum(storage.nbytes() for storage in storages.values())


def ours(config: NetworkConfig, rows: int, width: int) -> int:
    batch, scalar = meta_batch(rows, width), torch.empty(1, dtype=torch.int64, device="meta")
    with torch.device("meta"):
        encoder = Encoder(config).bfloat16().train()
    with Counting():
        return kept(encoder, lambda: encoder(batch, batch.input_ids, scalar, scalar, 0))


def transformers_eager(config: NetworkConfig, rows: int, width: int) -> int:
    from transformers import ElectraConfig as TheirConfig
    from transformers import ElectraModel

    settings = {f.name: getattr(config, f.name) for f in fields(config)}
    with torch.device("meta"), mock.patch.object(F, "dropout", dropout_of_cuda):
        model = ElectraModel(TheirConfig(**settings, attn_implementation="eager")).bfloat16().train()
        ids = torch.zeros(rows, width, dtype=torch.int64)
        return kept(model, lambda: model(input_ids=ids))


def dropout_of_cuda(x: Tensor, p: float, training: bool, inplace: bool = False) -> Tensor:
    """Dropout as CUDA tensors get it: it saves one byte per element. On meta tensors F.dropout saves x's type."""
    return torch.native_dropout(x, p, training)[0]


def layer_bytes(
    contestant: Callable[[NetworkConfig, int, int], int], config: NetworkConfig, rows: int, width: int
) -> int:
    two, three = (contestant(replace(config, num_hidden_layers=n), rows, width) for n in (2, 3))
    return three - two


def table(cases: list[tuple[str, int, int]]) -> Iterator[str]:
    yield "| network | sequences x columns | ours, MB a layer | bytes a token | transformers eager | ours of it |"
    yield "|---|---|---|---|---|---|"
    for model, rows, width in cases:
        config = getattr(ElectraConfig, model)()
        for part in ("discriminator", "generator"):
            case = (getattr(config, part), rows, width)
            mine, theirs = layer_bytes(ours, *case), layer_bytes(transformers_eager, *case)
            sizes = f"{mine / 1e6:,.1f} | {mine / rows / width:,.0f} | {theirs / 1e6:,.1f} | {mine / theirs:.1%}"
            yield f"| {model} {part} | {rows} x {width} | {sizes} |"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python benches memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=MODELS, help="size of the model (default: small and base)")
    parser.add_argument(
        "--shape",
        default="128x128",
        type=plain_shape,
        metavar="BxS",
        help="batch shape for --model, sequences x tokens (default: 128x128)",
    )
    options = parser.parse_args(arguments)
    rows, width = map(int, options.shape.split("x"))
    print("\n".join(table([(options.model, rows, width)] if options.model else CASES)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
