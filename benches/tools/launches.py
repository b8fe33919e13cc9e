"""python benches launches: what a step of pre-training launches on CUDA, counted without a GPU.

The step runs on meta tensors, which have shapes and no memory. Our ops are led to their CUDA implementations, whose
launchers are recorded, not run. What PyTorch does between them and inside of them is counted by operation, as one
launch each, though some (sort, index_put_) take several. Views and allocations launch nothing, nor do host tensors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from electra_fast import Batch, Electra, ElectraConfig, PretrainConfig, Pretrainer
from tools.compile import recording

ALLOCATIONS = "empty empty_like empty_strided new_empty new_empty_strided"
VIEWS = "_unsafe_view _reshape_alias broadcast_tensors detach lift_fresh"  # that do not say that they are one
NOTHING = {*ALLOCATIONS.split(), *VIEWS.split()}
ON_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
BETWEEN = "between the ops"


@dataclass
class Counts:
    """Launches of one of our ops, or of what is between them."""

    kernels: int = 0  # of Triton
    operations: int = 0  # of PyTorch
    calls: list[int] = field(default_factory=list)  # launches of each

    @property
    def launches(self) -> int:
        return self.kernels + self.operations


def on_device(*values: Any) -> bool:
    return any(isinstance(t, Tensor) and t.is_meta for t in tree_leaves(values))


class Counting(TorchDispatchMode):
    """While it holds, meta tensors stand for those of a GPU of that generation (see kernels/device.py)."""

    def __init__(self, generation: int = 90) -> None:
        super().__init__()
        self.generation = generation
        self.found = {BETWEEN: Counts()}
        self.waits = 0  # how often the host asked for a number that the device has yet to work out
        self.op = BETWEEN  # what is under way

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
            self.found[self.op].operations += 1
        return out

    def call(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """An op on its CUDA implementation; one that is part of another counts as that one's."""
        if self.op != BETWEEN:
            return func.redispatch(ON_CUDA, *args, **kwargs)
        kernels: list[Any] = []
        counts = self.found.setdefault(name, Counts())
        before, self.op = counts.launches, name
        with recording(kernels, self.generation), self:
            out = func.redispatch(ON_CUDA, *args, **kwargs)
        self.op = BETWEEN
        counts.kernels += len(kernels)
        counts.calls.append(counts.launches - before)
        return out


def pretrainer(config: ElectraConfig) -> Pretrainer:
    """On meta tensors, in bfloat16."""
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
    """Launches of one of the discriminator's, all alike: of the generator's last, only masked rows ask."""
    calls = {way: mode.found[f"encoder_{way}"].calls for way in ("fwd", "bwd")}
    return {"fwd": calls["fwd"][-1] // layers, "bwd": calls["bwd"][0] // layers}


def table(mode: Counting, layers: int) -> Iterator[str]:
    yield "| op | calls | launches of a call | of a step | Triton | PyTorch |"
    yield "|---|---|---|---|---|---|"
    for way, launches in of_a_layer(mode, layers).items():
        yield f"| a layer, {way} | {2 * layers} | {launches} | | | |"
    for name, counts in mode.found.items():
        calls = [str(n) for n in sorted({min(counts.calls), max(counts.calls)})] if counts.calls else []
        numbers = (len(counts.calls) or "", " to ".join(calls), counts.launches, counts.kernels, counts.operations)
        yield f"| {name} | {' | '.join(map(str, numbers))} |"
    total = [sum(getattr(c, kind) for c in mode.found.values()) for kind in ("launches", "kernels", "operations")]
    yield f"| a step | | | {' | '.join(map(str, total))} |"
    yield f"| waits of the host | | | {mode.waits} | | |"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python benches launches", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="small", help="tiny, small, small_plus, base or large (default: small)")
    parser.add_argument(
        "--shape", default="128x128", metavar="BxS", help="batch shape, sequences x tokens (default: 128x128)"
    )
    parser.add_argument("--generation", type=int, default=90, help="GPU generation: 80, 86, 90 or 100 (default: 90)")
    given = parser.parse_args(arguments)
    rows, width = (int(n) for n in given.shape.split("x"))
    config = getattr(ElectraConfig, given.model)()
    counted = count_step(config, rows, width, given.generation)
    print("\n".join(table(counted, config.discriminator.num_hidden_layers)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
