"""The gate before ours is timed on CUDA, as far as the CPU can tell, and the rivals that need what is not installed."""

from __future__ import annotations

import sys
import types
from typing import Any

import bench_pretrain_step as bench
import pytest
import torch
import torch.nn.functional as F
from racing import parity
from racing.race import Options
from tools import gpu, launches

from electra_fast import Batch, Electra
from electra_fast.config import ElectraConfig

TINY = ElectraConfig.tiny(vocab_size=500, num_hidden_layers=2)


@pytest.fixture
def case() -> bench.Case:
    g = torch.Generator().manual_seed(0)
    mask = (torch.arange(24) < torch.tensor([24, 24, 17])[:, None]).long()
    return bench.Case(TINY, torch.randint(104, 500, (3, 24), generator=g) * mask, mask, "cpu")


@pytest.fixture
def batch(case: bench.Case) -> Batch:
    return Batch.from_padded(case.input_ids, case.attention_mask)


def test_gradients_are_judged(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours are right; with other dropout bits, or one gradient 1 % larger or missing, they are not."""
    assert not parity.first_gradients_differ(TINY, batch, torch.float32)
    honest = parity.philox_dropout
    monkeypatch.setattr(parity, "philox_dropout", lambda batch, seed, step: honest(batch, seed, step + 1))
    assert "the loss is off by" in parity.first_gradients_differ(TINY, batch, torch.float32)
    monkeypatch.setattr(parity, "philox_dropout", honest)
    forward = Electra.forward

    def spoilt(self: Electra, *args: Any) -> Any:
        self.get_parameter("discriminator.out.bias").register_hook(lambda grad: grad * 1.01)
        return forward(self, *args)

    monkeypatch.setattr(Electra, "forward", spoilt)
    assert parity.first_gradients_differ(TINY, batch, torch.float32).startswith("discriminator.out.bias is off by")


def test_what_rounding_explains_is_no_error() -> None:
    gold = torch.tensor([3.0, 4.0])
    off = [torch.tensor([3.0, 4.0 + error]) for error in (0.0, 0.02, 0.1, 0.2, torch.nan)]
    judged = [parity.beyond_rounding("w", t.bfloat16(), off[1], gold) for t in off]
    assert [bool(said) for said in judged] == [False, False, False, True, True]
    assert not parity.beyond_rounding("w", off[0], gold, gold) and parity.beyond_rounding("w", off[1], gold, gold)
    assert parity.beyond_rounding("w", None, gold, gold) == "w has no gradient"


def test_the_gate_mixes_no_devices(batch: Batch) -> None:
    """On meta tensors, which stand for CUDA's: what a tensor of the host meets there raises."""
    with launches.Counting() as mode:
        parity.first_gradients_differ(TINY, batch.to(torch.device("meta")), torch.bfloat16)
    assert len(mode.counts["encoder_bwd"].calls) == 2  # of ours alone: the reference calls no op


def test_every_rival_asked_for_on_a_gpu_is_there(case: bench.Case) -> None:
    case.device = "cuda"  # nothing is built
    there = bench.contestants(case, Options(device="cuda"))
    for phase in gpu.PHASES.values():
        for part in phase(gpu.BENCHES / "none"):
            if part.command[1] == "pretrain_step":
                asked = part.command[part.command.index("--providers") + 1 :]
                assert all(any(gpu.fnmatchcase(name, pattern) for name in there) for pattern in asked), part.name
    assert {"hf-eager", "hf-liger", "hf-cce", "hf-graph", "hf-compiled-graph", "hf-sdpa-cudnn"} <= set(there)


def test_eager_attention_learns(case: bench.Case) -> None:
    assert not bench.learns(case.config)(bench.hf_as_written(case, attn_implementation="eager"))


@pytest.mark.parametrize("name", ["liger", "cce"])
def test_heads_of_others(name: str, case: bench.Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for what is not installed: called as it is to be called, it learns; without one it says so."""
    called = []

    def liger(weight, rows, labels, bias):
        called.append((weight.dtype, rows.shape[1], bias.shape))
        return F.cross_entropy(F.linear(rows, weight, bias), labels)

    def cce(rows, weight, labels):
        called.append((weight.dtype, rows.shape[1], weight.shape[:1]))
        return F.cross_entropy(F.linear(rows, weight), labels)

    head = getattr(bench, f"{name}_head")
    for module in ("liger_kernel", "liger_kernel.transformers", "cut_cross_entropy"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError):
        bench.hf_tuned(case, head=head)()
    stand_ins = dict(LigerFusedLinearCrossEntropyLoss=lambda: liger, linear_cross_entropy=cce)
    for module in ("liger_kernel", "liger_kernel.transformers", "cut_cross_entropy"):
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**stand_ins))
    assert not bench.learns(case.config)(bench.hf_tuned(case, head=head))
    assert called[0] == (torch.float32, TINY.embedding_size, (500,))
