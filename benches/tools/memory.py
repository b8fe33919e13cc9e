"""python benches memory: bytes that a layer keeps for its backward on CUDA, ours and transformers', without a GPU.

Both run on meta tensors, in training, with dropout 0.1, weights and activations in bfloat16 (under autocast
transformers would keep more: the LayerNorms' inputs in float32). What autograd saves is told apart by its storage and
counted once, parameters not at all. A layer is what an encoder of three layers keeps beyond one of two, so what one
layer gives and the next takes is counted once.
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
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from electra_fast import ElectraConfig
from electra_fast.config import NetworkConfig
from electra_fast.model.encoder import Encoder
from tools.launches import Counting, meta_batch

CASES = [("small", 128, 128), ("base", 256, 512)]


def kept(module: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes that `forward` saves for the backward, the module's parameters left out."""
    storages: dict[int, Any] = {}

    def keep(t: Tensor) -> Tensor:
        storages[t.untyped_storage()._cdata] = t.untyped_storage()  # held, so that no other takes its place
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

    given = {f.name: getattr(config, f.name) for f in fields(config)}
    with torch.device("meta"), mock.patch.object(F, "dropout", dropout_of_cuda):
        model = ElectraModel(TheirConfig(**given, attn_implementation="eager")).bfloat16().train()
        ids = torch.zeros(rows, width, dtype=torch.int64)
        return kept(model, lambda: model(input_ids=ids))


def dropout_of_cuda(x: Tensor, p: float, training: bool, inplace: bool = False) -> Tensor:
    """Which keeps a byte an element; the one that meta tensors would take keeps a number of x's type."""
    return torch.native_dropout(x, p, training)[0]


def a_layer(contestant: Callable[[NetworkConfig, int, int], int], config: NetworkConfig, rows: int, width: int) -> int:
    two, three = (contestant(replace(config, num_hidden_layers=n), rows, width) for n in (2, 3))
    return three - two


def table(cases: list[tuple[str, int, int]]) -> Iterator[str]:
    yield "| network | sequences x columns | ours, MB a layer | bytes a token | transformers eager | ours of it |"
    yield "|---|---|---|---|---|---|"
    for model, rows, width in cases:
        config = getattr(ElectraConfig, model)()
        for part in ("discriminator", "generator"):
            given = (getattr(config, part), rows, width)
            found, theirs = a_layer(ours, *given), a_layer(transformers_eager, *given)
            sizes = f"{found / 1e6:,.1f} | {found / rows / width:,.0f} | {theirs / 1e6:,.1f} | {found / theirs:.1%}"
            yield f"| {model} {part} | {rows} x {width} | {sizes} |"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python benches memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="tiny, small, small_plus, base or large (default: small and base)")
    parser.add_argument(
        "--shape",
        default="128x128",
        metavar="BxS",
        help="batch shape for --model, sequences x tokens (default: 128x128)",
    )
    given = parser.parse_args(arguments)
    rows, width = (int(n) for n in given.shape.split("x"))
    print("\n".join(table([(given.model, rows, width)] if given.model else CASES)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
