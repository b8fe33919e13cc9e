"""The rule by which every op is judged, in one place; and the random numbers it may draw, stated once more in numpy.

Gold is the truth in float64, on the very numbers the op was given:

    max|ours - gold| <= k max|truth in ours' dtype - gold| + EPS max|gold|          k = 2 forward, 3 each gradient

`truth` is written in each test in a few lines of PyTorch, with the public op's arguments. What is compared is the
public op, so whatever backend the dispatcher picks: a new one is tested by every test here as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
EPS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
ROWS = [1, 5, 6, 7, 11, 12, 13, 95, 96, 97, 385]  # around what the core's products take at once, and its blocks of rows
LAYOUTS = ["contiguous", "transposed", "sliced", "unaligned"]
UPSTREAMS: dict[str, Callable[..., Tensor]] = {
    "contiguous": lambda shape, **kind: torch.randn(shape, **kind),
    "strided": lambda shape, **kind: _reversed(torch.randn(*shape[::-1], 2, **kind)[..., 0]),
    "zero-stride": lambda shape, **kind: torch.randn((), **kind).expand(shape),
}


def check(
    op: Callable, truth: Callable, arguments: dict[str, Any], dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> None:
    """Values and every gradient by the rule above, for every layout of the inputs and kind of upstream gradient; inputs
    stay as they were, and a second run, where fresh memory holds NaN, gives the same bits."""
    given = moved(arguments, dtype, device)
    plain, exact = moved(given, dtype, "cpu"), moved(given, torch.float64, "cpu")
    shapes = [output.shape for output in floats_of(truth(**exact))]
    for kind, upstream in UPSTREAMS.items():
        grads = [upstream(shape, dtype=dtype, device=device) for shape in shapes]
        gold = run(truth, exact, [g.cpu().double() for g in grads])
        rounded = run(truth, plain, [g.cpu() for g in grads])
        for layout in LAYOUTS if kind == "contiguous" else ["contiguous"]:
            inputs = {n: laid_out(v, layout) if isinstance(v, Tensor) else v for n, v in given.items()}
            ours = run(op, inputs, grads)
            for name in gold:
                judge(f"{name} ({layout} inputs, {kind} upstream)", ours[name], rounded[name], gold[name])
            for name, value in given.items():
                same = torch.equal(value, inputs[name]) if isinstance(value, Tensor) else True
                assert same, f"{name} was modified ({layout} inputs)"
        with poisoned_memory():
            again = run(op, inputs, grads)
        for name, value in ours.items():
            assert torch.equal(value, again[name]), f"{name} differs from run to run, or holds memory never written"


def run(op: Callable, arguments: dict[str, Any], upstream: list[Tensor]) -> dict[str, Tensor]:
    """Floating-point outputs by number, gradients by the argument's name."""
    floats = {n: v for n, v in arguments.items() if isinstance(v, Tensor) and v.is_floating_point()}
    leaves = {name: value.detach().requires_grad_() for name, value in floats.items()}
    outputs = floats_of(op(**{**arguments, **leaves}))
    grads = torch.autograd.grad(outputs, list(leaves.values()), upstream)
    named = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    return named | {f"gradient of {name}": grad for name, grad in zip(leaves, grads, strict=True)}


def check_threads(op: Callable, arguments: dict[str, Any], rows: str) -> None:
    """Outputs, and the gradient of the argument `rows`, have the same bits with any number of threads. What is summed
    over the rows has them with the same number, and otherwise differs by rounding."""
    upstream = [torch.randn_like(output) for output in floats_of(op(**arguments))]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(op, arguments, upstream))
            again = run(op, arguments, upstream)
            for name, value in found[-1].items():
                assert torch.equal(value, again[name]), f"{name} differs from run to run with {threads} threads"
                one = found[0][name]
                if name.startswith("output") or name == f"gradient of {rows}":
                    assert torch.equal(value, one), f"{name} differs between 1 and {threads} threads"
                torch.testing.assert_close(value, one, rtol=0, atol=1e-5 * one.abs().max().item())
    finally:
        torch.set_num_threads(before)


