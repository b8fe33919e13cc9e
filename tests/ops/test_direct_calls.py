"""What reaches an op unchecked, from a compiled graph or a direct call of the dispatcher op, is checked on the CPU; and
sizes of 0 give empty results."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import test_attention
import test_attention_block
import test_discriminator_head
import test_dropout_add_layer_norm
import test_embedding
import test_encoder
import test_ffn_block
import test_generator_head
import test_library
import test_linear
import test_masking
import torch
from numerics import check
from torch import Tensor

from electra_fast import ops
from electra_fast.ops._core import core

FALLING = torch.tensor([0, 9, 4, 15], dtype=torch.int32)
BEYOND = torch.tensor([0, 5, 6, 2**30], dtype=torch.int32)
IDS = [500, -1, 2**40]
QUERIES = dict(asking=(2, 1, 3))


EXAMPLES = {
    **test_library.EXAMPLES,
    "attention": lambda: test_attention.example(lengths_k=(5, 1, 9)),
    "attention_block": lambda: test_attention_block.example(**QUERIES),
    "encoder": lambda: test_encoder.example(**QUERIES, depth=2),
    "masking": lambda: test_masking.example((5, 1, 9)),
}


def put(op: str, name: str, at: int, wrong: int) -> dict[str, Tensor]:
    """The argument of the op's example, with one number of it changed."""
    torch.manual_seed(0)
    tensor = EXAMPLES[op]()[name].clone()
    tensor[at] = wrong
    return {name: tensor}


# op, what is wrong with its example, the error and what it says
WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    *(
        ("embedding", put("embedding", name, 2, wrong), IndexError, rf"{name}\[2\] is {wrong}, outside the table of ")
        for name in ("input_ids", "token_type_ids", "position_ids")
        for wrong in IDS
    ),
    *(
        (op, {name: offsets}, ValueError, f"{name} begins with .* it must start at 0, never fall, and end at ")
        for op, name in (
            ("attention", "cu_seqlens"),
            ("attention", "cu_seqlens_k"),
            ("attention_block", "cu_seqlens"),
            ("attention_block", "cu_rows"),
            ("encoder", "cu_seqlens"),
            ("encoder", "cu_rows"),
            ("masking", "cu_seqlens"),
            ("masking", "slots"),
        )
        for offsets in (FALLING, BEYOND)
    ),
    ("attention", dict(max_seqlen=3), ValueError, "cu_seqlens holds a sequence of 9 rows, max_seqlen is 3"),
    ("encoder", dict(max_rows=2), ValueError, "cu_rows holds a sequence of 3 rows, max_seqlen is 2"),
    *(
        (op, put(op, "rows", 2, wrong), IndexError, rf"rows\[2\] is {wrong}, outside the batch of 15")
        for op in ("attention_block", "encoder")
        for wrong in IDS
    ),
    *(
        ("corrupt", put("corrupt", "positions", 1, wrong), IndexError, rf"positions\[1\] is {wrong}, outside the batch")
        for wrong in IDS
    ),
]
NAMES = [f"{op} {name} {i}" for i, (op, bad, _, _) in enumerate(WRONG) for name in bad]


def public(op: str) -> Callable[..., Any]:
    return test_encoder.named if op == "encoder" else getattr(ops, op)


