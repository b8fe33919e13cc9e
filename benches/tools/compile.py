"""python benches compile: compile every Triton kernel in every tile of the run-time tables; no GPU is needed.

The launchers run on meta tensors, at shapes that reach each entry of the tables, and a recorder takes the place of the
launch, so exactly what they would launch is compiled. cuobjdump reads registers, the stack (bytes spilled), shared
memory and tensor-core instructions from the machine code; how many programs a multiprocessor holds at once follows from
them (`programs_per_sm`).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from electra_fast.kernels import (
    adamw,
    attention,
    attention_block,
    attention_block_bwd,
    decode_attention,
    discriminator_head,
    dropout_add_layer_norm,
    embedding,
    ffn_block,
    generator_head,
    linear,
    linear_weight,
    mask_units,
    masking,
    seeds,
    top_k_words,
)
from electra_fast.kernels.parts import device, groups, layer_norm
from electra_fast.ops._philox import DeriveSeedsArguments
from electra_fast.ops.adamw import AdamWArguments
from electra_fast.ops.attention import AttentionArguments
from electra_fast.ops.attention_block import AttentionBlockArguments
from electra_fast.ops.corrupt import CorruptArguments
from electra_fast.ops.decode_attention import DecodeAttentionArguments
from electra_fast.ops.discriminator_head import DiscriminatorHeadArguments
from electra_fast.ops.dropout_add_layer_norm import DropoutAddLayerNormArguments
from electra_fast.ops.embedding import EmbeddingArguments
from electra_fast.ops.ffn_block import FfnBlockArguments
from electra_fast.ops.generator_head import GeneratorHeadArguments
from electra_fast.ops.linear import LinearArguments
from electra_fast.ops.mask_units import MaskUnitsArguments
from electra_fast.ops.masking import MaskingArguments
from electra_fast.ops.top_k_words import TopKWordsArguments

I32, I64 = torch.int32, torch.int64
TARGETS = [80, 90, 100]
TENSOR_CORE = {"HGMMA": "wgmma", "UTCHMMA": "tcgen05", "UTCQMMA": "tcgen05", "HMMA": "mma"}  # by SASS opcode
REGISTERS, TENSOR_MEMORY = 65536, 512  # of a multiprocessor: registers, columns of tensor memory
SHARED = {
    80: 167936,
    86: 102400,
    90: 233472,
    100: 233472,
}  # bytes of shared memory by compute capability; each program takes 1,024 beyond its own
MOST = {
    80: (64, 32),
    86: (48, 16),
    90: (64, 32),
    100: (64, 32),
}  # warps and programs that a multiprocessor holds at most
TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bool: "i1",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def masking_calls() -> Iterator[tuple[str, Callable]]:
    ids, slots, cu, seed = meta(1024, dtype=I64), meta(160, dtype=I64), meta(9, dtype=I32), meta(1, dtype=I64)
    for faithful in (False, True):
        special = [0, 101, 102, 103]
        args = MaskingArguments(ids, cu, cu, 160, ids, special, 103, 3650722202, faithful, seed)
        yield f"faithful={faithful}", partial(masking.masking_fwd, args)
        units = MaskUnitsArguments(ids, cu, ids, meta(1024, dtype=torch.bool), special, faithful, seed)
        yield f"spans={faithful}", partial(mask_units.mask_units_fwd, units)
        sampled = CorruptArguments(ids, slots, slots, slots, faithful)
        yield f"faithful={faithful}", partial(masking.corrupt_fwd, sampled)


def attention_calls() -> Iterator[tuple[str, Callable]]:
    lengths = {"64": (64, 64), "few": (64, 128), "128": (128, 128), "512": (512, 512), "long": (1024, 1024)}
    types = {2: torch.bfloat16, 4: torch.float32}
    keys_of = dict.fromkeys(key[:3] for key in attention.FWD)
    kinds = [(key, p, False) for key, p in [(key, 0.1) for key in keys_of] + [((2, 64, k), 0.0) for k in lengths]]
    kinds += [(key, 0.1, True) for key in keys_of if key[2] != "512"]
    for (size, width, kind), p, causal in kinds:
        queries, keys = lengths[kind]
        q, k, v = meta(8 * 512, 3, 4, width, dtype=types[size]).unbind(1)
        cu, seed, rows = meta(9, dtype=I32), meta(1, dtype=I64), meta(8 * 512, dtype=I64)
        args = AttentionArguments(q, k, v, cu, queries, cu, keys, rows, seed, width**-0.5, p, causal)

        def call(args: AttentionArguments = args) -> None:
            out, saved = attention.attention_fwd(args)
            attention.attention_bwd([torch.empty_like(out)], args, [out, *saved])
            if not args.causal and attention.reads_again(out, args.max_seqlen_k):
                qkv, mask = (args.q, args.k, args.v), groups.dropout(args.row_ids, args.seed, args.dropout_p)
                gradients, scale = [torch.empty_like(t) for t in qkv], args.softmax_scale
                packing = attention.packing_of(args)
                attention.put_gradients(gradients, out, qkv, [out, *saved], packing, mask, scale, again=True)

        yield f"{'causal ' * causal}{kind} {TYPES[types[size]]} width={width} dropout={p}", call


def generator_head_calls() -> Iterator[tuple[str, Callable]]:
    rows, words = 2432, 30522
    labels, seed = meta(rows, dtype=I64), meta(1, dtype=I64)
    types = {2: torch.bfloat16, 4: torch.float32}
    kinds = [(key, 1.0, False) for key in [*dict.fromkeys(key[:2] for key in generator_head.FWD), (2, 768)]]
    for (size, width), temperature, disallow in [*kinds, ((2, 128), 0.5, False), ((2, 128), 0.0, True)]:
        floats = (meta(*shape, dtype=types[size]) for shape in ((rows, width), (words, width), (words,)))
        args = GeneratorHeadArguments(*floats, labels, labels, seed, temperature, disallow, 0.0)

        def call(args: GeneratorHeadArguments = args) -> None:
            loss, sampled, saved = generator_head.generator_head_fwd(args)
            generator_head.generator_head_bwd([loss], args, [loss, sampled, *saved])

        yield f"{TYPES[types[size]]} width={width} temperature={temperature} disallow={disallow}", call


def decode_attention_calls() -> Iterator[tuple[str, Callable]]:
    for width, dtype in ((32, torch.bfloat16), (64, torch.bfloat16), (128, torch.bfloat16), (64, torch.float32)):
        q, pages = meta(64, 4, width, dtype=dtype), meta(512, 16, 4, width, dtype=dtype)
        args = DecodeAttentionArguments(q, pages, pages, meta(64, 8, dtype=I32), meta(64, dtype=I32), width**-0.5)
        yield f"{TYPES[dtype]} width={width}", partial(decode_attention.decode_attention, args)


def top_k_words_calls() -> Iterator[tuple[str, Callable]]:
    for width, k, dtype in (
        (128, 1, torch.bfloat16),
        (128, 8, torch.bfloat16),
        (128, 128, torch.bfloat16),
        (768, 8, torch.bfloat16),
        (128, 8, torch.float32),
    ):
        floats = (meta(*shape, dtype=dtype) for shape in ((64, width), (30522, width), (30522,)))
        args = TopKWordsArguments(*floats, k)
        yield f"{TYPES[dtype]} width={width} k={k}", partial(top_k_words.top_k_words, args)


def dropout_add_layer_norm_calls() -> Iterator[tuple[str, Callable]]:
    seed = meta(1, dtype=I64)
    kinds = [(size, width, 0.1) for width in dropout_add_layer_norm.TILES for size in (torch.bfloat16, torch.float32)]
    for dtype, width, p in [*kinds, (torch.bfloat16, 256, 0.0)]:
        x, weight, rows = meta(16384, width, dtype=dtype), meta(width, dtype=dtype), meta(16384, dtype=I64)
        args = DropoutAddLayerNormArguments(x, x, weight, weight, rows, seed, 1e-12, p)

        def call(args: DropoutAddLayerNormArguments = args) -> None:
            mask, norm = groups.dropout(args.row_ids, args.seed, args.dropout_p), (args.weight, args.bias)
            out, saved = dropout_add_layer_norm.dropout_add_layer_norm_fwd(args)
            dropout_add_layer_norm.dropout_add_layer_norm_bwd([out], args, [out, *saved])
            dropout_add_layer_norm.normalised_sum(args.x, args.residual, norm, mask, args.eps, into_x=True)
            normed = layer_norm.Normed(out, *saved, *norm)
            for rows in (out, normed):  # an encoder computes the rows again
                dropout_add_layer_norm.row_gradients(out, normed, rows, mask)

        yield f"{TYPES[dtype]} width={width} dropout={p}", call


def adamw_calls() -> Iterator[tuple[str, Callable]]:
    for dtype, rounded in ((torch.float32, None), (torch.bfloat16, None), (torch.float32, torch.bfloat16)):
        params, moments, squares = ([meta(512, 512, dtype=dtype) for _ in range(400)] for _ in range(3))
        copies = [meta(512, 512, dtype=rounded) for _ in range(400)] if rounded else []
        numbers, one = [1.0] * 400, meta(1, dtype=torch.float32)
        lists = (params, copies or params, moments, squares)
        args = AdamWArguments(*lists, one, numbers, numbers, 0.9, 0.999, 1e-6, 1.0, one, copies)
        yield f"{TYPES[dtype]} tensors=400 copies={rounded is not None}", partial(adamw.adamw_fwd, args)


def embedding_calls() -> Iterator[tuple[str, Callable]]:
    ids, seed = meta(16384, dtype=I64), meta(1, dtype=I64)
    kinds = [(size, width, 0.1) for width in dropout_add_layer_norm.TILES for size in (torch.bfloat16, torch.float32)]
    for dtype, width, p in [*kinds, (torch.bfloat16, 128, 0.0)]:
        word, position, token_type, norm = (
            meta(*shape, dtype=dtype) for shape in ((30522, width), (512, width), (2, width), (width,))
        )
        tables = (word, position, token_type)
        args = EmbeddingArguments(ids, ids, ids, *tables, norm, norm, None, None, ids, seed, 1e-12, p)

        def call(args: EmbeddingArguments = args) -> None:
            out, saved = embedding.embedding_fwd(args)
            embedding.embedding_bwd([out], args, [out, *saved])

        yield f"{TYPES[dtype]} width={width} dropout={p}", call


def discriminator_head_calls() -> Iterator[tuple[str, Callable]]:
    kinds = [(dtype, width) for width in (64, 128, 256, 768, 300) for dtype in (torch.bfloat16, torch.float32)]
    for dtype, width in kinds:
        shapes = (16384, width), (width, width), (width,), (1, width), (1,)
        floats = (meta(*shape, dtype=dtype) for shape in shapes)
        args = DiscriminatorHeadArguments(*floats, meta(16384, dtype=torch.bool))

        def call(args: DiscriminatorHeadArguments = args) -> None:
            loss, logits, saved = discriminator_head.discriminator_head_fwd(args)
            discriminator_head.discriminator_head_bwd([loss, logits], args, [loss, logits, *saved])

        yield f"{TYPES[dtype]} width={width}", call


def linear_calls() -> Iterator[tuple[str, Callable]]:
    widths = [(256, 768), (256, 1024), (1024, 256), (256, 128), (128, 256), (64, 192), (64, 64), (100, 300)]
    kinds = [(inner, outer, torch.bfloat16, gelu) for inner, outer in widths for gelu in (False, True)]
    for inner, outer, dtype, gelu in [*kinds, (256, 1024, torch.float32, True), (100, 300, torch.float32, False)]:
        floats = (meta(*shape, dtype=dtype) for shape in ((16384, inner), (outer, inner), (outer,)))
        args = LinearArguments(*floats, gelu)

        def call(args: LinearArguments = args) -> None:
            out, saved = linear.linear_fwd(args)
            linear_weight.linear_bwd([torch.empty_like(out)], args, [out, *saved])
            linear.input_gradient(out, args.weight, add=args.x)
            linear.input_gradient(out, args.weight, times=args.x)

        yield f"{TYPES[dtype]} {inner}->{outer} gelu={gelu}", call


def ffn_block_calls() -> Iterator[tuple[str, Callable]]:
    """The kernels of the block itself; linear_calls and dropout_add_layer_norm_calls have those of its pieces."""
    seed, ids = meta(1, dtype=I64), meta(16384, dtype=I64)
    kinds = [(width, 0.1) for width in dict.fromkeys(key[1] for key in ffn_block.FWD)] + [(256, 0.0)]
    for width, p in kinds:
        inner, dtype = 4 * width, torch.bfloat16
        shapes = (16384, width), (inner, width), (inner,), (width, inner), (width,), (width,), (width,)
        args = FfnBlockArguments(*(meta(*shape, dtype=dtype) for shape in shapes), ids, seed, 1e-12, p)

        def call(args: FfnBlockArguments = args) -> None:
            out, saved = ffn_block.ffn_block_fwd(args)
            normed: Any = layer_norm.Normed(*saved[:3], args.norm_weight, args.norm_bias)
            for rows in (out, normed):  # an encoder computes the rows again
                ffn_block.ffn_block_bwd([out], args._replace(x=rows), [out, *saved])

        yield f"{TYPES[dtype]} {width}->{inner}->{width} dropout={p}", call


def attention_block_calls() -> Iterator[tuple[str, Callable]]:
    """The kernels of the block itself; the functions of linear, attention and the norm have those of its pieces."""
    cu, seed, ids = meta(129, dtype=I32), meta(1, dtype=I64), meta(16384, dtype=I64)
    for width, p in [(width, 0.1) for width in dict.fromkeys(key[1] for key in attention_block.FWD)] + [(256, 0.0)]:
        shapes = (16384, width), (3 * width, width), (3 * width,), (width, width), (width,), (width,), (width,)
        floats = (meta(*shape) for shape in shapes)
        sequences, numbers = (cu, 128, ids, width // 64, None, None, 0), (seed, 1e-12, p, p)
        args = AttentionBlockArguments(*floats, *sequences, *numbers)

        def call(args: AttentionBlockArguments = args) -> None:
            out, saved = attention_block.attention_block_fwd(args)
            normed: Any = layer_norm.Normed(*saved[:3], args.norm_weight, args.norm_bias)
            for rows in (out, normed):  # an encoder computes the rows again
                attention_block_bwd.attention_block_bwd([out], args._replace(x=rows), [out, *saved])

        yield f"bf16 {width} dropout={p}", call


def seeds_calls() -> Iterator[tuple[str, Callable]]:
    for n in (1, 25):
        args = DeriveSeedsArguments(meta(1, dtype=I64), meta(1, dtype=I64), 0, n)
        yield f"{n} seeds", partial(seeds.derive_seeds_fwd, args)


CALLS = [
    masking_calls,
    attention_calls,
    generator_head_calls,
    decode_attention_calls,
    top_k_words_calls,
    dropout_add_layer_norm_calls,
    adamw_calls,
    embedding_calls,
    discriminator_head_calls,
    linear_calls,
    ffn_block_calls,
    attention_block_calls,
    seeds_calls,
]


@contextmanager
def recording(launches: list[tuple[JITFunction, tuple, dict]], target: int) -> Iterator[None]:
    """Inside this context, kernels do not run: (kernel, arguments, options) of each launch is appended to `launches`.

    target: compute capability of the device that the launchers believe to be on.
    """

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launches.append((self, args, kwargs))

    with ExitStack() as patches:
        for kind in (JITFunction, InterpretedFunction):
            patches.enter_context(mock.patch.object(kind, "run", record))
        patches.enter_context(mock.patch.object(device, "generation", lambda _: target))
        yield


def source(kernel: JITFunction, args: tuple, kwargs: dict) -> tuple[ASTSource, dict[str, Any]]:
    """The source and options that triton's launcher would compile: types, ones and multiples of 16 are specialised."""
    options = {name: value for name, value in kwargs.items() if name not in kernel.arg_names}
    values = dict(zip(kernel.arg_names, args, strict=False)) | {n: v for n, v in kwargs.items() if n not in options}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list] = {}

    def kind(value: Any, path: tuple[int, ...], constexpr: bool = False) -> Any:
        """The type of an argument or of a group's fields; notes constants and alignments under the argument's path."""
        if constexpr or value is None or (type(value) is int and value == 1):
            constants[path] = value
            return "constexpr"
        if isinstance(value, tuple):
            return tuple(kind(field, (*path, i)) for i, field in enumerate(value))
        if isinstance(value, float):
            return "fp32"
        if isinstance(value, Tensor):
            aligned, name = value.storage_offset() % 16 == 0, "*" + TYPES[value.dtype]
        else:
            aligned, name = value % 16 == 0, "i32" if -(2**31) <= value < 2**31 else "i64"
        if aligned:
            attributes[path] = [["tt.divisibility", 16]]
        return name

    signature = {p.name: kind(values[p.name], (i,), p.is_constexpr) for i, p in enumerate(kernel.params)}
    return ASTSource(kernel, signature, constants, attributes), options


