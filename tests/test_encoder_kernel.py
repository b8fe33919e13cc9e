"""The narrow encoder in one launch, interpreted: against the blocks it is made of, layer by layer, and the model."""

import itertools
import math

import pytest
import torch
from electra_fast.kernels import attention_block as attention_kernels
from electra_fast.kernels import encoder as kernels
from electra_fast.kernels import ffn_block as ffn_kernels
from numerics import EPS, offsets, poisoned_memory
from torch import Tensor

from electra_fast import Batch, ElectraConfig
from electra_fast.model import Encoder
from electra_fast.objective import GENERATOR
from electra_fast.ops import embedding
from electra_fast.ops._philox import derive_seeds
from electra_fast.ops.attention_block import attention_block_reference
from electra_fast.ops.ffn_block import ffn_block_reference

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interprets the kernel")
WIDTH = 64


def example(lengths: tuple, layers: int = 2, inner: int = 128, p: float = 0.1, keep: bool = True) -> dict:
    total = sum(lengths)
    parameters = []
    for _ in range(layers):
        made = [torch.randn(shape) for shape in kernels.packed_layout(WIDTH, inner)]
        parameters.append([t / math.sqrt(t.shape[1]) if t.dim() == 2 else t for t in made])
    weights = torch.stack([torch.cat([t.flatten() for t in layer]) for layer in parameters])
    ids, seeds = torch.randint(2**62, (total,)), torch.randint(-(2**62), 2**62, (2 * layers,))
    tensors = dict(x=torch.randn(total, WIDTH), weights=weights, inner=inner, cu_seqlens=offsets(*lengths), row_ids=ids)
    return tensors | dict(seeds=seeds, eps=1e-12, attention_dropout_p=p, dropout_p=p, keep=keep)


def composed(
    attention_block, ffn_block, x, weights, inner, cu_seqlens, row_ids, seeds, eps, attention_dropout_p, dropout_p
):
    """Every layer's results of the two blocks, which may be the reference or launchers."""
    found, longest = [], int(cu_seqlens.diff().max()) if len(cu_seqlens) > 1 else 0
    shapes = kernels.packed_layout(WIDTH, inner)
    for layer, seed in zip(weights, seeds.split(2), strict=True):
        split = layer.split([math.prod(shape) for shape in shapes])
        parameters = [t.view(shape) for t, shape in zip(split, shapes, strict=True)]
        asking = (cu_seqlens, longest, row_ids, 1, None, None, 0, seed[:1], eps, attention_dropout_p, dropout_p)
        first = attention_block(x, *parameters[:6], *asking)
        middle = first if isinstance(first, Tensor) else first[0]
        second = ffn_block(middle, *parameters[6:], row_ids, seed[1:], eps, dropout_p)
        x = second if isinstance(second, Tensor) else second[0]
        found.append((first, second))
    return x, found


def to(given: dict, dtype: torch.dtype) -> dict:
    floats = {n: v.to(dtype) for n, v in given.items() if isinstance(v, Tensor) and v.is_floating_point()}
    return {n: v for n, v in given.items() if n != "keep"} | floats


LENGTHS = [(1,), (63, 0), (127, 1), (128,), (5, 20, 9), (0, 0), ()]


@pytest.mark.parametrize("p", [0.1, 0.0])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_by_the_rule_and_what_it_keeps_is_what_the_blocks_keep(lengths: tuple, p: float) -> None:
    """float16. The blocks' launchers save the same numbers, so their backwards go on from here."""
    given = example(lengths, p=p)
    half = to(given, torch.float16)
    gold, _ = composed(attention_block_reference, ffn_block_reference, **to(half, torch.float64))
    plain, _ = composed(attention_block_reference, ffn_block_reference, **half)
    out, saved = kernels.encoder_fwd(**half, keep=True)
    last, blocks = composed(attention_kernels.attention_block_fwd, ffn_kernels.ffn_block_fwd, **half)
    if sum(lengths):
        error, allowed = ((t.double() - gold).abs().max() for t in (out, plain))
        assert error <= 2 * allowed + EPS[torch.float16] * gold.abs().max()
    assert torch.equal(out, last)
    for layer, ((middle, first), (end, second)) in enumerate(blocks):
        qkv, read, lse, projected, statistics, middles, downs, outs = (t[layer] for t in saved)
        down, *norms = second
        for name, ours, theirs in (
            *zip(("qkv", "read", "lse", "projected"), (qkv, read, lse, projected), first[:4], strict=True),
            *zip("mean rstd mean2 rstd2".split(), statistics, (*first[4:], *norms), strict=True),
            *zip(("middle", "down", "out"), (middles, downs, outs), (middle, down, end), strict=True),
        ):
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, name
            assert torch.equal(ours, theirs), f"{name} of layer {layer}"