@pytest.mark.parametrize("op, bad, error, message", WRONG, ids=NAMES)
def test_bad_values_are_refused_called_and_compiled(op: str, bad: dict, error: type[Exception], message: str) -> None:
    torch.manual_seed(0)
    given = EXAMPLES[op]() | bad
    with pytest.raises(error, match=f"{op}: {message}"):
        public(op)(**given)
    torch._dynamo.reset()
    compiled = torch.compile(public(op), fullgraph=True, backend="aot_eager")
    with pytest.raises(error, match=f"{op}: {message}"):
        compiled(**given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("op, bad, error, message", WRONG, ids=NAMES)
def test_bad_values_are_refused_by_the_dispatcher_ops(
    op: str, bad: dict, error: type[Exception], message: str, dtype: torch.dtype
) -> None:
    """Forward and backward, in C++ and in the reference, which float64 takes."""
    torch.manual_seed(0)
    given = EXAMPLES[op]()
    for name, value in given.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            given[name] = value.to(dtype).requires_grad_()
    with test_library.Calls() as calls:
        out = public(op)(**given)
        if op in test_library.DIFFERENTIABLE:
            out.sum().backward()
    seen = [(overload, values) for overload, values in calls.seen if overload.name().split("::")[1] != "encoder"]
    assert len(seen) == 1 + (op in test_library.DIFFERENTIABLE)
    for overload, values in seen:
        fields = [argument.name for argument in overload._schema.arguments]
        assert bad.keys() <= set(fields)
        wrong = [bad.get(field, value) for field, value in zip(fields, values, strict=False)]
        with torch.no_grad(), pytest.raises(error, match=f"{op}: {message}"):
            overload(*wrong)


EMPTY = {  # op -> arguments with a size of 0, and what computes the same
    "linear, no outputs": (ops.linear, test_linear.truth, lambda: test_linear.example(5, 12, 0)),
    "linear, no outputs, GELU off": (ops.linear, test_linear.truth, lambda: test_linear.example(5, 12, 0, False)),
    "linear, no inputs": (ops.linear, test_linear.truth, lambda: test_linear.example(5, 0, 7)),
    "linear, many rows, no inputs": (ops.linear, test_linear.truth, lambda: test_linear.example(300, 0, 7)),
    "linear, many rows, no outputs": (ops.linear, test_linear.truth, lambda: test_linear.example(300, 7, 0)),
    "ffn_block, F = 0": (ops.ffn_block, test_ffn_block.truth, lambda: test_ffn_block.example(5, 16, 0)),
    "ffn_block, F = 0, many rows": (ops.ffn_block, test_ffn_block.truth, lambda: test_ffn_block.example(300, 16, 0)),
    "ffn_block, D = 0": (ops.ffn_block, None, lambda: test_ffn_block.example(5, 0, 8)),
    "attention, D = 0": (ops.attention, None, lambda: test_attention.example(width=0)),
    "attention, H = 0": (ops.attention, None, lambda: test_attention.example(heads=0)),
    "attention_block, D = 0": (ops.attention_block, None, lambda: test_attention_block.example(width=0)),
    "encoder, D = 0": (test_encoder.named, None, lambda: test_encoder.example(width=0)),
    "encoder, F = 0": (test_encoder.named, test_encoder.truth, lambda: test_encoder.example(inner=0)),
    "dropout_add_layer_norm, D = 0": (
        ops.dropout_add_layer_norm,
        None,
        lambda: test_dropout_add_layer_norm.example(5, 0),
    ),
    "embedding, E = 0": (ops.embedding, None, lambda: test_embedding.example(5, 0)),
    "embedding, E = 0, projected": (ops.embedding, None, lambda: test_embedding.example(5, 0, 6)),
    "embedding, D = 0": (ops.embedding, None, lambda: test_embedding.example(5, 8, 0)),
    "discriminator_head, D = 0": (
        ops.discriminator_head,
        test_discriminator_head.truth,
        lambda: test_discriminator_head.example(5, 0),
    ),
    "generator_head, E = 0": (ops.generator_head, None, lambda: test_generator_head.example(5, 0, 300)),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("name", EMPTY)
def test_sizes_of_0_give_empty_results(name: str) -> None:
    """Gradients of the other tensors are finite, and 0 where nothing depends on them."""
    op, truth, example = EMPTY[name]
    torch.manual_seed(0)
    given = example()
    if truth is not None:
        return check(op, truth, given)
    for n, t in given.items():
        if isinstance(t, Tensor) and t.is_floating_point():
            given[n] = t.requires_grad_()
    out = op(**given)
    out = out if isinstance(out, Tensor) else out[0]
    assert out.numel() == 0 or out.isfinite().all()
    floats = [t for t in given.values() if isinstance(t, Tensor) and t.is_floating_point()]
    for grad in torch.autograd.grad(out.sum(), floats, allow_unused=True):
        assert grad is None or grad.isfinite().all()


def test_no_heads_are_refused() -> None:
    for op, example in (
        (ops.attention_block, test_attention_block.example),
        (test_encoder.named, test_encoder.example),
    ):
        with pytest.raises(ValueError, match="width 16 is not a multiple of num_heads 0"):
            op(**example() | dict(num_heads=0))


def test_a_vocabulary_of_no_words_is_refused_by_the_dispatcher_op_too() -> None:
    empty = (torch.randn(3, 4), torch.randn(0, 4), torch.randn(0), torch.full((3,), -100), torch.arange(3))
    with pytest.raises(ValueError, match="generator_head: weight has no rows"):
        torch.ops.electra_fast.generator_head_fwd(*empty, torch.tensor([1]), 1.0, False, 0.0)


@pytest.mark.parametrize("temperature", [1e-45, 1e-31, 1e31, 1e300])
def test_temperatures_that_float32_cannot_divide_by_are_refused(temperature: float) -> None:
    given = test_generator_head.example(5, 8, 300)
    message = rf"generator_head: temperature is {temperature}; 0 .* from 1e-30 to 1e30".replace("+", r"\+")
    with pytest.raises(ValueError, match=message):
        ops.generator_head(**given, temperature=temperature)
    tensors = (given["hidden"], given["weight"], given["bias"], given["labels"], given["row_ids"], torch.tensor([1]))
    with pytest.raises(ValueError, match=message):
        torch.ops.electra_fast.generator_head_fwd(*tensors, temperature, False, 0.0)


def test_the_coldest_temperature_takes_the_most_likely_word() -> None:
    given = test_generator_head.example(2000, 8, 300)
    coldest, most_likely = (ops.generator_head(**given, temperature=t)[1] for t in (1e-30, 0.0))
    assert torch.equal(coldest, most_likely)


@pytest.mark.parametrize("disallow_correct", [False, True])
def test_the_hottest_temperature_takes_any_word_but_one_that_is_disallowed(disallow_correct: bool) -> None:
    given = test_generator_head.example(2000, 8, 300) | dict(disallow_correct=disallow_correct)
    sampled = ops.generator_head(**given, temperature=1e30)[1]
    assert len(sampled.unique()) > 280 and sampled.min() >= 0 and sampled.max() < 300  # of 300, 2000 draws miss 0.4
    assert not disallow_correct or (sampled != given["labels"]).all()


PROGRAM = """
import resource, torch
from electra_fast import ops
torch.set_num_threads(2)
k = torch.zeros(1, 1, 64).expand(2**30, 1, 64)
cu, cu_k = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0, 2**30], dtype=torch.int32)
q = torch.zeros(1, 1, 64)
ops.attention(q, q, q, cu, 1)  # threads and their stacks are there
resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36))
try:
    ops.attention(q, k, k, cu, 1, cu_k, 2**30)
except MemoryError:
    print("MemoryError", ops.attention(q, q, q, cu, 1).shape)
"""


@pytest.mark.skipif(core is None or sys.platform != "linux", reason="the core's memory, limited")
def test_memory_that_is_not_there_is_an_error() -> None:
    """What attention would need for a billion keys, 2 TB, is refused by the system; Python goes on."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "MemoryError torch.Size([1, 1, 64])", done.stderr[-2000:]