def cuobjdump(flag: str, cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=True).stdout


def programs_per_sm(capability: int, warps: int, registers: int, shared: int, tensor_memory: int) -> int:
    """How many programs a multiprocessor holds; a warp takes registers in units of 256 from one of four equal files."""
    a_file = REGISTERS // 4 // (-(-registers * 32 // 256) * 256)
    most, programs = MOST[capability]
    limits = [programs, most // warps, 4 * a_file // warps, SHARED[capability] // (shared + 1024)]
    return min([*limits, TENSOR_MEMORY // tensor_memory] if tensor_memory else limits)


def compiled(kernel: JITFunction, args: tuple, kwargs: dict, config: str, capability: int) -> dict[str, Any]:
    ast, options = source(kernel, args, kwargs)
    result = triton.compile(ast, target=GPUTarget("cuda", capability, 32), options=options)
    cubin = result.asm["cubin"]
    usage = {n: int(v) for n, v in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", cuobjdump("-res-usage", cubin))}
    opcodes = set(re.findall(r"\b[A-Z][A-Z0-9]+", cuobjdump("-sass", cubin)))
    tiles = {n: v for n, v in kwargs.items() if n.startswith("BLOCK") or n in ("num_warps", "num_stages")}
    warps, shared = result.metadata.num_warps, result.metadata.shared
    tensor_memory = getattr(result.metadata, "tmem_size", None) or 0
    return dict(
        kernel=kernel.__name__,
        config=f"{config} " + " ".join(f"{n}={v}" for n, v in tiles.items()),
        target=f"sm_{capability}",
        triton=triton.__version__,
        registers=usage["REG"],
        spill_bytes=usage["STACK"] + usage["LOCAL"],
        shared_bytes=shared,
        programs_per_sm=programs_per_sm(capability, warps, usage["REG"], shared, tensor_memory),
        tensor_core=next((name for opcode, name in TENSOR_CORE.items() if opcode in opcodes), None),
    )


def rows(targets: list[int], wanted: str = "") -> Iterator[dict[str, Any]]:
    """One row for each kernel, configuration and target.

    A kernel that a generation's tables do not launch comes last, in its first tile of sm_90, since it must compile
    there too. wanted: a regular expression for "kernel config".
    """
    seen: set[tuple[int, str]] = set()  # ops share pieces
    taken: dict[int, set[str]] = {target: set() for target in targets}
    any_tile: dict[str, tuple[JITFunction, tuple, dict, str]] = {}
    for calls in CALLS:
        for config, call in calls():
            for target in dict.fromkeys((*targets, 90)):
                launches: list[tuple[JITFunction, tuple, dict]] = []
                with recording(launches, target):
                    call()
                for kernel, args, kwargs in launches:
                    if target == 90:
                        any_tile.setdefault(kernel.__name__, (kernel, args, kwargs, config))
                    if target not in targets:
                        continue
                    taken[target].add(kernel.__name__)
                    ast, options = source(kernel, args, kwargs)
                    key = (target, ast.hash() + str(options))
                    if key not in seen and re.search(wanted, f"{kernel.__name__} {config}"):
                        seen.add(key)
                        yield compiled(kernel, args, kwargs, config, target)
    for target in targets:
        for name in sorted(any_tile.keys() - taken[target]):
            kernel, args, kwargs, config = any_tile[name]
            if re.search(wanted, f"{name} {config}"):
                yield compiled(kernel, args, kwargs, f"not launched there: {config}", target)


def kernels() -> set[str]:
    """The names of all kernels in kernels/, whether a launcher reaches them or not."""
    folder = Path(masking.__file__).parent
    return {
        name for path in folder.rglob("*.py") for name in re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.M)
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python benches compile", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one JSON line per compiled kernel")
    parser.add_argument(
        "--targets",
        nargs="+",
        type=int,
        default=TARGETS,
        metavar="CC",
        help="compute capabilities to compile for, such as 90",
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="PATTERN",
        help="regular expression: compile only what it matches in 'kernel config'",
    )
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is set, and the interpreter compiles nothing; unset it")
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("TRITON_CACHE_DIR", cache)  # an empty cache, so that every kernel is compiled
        count = spilled = 0
        for row in rows(options.targets, options.only):
            print(
                "{kernel:34} {target:6} {registers:3} registers {spill_bytes:5} spilled {shared_bytes:6} shared  "
                "{programs_per_sm:2} a multiprocessor  {tensor_core!s:7} {config}".format(**row),
                flush=True,
            )
            if options.json is not None:
                options.json.parent.mkdir(parents=True, exist_ok=True)
                with options.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            count += 1
            spilled += row["target"] == "sm_90" and row["spill_bytes"] > 0
    if not count:
        parser.error(f"no kernel matches --only {options.only}")
    if spilled:
        print(f"{spilled} rows spill on sm_90, where none may")
    return min(spilled, 1)


if __name__ == "__main__":
    sys.exit(main())
