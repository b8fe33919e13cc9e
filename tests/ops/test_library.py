"""What holds for all ops at once: the dispatcher's registration, compilation, autograd's edges, rejected inputs."""

import os
import subprocess
import sys

import pytest
import test_adamw
import test_attention
import test_attention_block
import test_decode_attention
import test_decoder_step
import test_discriminator_head
import test_dropout_add_layer_norm
import test_embedding
import test_encoder
import test_ffn_block
import test_generator_head
import test_linear
import test_masking
import test_top_k_words
import torch
from numerics import laid_out
from test_encoder import label
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import electra_fast
from electra_fast import ops
from electra_fast.ops._library import backends
from electra_fast.ops._philox import derive_seeds, dropout_mask

DIFFERENTIABLE = {
    "attention": test_attention.example,
    "attention_block": lambda: test_attention_block.example(asking=(2, 1, 3)),
    "discriminator_head": test_discriminator_head.example,
    "dropout_add_layer_norm": test_dropout_add_layer_norm.example,
    "embedding": test_embedding.example,
    "encoder": lambda: test_encoder.example(asking=(2, 1, 3), depth=2),
    "ffn_block": test_ffn_block.example,
    "generator_head": test_generator_head.example,
    "linear": test_linear.example,
}
EXAMPLES = {
    **DIFFERENTIABLE,
    "masking": test_masking.example,
    "corrupt": test_masking.slots_example,
    "decode_attention": test_decode_attention.example,
    "decoder_step": test_decoder_step.example,
    "top_k_words": test_top_k_words.example,
}
SEEDED = [name for name, example in EXAMPLES.items() if "seed" in example()]
every_op = pytest.mark.parametrize("name", EXAMPLES)
every_differentiable_op = pytest.mark.parametrize("name", DIFFERENTIABLE)


def example(name):
    torch.manual_seed(0)
    of_lists = {"encoder": test_encoder.named, "decoder_step": test_decoder_step.named}  # tensors as named arguments
    return of_lists.get(name) or getattr(ops, name), EXAMPLES[name]()


def tensors(given, floats=None):
    wanted = {n: v for n, v in given.items() if isinstance(v, Tensor)}
    return {n: t for n, t in wanted.items() if floats is None or t.is_floating_point() == floats}


def first_loss(op, given):
    out = op(**given)
    return (out if isinstance(out, Tensor) else out[0]).sum()