def judge(name: str, ours: Tensor, rounded: Tensor, gold: Tensor) -> None:
    assert ours.shape == gold.shape and ours.dtype == rounded.dtype, f"{name}: {ours.dtype} {tuple(ours.shape)}"
    if gold.numel() == 0:
        return
    error, allowed = ((x.double().cpu() - gold).abs().max().item() for x in (ours, rounded))
    k = 2 if name.startswith("output") else 3
    bound = k * allowed + EPS[ours.dtype] * gold.abs().max().item()
    assert error <= bound, f"{name}: error {error:.3g}, bound {bound:.3g}"


def floats_of(outputs: Any) -> list[Tensor]:
    return [o for o in (outputs if isinstance(outputs, tuple) else (outputs,)) if o.is_floating_point()]


def moved(arguments: dict[str, Any], dtype: torch.dtype, device: str) -> dict[str, Any]:
    def move(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, dtype if value.is_floating_point() else value.dtype)

    return {name: move(value) for name, value in arguments.items()}


def laid_out(t: Tensor, layout: str) -> Tensor:
    """The same numbers in other places, among NaN (or -7): transposed, a slice, or with no 16-byte aligned base."""

    if t.dim() == 0 or layout == "contiguous":
        return t.clone()
    if layout == "transposed":
        view = _reversed(surroundings(t, *t.shape[::-1], 2)[..., 0])
    elif layout == "sliced":
        view = surroundings(t, *t.shape[:-1], t.shape[-1] + 3)[..., 1:-2]
    else:
        view = surroundings(t, t.numel() + 1)[1:].view(t.shape)
    return view.copy_(t)


def surroundings(t: Tensor, *shape: int) -> Tensor:
    """Memory of t's dtype that holds NaN, or -7: whoever reads it shows."""
    return t.new_full(shape, torch.nan if t.is_floating_point() else 0 if t.dtype == torch.bool else -7)


def _reversed(t: Tensor) -> Tensor:
    return t.permute(*reversed(range(t.dim())))


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN, and the largest number where it holds integers."""
    mode, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warn)


def offsets(*lengths: int) -> Tensor:
    """cu_seqlens: (N + 1,) int32."""
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)


def philox(seed: int, row: Any, group: Any = 0, plane: Any = 0) -> np.ndarray:
    """The words of every counter broadcast from row, group and plane, (..., 4) uint64, where products do not wrap."""
    low, shift = np.uint64(2**32 - 1), np.uint64(32)
    k0, k1 = np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32 & 0xFFFFFFFF)
    row, group, plane = (np.asarray(part, dtype=np.int64).astype(np.uint64) for part in (row, group, plane))
    c0, c1, c2, c3 = np.broadcast_arrays(row & low, row >> shift, group, plane)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = p1 >> shift ^ c1 ^ k0, p1 & low, p0 >> shift ^ c3 ^ k1, p0 & low
        k0, k1 = k0 + np.uint64(0x9E3779B9) & low, k1 + np.uint64(0xBB67AE85) & low
    return np.stack([c0, c1, c2, c3], -1)


def dropout_factors(seed: int, row_ids: Tensor, columns: int, p: float, plane: int = 0) -> Tensor:
    """(T, columns) float64: 0 where an element is dropped, 256 / (256 - t) where it is kept."""
    t, groups = round(256 * p), (columns + 15) // 16
    words = philox(seed, row_ids.cpu().numpy()[:, None], np.arange(groups), plane)
    lanes = words.astype("<u4").view(np.uint8).reshape(len(row_ids), 16 * groups)[:, :columns]
    return torch.from_numpy(np.where(lanes >= t, 256 / max(256 - t, 1), 0.0))


def chi_squared(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """How many standard deviations the counts lie from the probabilities (Wilson and Hilferty); the cells that expect
    fewer than 5 count as one."""
    expected = counts.sum() * probabilities / probabilities.sum()
    few = expected < 5
    counts, expected = (np.append(x[~few], x[few].sum()) for x in (counts, expected))
    counts, expected = counts[expected > 0], expected[expected > 0]
    degrees = len(counts) - 1
    spread = 2 / (9 * degrees)
    return float((((counts - expected) ** 2 / expected).sum() / degrees) ** (1 / 3) - 1 + spread) / spread**0.5