def test_without_keep_the_same_rows_and_nothing_else() -> None:
    given = to(example((5, 20, 9)), torch.float16)
    with poisoned_memory():
        out, saved = kernels.encoder_fwd(**given, keep=False)
    assert saved == [] and torch.equal(out, kernels.encoder_fwd(**given, keep=True)[0])


def test_layouts() -> None:
    given = to(example((5, 9)), torch.float16)
    wanted, _ = kernels.encoder_fwd(**given, keep=False)
    for name in ("x", "weights"):
        t = given[name]
        for view in (t.T.contiguous().T, torch.cat([t, t + math.nan], 1)[:, : t.shape[1]]):
            assert torch.equal(kernels.encoder_fwd(**given | {name: view}, keep=False)[0], wanted), name


def test_a_sequence_is_itself_among_others_and_nan_stays_in_it() -> None:
    given = to(example((5, 20, 9)), torch.float16)
    whole, _ = kernels.encoder_fwd(**given, keep=False)
    alone = dict(x=given["x"][5:25], row_ids=given["row_ids"][5:25], cu_seqlens=offsets(20))
    assert torch.equal(kernels.encoder_fwd(**given | alone, keep=False)[0], whole[5:25])
    given["x"][5:25] = math.nan
    found, _ = kernels.encoder_fwd(**given, keep=False)
    assert found[5:25].isnan().all() and torch.equal(found[:5], whole[:5]) and torch.equal(found[25:], whole[25:])


def test_the_model_derives_the_same_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator of small, three layers of it: what it gives in training, its dropout included."""
    monkeypatch.setitem(kernels.FWD, (4, WIDTH), kernels.FWD[2, WIDTH])
    config = ElectraConfig.small(vocab_size=200, num_hidden_layers=3).generator
    encoder = Encoder(config).train()
    mask = torch.arange(30)[None] < torch.tensor([30, 11])[:, None]
    batch = Batch.from_padded(torch.randint(5, 200, (2, 30)), mask.long())
    seed, step = torch.tensor([7]), torch.tensor([3])
    tables, projection = encoder.embeddings, encoder.embeddings_projection
    seeds = derive_seeds(seed, step, GENERATOR, 7)
    x = embedding(
        *(batch.input_ids, batch.token_type_ids, batch.position_ids),
        *(tables.word.weight, tables.position.weight, tables.token_type.weight, tables.norm.weight, tables.norm.bias),
        *(projection.weight, projection.bias, batch.row_ids, config.layer_norm_eps, 0.1, seeds[:1]),
    )
    weights = torch.stack([torch.cat([p.flatten() for p in layer.parameters()]) for layer in encoder.layers])
    asked = (batch.cu_seqlens, batch.row_ids, seeds[1:], config.layer_norm_eps, 0.1, 0.1, False)
    with torch.no_grad():
        found, _ = kernels.encoder_fwd(x, weights, config.intermediate_size, *asked)
        wanted = encoder(batch, batch.input_ids, seed, step, GENERATOR)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)


def test_a_layer_s_parameters_stand_as_the_model_registers_them() -> None:
    config = ElectraConfig.small().generator
    (layer,) = itertools.islice(Encoder(config).layers, 1)
    assert [tuple(p.shape) for p in layer.parameters()] == kernels.packed_layout(64, 256)
