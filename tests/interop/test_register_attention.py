"""register_attention(): the name "electra_fast" in both of transformers' tables, for ELECTRA and other encoders."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_interop import QUIET, SIZES, check, made, padded, results
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

import electra_fast as ef  # noqa: E402
from electra_fast.interop.register_attention import attend  # noqa: E402

ENCODERS = [
    ("BertConfig", "BertForMaskedLM", {}),
    ("RobertaConfig", "RobertaForMaskedLM", {}),
    ("DistilBertConfig", "DistilBertForMaskedLM", dict(dim=32, hidden_dim=64, n_layers=2, n_heads=2)),
]


@pytest.fixture(autouse=True)
def _registered() -> None:
    ef.register_attention()
    ef.register_attention()


def compare(model: nn.Module) -> None:
    """Wherever there are tokens, outputs and gradients are those of SDPA: relative to the largest, within 1e-5."""
    given = {name: t for name, t in padded().items() if name != "token_type_ids"}
    given["input_ids"] = given["input_ids"].clamp(min=5)
    model.set_attn_implementation("sdpa")
    want = results(model, given)
    model.set_attn_implementation("electra_fast")
    got = results(model, given)
    assert want.keys() == got.keys()
    largest = {
        kind: max(float(t.abs().max()) for n, t in want.items() if n.startswith("output") == kind)
        for kind in (True, False)
    }
    for name, value in want.items():
        assert (got[name] - value).abs().max() < 1e-5 * largest[name.startswith("output")], name


def test_electra_as_sdpa_has_it() -> None:
    compare(made("ElectraForMaskedLM"))


@pytest.mark.parametrize(("config", "kind", "sizes"), ENCODERS, ids=[e[1] for e in ENCODERS])
def test_other_encoders_as_sdpa_has_them(config: str, kind: str, sizes: dict[str, Any]) -> None:
    given = {k: v for k, v in SIZES.items() if k != "embedding_size"} | dict(intermediate_size=64)
    made = getattr(transformers, config)(
        **(sizes | dict(vocab_size=90) if sizes else given), max_position_embeddings=40
    )
    compare(getattr(transformers, kind)(made).eval())


def test_the_mask_is_asked_for() -> None:
    """Were the name in the table of attentions alone, padding would be attended to."""
    model, given = made(), padded()
    model.set_attn_implementation("electra_fast")
    first = model(**given).logits
    other = given | dict(input_ids=given["input_ids"].where(given["attention_mask"] == 1, 7))
    real = given["attention_mask"] == 1
    assert torch.equal(model(**other).logits[real], first[real])


def test_named_at_construction_and_without_padding() -> None:
    model = made(attn_implementation="electra_fast")
    ids = torch.randint(0, 90, (2, 9))
    got = model(ids).logits
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(got, model(ids).logits)


def test_dropout_is_seeded_by_torch() -> None:
    model = made(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.3).train()
    model.set_attn_implementation("electra_fast")
    given = padded()
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(model(**given).logits)
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_grouped_queries() -> None:
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    want = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(attend(nn.Module(), q, k, v, None, is_causal=False)[0], want)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (dict(is_causal=True), "causal attention"),
        (dict(is_causal=False, softcap=3.0), "does not compute softcap"),
        (dict(is_causal=False, position_bias=torch.zeros(1)), "does not compute position_bias"),
        (dict(is_causal=False, attention_mask=torch.zeros(2, 1, 5, 5)), "shape .2, 1, 5, 5."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_it_cannot_serve_is_said(asked: dict[str, Any], said: str) -> None:
    q = torch.randn(2, 4, 5, 8)
    with pytest.raises(NotImplementedError, match=said):
        attend(nn.Module(), q, q, q, asked.pop("attention_mask", None), **asked)


@pytest.mark.parametrize("mask", [None, padded()["attention_mask"]], ids=["full", "padded"])
def test_decoders_are_refused(mask: Tensor | None) -> None:
    config = transformers.GPT2Config(vocab_size=90, n_embd=32, n_layer=1, n_head=2, n_positions=40)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.set_attn_implementation("electra_fast")
    with pytest.raises(NotImplementedError, match="asks for another pattern .causal"):
        model(torch.randint(0, 90, (4, 24)), attention_mask=mask)


def test_beside_accelerate() -> None:
    model = made(**QUIET)
    model.set_attn_implementation("electra_fast")
    check(model, padded())
