"""The ops, called by their public functions and directly, with arguments that no careful caller would give.

The core is built by gcc, which has no libFuzzer, so arguments are drawn from a number: those of the ops' own tests, and
then some of their numbers are changed, and for public functions shapes, strides and types. An op may compute or raise;
where its process dies, or AddressSanitizer ends it, the number is the finding. With --sanitized the core of that
package is called, which `make sanitized` builds under AddressSanitizer and UndefinedBehaviorSanitizer; `make fuzz` does
so. Memory is limited: the address space, or under AddressSanitizer, which reserves terabytes of that, what is resident.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fuzz.engine import COUNTS, ROOM, Report, Tally, limit

NUMBERS = [-(1 << 63), -(1 << 31), -1, 0, 1, 2, 3, 100, 255, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 40, (1 << 63) - 1]
FLOATS = [0.0, -1.0, 0.5, 1.0, 2.0, 1e-45, 1e-30, 1e30, 1e300, float("nan"), float("inf"), -float("inf")]
STATE = struct.Struct("<QQQ")  # the number under way, calls that computed, calls that raised
ASAN = f"detect_leaks=0:allocator_may_return_null=1:hard_rss_limit_mb={4 * ROOM >> 20}"
Call = tuple[Callable[..., Any], tuple[Any, ...], bool]


def overloads() -> list[Call]:
    """(function, its arguments, whether shapes may change too) of every op that runs on the CPU.

    A public function checks all that it is given. A registered op that is called directly checks the values of ids,
    labels and offsets; its shapes and dtypes are the caller's.
    """
    import test_adamw
    import test_direct_calls
    import test_library
    import torch

    from electra_fast import ops

    torch.manual_seed(0)
    calls = []
    for name in test_direct_calls.EXAMPLES:
        given = test_direct_calls.EXAMPLES[name]()
        if name in test_library.DIFFERENTIABLE:
            given = {n: t.requires_grad_() if _is_float(t) else t for n, t in given.items()}
        with test_library.Calls() as seen:
            function = test_direct_calls.public(name)
            out = function(**given)
            if name in test_library.DIFFERENTIABLE:
                (out if isinstance(out, torch.Tensor) else out[0]).sum().backward()
        calls += [(overload, values, False) for overload, values in seen.seen]
        calls.append((partial(by_name, function, tuple(given)), tuple(given.values()), True))
    with test_library.Calls() as seen:
        ops.adamw(**test_adamw.example())
    calls += [(overload, values, False) for overload, values in seen.seen]
    return [(function, tuple(_detached(values)), whole) for function, values, whole in calls]


def by_name(function: Callable[..., Any], names: tuple[str, ...], *values: Any) -> Any:
    """Call a function with these values by these names."""
    return function(**dict(zip(names, values, strict=True)))


def _is_float(value: Any) -> bool:
    return hasattr(value, "is_floating_point") and value.is_floating_point()


def _detached(values: Any) -> list[Any]:
    return [
        [t.detach() for t in v] if isinstance(v, list | tuple) and v and hasattr(v[0], "detach")
        else v.detach() if hasattr(v, "detach") else v
        for v in values
    ]  # fmt: skip


def changed(value: Any, chance: random.Random, whole: bool) -> Any:
    """An argument, changed; a tensor is copied, since some ops write into theirs.

    whole: whether shapes, strides and dtypes may change, and not values alone.
    """
    import torch

    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return chance.choice([*NUMBERS, value + 1, value - 1])
    if isinstance(value, float):
        return chance.choice(FLOATS)
    if isinstance(value, list | tuple) and value:
        at = chance.randrange(len(value))
        new = [*value[:at], changed(value[at], chance, whole), *value[at + 1 :]]
        return new if chance.random() < 0.9 or not whole else new[:-1]
    if not isinstance(value, torch.Tensor):
        return value
    way = chance.randrange(8 if whole else 3)
    if way < 3 and value.numel():
        new = value.clone().contiguous()
        for _ in range(chance.choice([1, 1, 3])):
            number = chance.choice(FLOATS if _is_float(value) else [*NUMBERS, value.numel()])
            bits = torch.iinfo(value.dtype).bits - 1 if value.dtype in (torch.int32, torch.int64) else 7
            place = chance.randrange(value.numel())
            if _is_float(value):
                new.view(-1)[place] = torch.tensor(number, dtype=torch.float64)  # 1e300 becomes infinity in float32
            else:
                new.view(-1)[place] = number % (1 << bits) - (number < 0) * (1 << bits)
        return new
    if not whole:
        return value
    if way == 3 and value.dim():
        axis = chance.randrange(value.dim())
        return value.narrow(axis, 0, chance.randrange(value.shape[axis] + 1))
    if way == 4 and value.dim() > 1:
        return value.transpose(chance.randrange(value.dim()), chance.randrange(value.dim()))
    if way == 5:
        dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.int32, torch.int64, torch.bool, torch.uint8]
        return value.to(chance.choice(dtypes))
    if way == 6:
        return value.unsqueeze(chance.randrange(value.dim() + 1)) if chance.random() < 0.5 else value.reshape(-1)
    shape = [chance.choice([0, 1, 2, size, size + 1]) for size in value.shape]
    return torch.zeros(shape, dtype=value.dtype) if chance.random() < 0.5 else value.new_zeros(1).expand(shape)


def call(number: int, calls: list[Call]) -> bool:
    """Call the op that a number stands for; whether it computed, where it may raise too."""
    import torch

    chance = random.Random(number)
    function, values, whole = chance.choice(calls)
    arguments = [v.clone() if isinstance(v, torch.Tensor) else v for v in values]
    for _ in range(chance.choice([1, 1, 2, 3])):
        at = chance.randrange(len(arguments))
        arguments[at] = changed(arguments[at], chance, whole)
    try:
        with torch.no_grad():
            function(*arguments)
    except (ValueError, IndexError, TypeError, RuntimeError, OverflowError, NotImplementedError, MemoryError):
        return False
    return True


def fuzz(seconds: float, out: Path, sanitized: Path | None, report: Report) -> Tally:
    """Call ops for some seconds in child processes; a child that dies leaves the number that it was at."""
    tally = Tally("core", out)
    state_file = out / "core.state"
    state_file.write_bytes(STATE.pack(random.SystemRandom().getrandbits(32), 0, 0))
    end = time.monotonic() + seconds
    before = accepted = refused = 0
    while time.monotonic() < end:
        left = end - time.monotonic()
        with (out / "core.log").open("wb") as log:
            child = subprocess.Popen(
                **command(["calls", str(state_file), str(left)], sanitized), stdout=log, stderr=log
            )
            last, since, hung = -1, time.monotonic(), False
            while child.poll() is None:
                time.sleep(0.2)
                number, accepted, refused = STATE.unpack(state_file.read_bytes())
                if number != last or accepted + refused == before:
                    last, since = number, time.monotonic()
                report(accepted + refused, len(tally.findings))
                if time.monotonic() - since > 60:
                    hung = True
                    child.kill()
        number, accepted, refused = STATE.unpack(state_file.read_bytes())
        if child.returncode != 0:
            text = (out / "core.log").read_text(errors="replace")[-6000:]
            if accepted + refused == before:
                raise RuntimeError(f"the ops cannot be called at all:\n{text}")
            why = "hang" if hung else f"status {child.returncode}"
            tally.find(struct.pack("<Q", number), f"{why} at number {number}", text)
            state_file.write_bytes(STATE.pack(number + 1, accepted, refused))
        before = accepted + refused
    tally.shared[:] = COUNTS.pack(accepted, refused)
    return tally


def command(arguments: list[str], sanitized: Path | None) -> dict[str, Any]:
    """How a child is started: with the sanitized package and its libraries, if one is named."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(sanitized)] * (sanitized is not None) + sys.path))
    if sanitized is not None:
        compiler = os.environ.get("CXX", "c++")
        libraries = [
            subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
            for name in ("libasan.so", "libstdc++.so")
        ]
        environment |= dict(LD_PRELOAD=" ".join(libraries), ASAN_OPTIONS=ASAN)
    return dict(args=[sys.executable, "-m", "fuzz.core", *arguments], env=environment)


def replay(path: Path, sanitized: Path | None) -> int:
    """Call the op of a finding again; returns the status of its process."""
    status = subprocess.run(**command(["call", str(path)], sanitized)).returncode
    print(f"the process of {path} ended with status {status}")
    return 1 if status else 0


def main(arguments: list[str]) -> None:
    """In the child: calls for some seconds, or one call."""
    import torch

    torch.set_num_threads(1)
    if arguments[0] == "call":
        print(call(struct.unpack("<Q", Path(arguments[1]).read_bytes())[0], overloads()))
        return
    with open(arguments[1], "r+b") as file, mmap.mmap(file.fileno(), STATE.size) as state:
        number, computed, raised = STATE.unpack(state[:])
        calls = overloads()
        if os.environ.get("ASAN_OPTIONS") != ASAN:
            limit()
        end = time.monotonic() + float(arguments[2])
        while time.monotonic() < end:
            state[:] = STATE.pack(number, computed, raised)
            if call(number, calls):
                computed += 1
            else:
                raised += 1
            number += 1
        state[:] = STATE.pack(number, computed, raised)


if __name__ == "__main__":
    main(sys.argv[1:])
