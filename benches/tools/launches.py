"""python benches launches: count the kernels that a pre-training step launches on CUDA, without a GPU.

The step runs on meta tensors, which have shapes and no memory. Each of our ops takes its CUDA implementation, whose
launches are recorded and not run. An operation of PyTorch counts as one launch, though some (sort, index_put_) take
several. Views, allocations and tensors on the host launch nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from racing.command import MODELS, plain_shape
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from electra_fast import Batch, Electra, ElectraConfig, PretrainConfig, Pretrainer
from tools.compile import recording

ALLOCATIONS = "empty empty_like empty_strided new_empty new_empty_strided"
VIEWS = "_unsafe_view _reshape_alias broadcast_tensors detach lift_fresh"  # views whose func.is_view is False
NOTHING = {*ALLOCATIONS.split(), *VIEWS.split()}
ON_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
BETWEEN = "between the ops"


@dataclass
class Counts:
    """The launches of one of our ops, or of PyTorch between our ops."""

    kernels: int = 0  # Triton kernels
    operations: int = 0  # operations of PyTorch
    calls: list[int] = field(default_factory=list)  # launches of each call

    @property
    def launches(self) -> int:
        return self.kernels + self.operations


def on_device(*values: Any) -> bool:
    return any(isinstance(t, Tensor) and t.is_meta for t in tree_leaves(values))


class Counting(TorchDispatchMode):
    """Inside this context, meta tensors stand for tensors of a GPU of that generation (kernels/parts/device.py)."""

    def __init__(self, generation: int = 90) -> None:
        super().__init__()
        self.generation = generation
        self.counts = {BETWEEN: Counts()}
        self.waits = 0  # how often the host had to wait for a number from the device
        self.op = BETWEEN  # the op that runs now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if func.namespace == "electra_fast":
            return self.call(name, func, args, kwargs)
        if on_device(args) and name in ("_local_scalar_dense", "equal"):
            self.waits += 1
            return True if name == "equal" else 1
        if on_device(args) and name == "_to_copy" and torch.device(kwargs.get("device") or "meta").type == "cpu":
            self.waits += 1
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        out = func(*args, **kwargs)
        if name not in NOTHING and not func.is_view and on_device(args, kwargs, out):
            self.counts[self.op].operations += 1
        return out

    def call(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Run one of our ops by its CUDA implementation. An op that another calls counts as part of the caller."""
        if self.op != BETWEEN:
            return func.redispatch(ON_CUDA, *args, **kwargs)
        kernels: list[Any] = []
        counts = self.counts.setdefault(name, Counts())
        before, self.op = counts.launches, name
        with recording(kernels, self.generation), self:
            out = func.redispatch(ON_CUDA, *args, **kwargs)
        self.op = BETWEEN
        counts.kernels += len(kernels)
        counts.calls.append(counts.launches - before)
        return out


def pretrainer(config: ElectraConfig) -> Pretrainer:
    """A trainer on meta tensors, in bfloat16."""
    with torch.device("meta"):
        return Pretrainer(Electra(config), PretrainConfig(precision="bfloat16"))


def meta_batch(rows: int, width: int) -> Batch:
    return Batch.from_padded(torch.full((rows, width), 1000)).to(torch.device("meta"))


def count_step(config: ElectraConfig, rows: int, width: int, generation: int = 90) -> Counting:
    trainer, batch = pretrainer(config), meta_batch(rows, width)
    with Counting(generation) as mode:
        trainer.step(batch)
    return mode


def of_a_layer(mode: Counting, layers: int) -> dict[str, int]:
    """Launches of one layer of the discriminator, whose layers are all alike, forward and backward.

    The generator's last layer differs: only masked rows are queries there.
    """
    calls = {way: mode.counts[f"encoder_{way}"].calls for way in ("fwd", "bwd")}
    return {"fwd": calls["fwd"][-1] // layers, "bwd": calls["bwd"][0] // layers}


def table(mode: Counting, layers: int) -> Iterator[str]:
    yield "| op | calls | launches of a call | of a step | Triton | PyTorch |"
    yield "|---|---|---|---|---|---|"
    for way, launches in of_a_layer(mode, layers).items():
        yield f"| a layer, {way} | {2 * layers} | {launches} | | | |"
    for name, counts in mode.counts.items():
        calls = [str(n) for n in sorted({min(counts.calls), max(counts.calls)})] if counts.calls else []
        numbers = (len(counts.calls) or "", " to ".join(calls), counts.launches, counts.kernels, counts.operations)
        yield f"| {name} | {' | '.join(map(str, numbers))} |"
    total = [sum(getattr(c, kind) for c in mode.counts.values()) for kind in ("launches", "kernels", "operations")]
    yield f"| a step | | | {' | '.join(map(str, total))} |"
    yield f"| waits of the host | | | {mode.waits} | | |"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python benches launches", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="small", choices=MODELS, help="size of the model (default: small)")
    parser.add_argument(
        "--shape",
        default="128x128",
        type=plain_shape,
        metavar="BxS",
        help="batch shape, sequences x tokens (default: 128x128)",
    )
    parser.add_argument(
        "--generation", type=int, default=90, choices=(80, 86, 90, 100), help="compute capability (default: 90)"
    )
    options = parser.parse_args(arguments)
    config = getattr(ElectraConfig, options.model)()
    rows, width = map(int, options.shape.split("x"))
    counted = count_step(config, rows, width, options.generation)
    print("\n".join(table(counted, config.discriminator.num_hidden_layers)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