class Calls(TorchDispatchMode):
    """The dispatcher ops of ours that run, with their arguments."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "electra_fast":
            self.seen.append((func, args))
        return func(*args, **(kwargs or {}))


def dispatched(name, layout):
    """The overloads that the public op and its backward call, with arguments as they get them."""
    op, given = example(name)
    given |= {n: laid_out(t, layout) for n, t in tensors(given).items()}
    if name in DIFFERENTIABLE:
        given |= {n: t.requires_grad_() for n, t in tensors(given, floats=True).items()}
    with Calls() as calls:
        out = op(**given)
        if name in DIFFERENTIABLE:
            outputs = [o for o in ((out,) if isinstance(out, Tensor) else out) if o.is_floating_point()]
            torch.autograd.backward([o.sum() for o in outputs])
    return calls.seen


def test_every_op_is_tested_here_and_listed():
    assert set(EXAMPLES) | {"adamw"} == set(ops.__all__)
    ours = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("electra_fast::")}
    assert set(backends) == {name.split(".")[0] for name in ours}
    assert {f"{name}_{way}" for name in DIFFERENTIABLE for way in ("fwd", "bwd")} <= set(backends)
    assert all(said.keys() == {"cpu", "cuda"} for said in backends.values())
    assert electra_fast.info()["ops"] is backends


def test_every_op_has_a_fake():
    for name in set(backends) - {"encoder"}:  # which is made of others
        assert torch._library.simple_registry.singleton.find(f"electra_fast::{name}").fake_impl.kernel is not None


@pytest.mark.filterwarnings("ignore")
@every_op
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_opcheck(name, layout):
    for overload, args in dispatched(name, layout):
        if overload.name().endswith("_bwd"):
            args = tree_map_only(Tensor, Tensor.detach, args)
        torch.library.opcheck(
            overload, tree_map_only(Tensor, lambda t: t.detach().requires_grad_(t.requires_grad), args)
        )


@pytest.mark.filterwarnings("ignore")
def test_opcheck_of_the_plain_ops():
    given = test_adamw.example()
    with Calls() as calls:
        ops.adamw(**given)
    torch.library.opcheck(*calls.seen[0])
    torch.library.opcheck(derive_seeds, (torch.tensor([3]), torch.tensor([5]), 2, 7))
    torch.library.opcheck(dropout_mask, (torch.tensor([3]), torch.arange(4), 20, 26, 1))


@pytest.mark.parametrize("name", SEEDED)
def test_compiled_whole_with_any_seed_it_gives_the_same_bits(name):
    op, given = example(name)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    floats = [t.requires_grad_() for t in tensors(given, floats=True).values()]
    for seed in (5, 6, 7, 2**40 + 3, 2**62):
        eager, traced = (f(**given | dict(seed=seed)) for f in (op, compiled))
        eager, traced = (
            [x for x in ((y,) if isinstance(y, Tensor) else y) if isinstance(x, Tensor)] for y in (eager, traced)
        )
        assert all(map(torch.equal, eager, traced))
        if floats:
            grads = (torch.autograd.grad(y[0].sum(), floats, allow_unused=True) for y in (eager, traced))
            assert all(map(torch.equal, *grads))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - set(SEEDED)))
def test_compiled_whole_it_gives_the_same_bits(name):
    op, given = example(name)
    eager, traced = op(**given), torch.compile(op, fullgraph=True, backend="aot_eager")(**given)
    assert torch.equal(eager, traced) if isinstance(eager, Tensor) else all(map(torch.equal, eager, traced))


@every_op
def test_without_gradients_it_gives_the_same_bits(name):
    op, given = example(name)
    if name in DIFFERENTIABLE:
        given |= {n: t.requires_grad_() for n, t in tensors(given, floats=True).items()}
    outputs = op(**given)
    with torch.no_grad():
        again = op(**given)
    with torch.inference_mode():
        inferred = op(**given)
    for a, b, c in zip(*([x] if isinstance(x, Tensor) else x for x in (outputs, again, inferred)), strict=True):
        if isinstance(a, Tensor):
            assert torch.equal(a, b) and torch.equal(a, c)
            assert not b.requires_grad and not c.requires_grad


@every_differentiable_op
def test_integer_outputs_and_arguments_have_no_gradient(name):
    op, given = example(name)
    out = op(**given | {n: t.requires_grad_() for n, t in tensors(given, floats=True).items()})
    for output in (out,) if isinstance(out, Tensor) else out:
        assert output.requires_grad == output.is_floating_point()


@every_differentiable_op
def test_one_argument_alone_may_need_a_gradient(name):
    op, given = example(name)
    floats = tensors(given, floats=True)
    leaves = {n: t.clone().requires_grad_() for n, t in floats.items()}
    together = torch.autograd.grad(first_loss(op, given | leaves), list(leaves.values()))
    for (argument, t), expected in zip(floats.items(), together, strict=True):
        leaf = t.clone().requires_grad_()
        assert torch.equal(torch.autograd.grad(first_loss(op, given | {argument: leaf}), leaf)[0], expected)


@every_differentiable_op
def test_double_backward_is_not_implemented(name):
    op, given = example(name)
    leaf = next(iter(tensors(given, floats=True).values())).requires_grad_()
    loss = first_loss(op, given)
    with pytest.raises(
        NotImplementedError, match=f"{name}: double backward is not implemented; .* without create_graph"
    ):
        torch.autograd.grad(loss, leaf, create_graph=True)


@every_differentiable_op
def test_torch_func_is_not_implemented(name):
    op, given = example(name)
    argument, t = next(iter(tensors(given, floats=True).items()))

    def loss(x):
        return first_loss(op, given | {argument: x})

    message = f"{name}: torch.func transforms are not implemented; use torch.autograd"
    for transform in (
        torch.func.grad(loss),
        lambda x: torch.func.jvp(loss, (x,), (x,)),
        lambda x: torch.func.vmap(loss)(x[None]),
    ):
        with pytest.raises(NotImplementedError, match=message):
            transform(t)


@every_differentiable_op
def test_forward_mode_is_never_silently_zero(name):
    op, given = example(name)
    argument, t = next(iter(tensors(given, floats=True).items()))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        op(**given | {argument: torch.autograd.forward_ad.make_dual(t, t)})


@every_differentiable_op
def test_an_input_changed_before_the_backward_is_noticed(name):
    op, given = example(name)
    floats = tensors(given, floats=True)
    leaf = floats.popitem()[1].requires_grad_()
    loss = first_loss(op, given)
    next(iter(floats.values())).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, leaf)


@every_op
def test_tensors_on_different_devices_are_rejected(name):
    op, given = example(name)
    for argument, t in list(tensors(given).items())[1:]:
        with pytest.raises(
            RuntimeError, match=f"{name}: tensors on different devices: .*{label(argument)} on meta.*; move them"
        ):
            op(**given | {argument: t.to("meta")})


@every_differentiable_op
def test_mixed_dtypes_are_rejected(name):
    op, given = example(name)
    for argument, t in tensors(given, floats=True).items():
        with pytest.raises(
            TypeError, match=rf"{name}: (?=.*torch.float32)(?=.*{label(argument)} is torch.float64).*one floating"
        ):
            op(**given | {argument: t.double()})


@every_differentiable_op
def test_integers_for_floats_are_rejected(name):
    op, given = example(name)
    wrong = {argument: t.long() for argument, t in tensors(given, floats=True).items()}
    with pytest.raises(TypeError, match=f"{name}: .* is torch.int64.*one floating-point dtype is allowed"):
        op(**given | wrong)


@every_differentiable_op
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rejected_on_the_cpu(name, dtype):
    op, given = example(name)
    wrong = {argument: t.to(dtype) for argument, t in tensors(given, floats=True).items()}
    with pytest.raises(TypeError, match=f"{name}: the tensors are {dtype}; on the CPU float32 and float64 are"):
        op(**given | wrong)


@every_op
def test_integers_of_another_width_are_rejected(name):
    op, given = example(name)
    for argument, t in tensors(given, floats=False).items():
        other = torch.int32 if t.dtype == torch.int64 else torch.int64
        with pytest.raises((TypeError, ValueError), match=f"{name}: {argument} is {other}"):
            op(**given | {argument: t.to(other)})


@every_op
def test_another_number_of_dimensions_is_rejected(name):
    op, given = example(name)
    for argument, t in tensors(given).items():
        for wrong in (t[None], t[..., None], t.flatten()):
            if wrong.shape != t.shape:
                with pytest.raises(ValueError, match=f"{name}: "):
                    op(**given | {argument: wrong})


@pytest.mark.parametrize("name", SEEDED)
def test_seeds_that_do_not_fit_are_rejected(name):
    op, given = example(name)
    for seed in (2**63, -(2**63) - 1):
        with pytest.raises(ValueError, match=f"{name}: seed is {seed}; it must fit in 64 bits"):
            op(**given | dict(seed=seed))
    for seed in (-(2**63), 2**63 - 1):
        op(**given | dict(seed=seed))


def test_two_threads_give_the_bits_of_one():
    from concurrent.futures import ThreadPoolExecutor

    op, given = example("ffn_block")
    expected = op(**given)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found.result(), expected) for found in [pool.submit(op, **given) for _ in range(20)])


PROGRAM = """
import sys, warnings
import torch
if sys.argv[1] == "reference":
    sys.modules["electra_fast._C"] = None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import electra_fast
    from electra_fast import ops
    from electra_fast.ops import _core, _library, _philox
    import test_library
    found = [_philox.derive_seeds(torch.tensor([3]), torch.tensor([2**33]), 2, 9)]
    for columns in (1, 17, 300):
        found.append(_philox.dropout_mask(torch.tensor([-5]), torch.arange(40) * 2**30, columns, 26, 3))
    for faithful in (False, True):
        op, given = test_library.example("masking")
        found += op(**given, faithful=faithful)[:4]
        op, given = test_library.example("corrupt")
        found += op(**given, faithful=faithful)
    op, given = test_library.example("dropout_add_layer_norm")
    x = given["x"].requires_grad_()
    found.append(torch.autograd.grad(op(**given), x, torch.ones_like(x))[0] == 0)
ours = [str(w.message) for w in caught if "electra_fast" in str(w.message)]
torch.save(dict(found=found, warnings=ours, core=_core.core is not None, ops=_library.backends), sys.argv[2])
"""


@pytest.mark.slow
def test_without_the_core_one_warning_and_the_same_bits(tmp_path):
    results = []
    for which in ("core", "reference"):
        place = os.pathsep.join([os.path.dirname(__file__), *sys.path])
        environment = {**os.environ, "PYTHONPATH": place}
        environment.pop("ELECTRA_FAST_ISA", None)
        command = [sys.executable, "-c", PROGRAM, which, str(tmp_path / which)]
        subprocess.run(command, check=True, env=environment)
        results.append(torch.load(tmp_path / which))
    with_core, without = results
    assert not without["core"] and len(without["warnings"]) == 1
    assert "runs its slower reference on the CPU; the C++ core" in without["warnings"][0]
    assert all(said["cpu"].startswith("reference: ") for said in without["ops"].values())
    if with_core["core"]:
        assert with_core["warnings"] == [] and any(said["cpu"].startswith("C++") for said in with_core["ops"].values())
    assert all(map(torch.equal, with_core["found"], without["found"]))


def test_autocast_on_the_cpu_computes_in_float32() -> None:
    weight, bias = torch.randn(6, 8, requires_grad=True), torch.randn(6, requires_grad=True)
    low = torch.randn(5, 8, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.linear(low, weight, bias, gelu=True)
    want = ops.linear(low.detach().float().requires_grad_(), weight, bias, gelu=True)
    assert out.dtype == torch.float32 and torch.equal(out, want)
    out.sum().backward()
    assert low.grad is not None and low.grad.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32
    with pytest.raises(TypeError, match="one floating-point dtype"):
        ops.linear(low, weight, bias)
