"""accelerate(): every head of transformers' ELECTRA computes what it did, forward and backward, and goes back."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics import judge
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

import electra_fast as ef  # noqa: E402
from electra_fast.interop import accelerate as interop  # noqa: E402

SIZES = dict(vocab_size=90, embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
HEADS = interop.NAMES
QUIET = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def made(kind: str = "ElectraForPreTraining", **changes: Any) -> nn.Module:
    config = transformers.ElectraConfig(
        **SIZES, intermediate_size=64, max_position_embeddings=40, initializer_range=0.2, num_labels=2, **changes
    )
    model = getattr(transformers, kind)(config)
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return model.eval()


def padded(kind: str = "ElectraForPreTraining", width: int = 24) -> dict[str, Tensor]:
    """Sequences of 7, 24, 17 and 9 tokens: padded right, full, with a hole, padded left; ids at padding are not 0."""
    lengths = torch.tensor([7, width, 17, 9])
    columns = torch.arange(width)[None]
    mask = (columns < lengths[:, None]).long()
    mask[2, 3:6] = 0
    mask[3] = mask[3].flip(0)
    ids = torch.randint(0, 90, (4, width))
    given = dict(input_ids=ids, attention_mask=mask, token_type_ids=(columns > 5).long().expand(4, -1) * mask)
    if kind == "ElectraForMultipleChoice":
        return {name: t.view(2, 2, width) for name, t in given.items()}
    return given


def labels(kind: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
    mask = given["attention_mask"]
    real = torch.randint(0, 2, mask.shape)
    return {
        "ElectraModel": {},
        "ElectraForPreTraining": dict(labels=real),
        "ElectraForMaskedLM": dict(labels=real.masked_fill(mask == 0, -100)),
        "ElectraForTokenClassification": dict(labels=real.masked_fill(mask == 0, -100)),
        "ElectraForSequenceClassification": dict(labels=torch.tensor([0, 1, 1, 0])),
        "ElectraForQuestionAnswering": dict(
            start_positions=torch.tensor([1, 2, 0, 16]), end_positions=torch.tensor([3, 9, 1, 20])
        ),
        "ElectraForMultipleChoice": dict(labels=torch.tensor([0, 1])),
    }[kind]


def results(model: nn.Module, given: dict[str, Tensor], **asked: Any) -> dict[str, Tensor]:
    """Outputs where there are tokens, and the gradient of every parameter, of the loss or of a fixed mix of outputs."""
    model.zero_grad()
    out = model(**given, **asked)
    mask = given["attention_mask"].bool()
    outputs = {}
    for name, value in out.items():
        if isinstance(value, Tensor):
            whole = value.shape[: mask.dim()] != mask.shape
            outputs[f"output {name}"] = value if whole else value[mask]
    loss = out.get("loss")
    if loss is None:
        g = torch.Generator().manual_seed(1)
        mixes = (t * torch.randn(t.shape, generator=g).to(t.dtype) for t in outputs.values())
        loss = sum(t.sum() for t in mixes)
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {name: t.detach() for name, t in outputs.items()} | grads


def check(model: nn.Module, given: dict[str, Tensor], **asked: Any) -> interop.Acceleration:
    """Outputs and gradients by the rule of numerics.py, gold the model in float64."""
    plain = results(model, given, **asked)
    gold = results(copy.deepcopy(model).double(), given, **asked)
    report = ef.accelerate(model)
    ours = results(model, given, **asked)
    assert ours.keys() == plain.keys() == gold.keys()
    for name in gold:
        if name.endswith("key.bias") and len(name) > len("key.bias"):
            # softmax takes no notice of it: its gradient is 0 but for rounding, which is held against the query's
            assert ours[name].abs().max() <= 1e-5 * gold[name.replace("key", "query")].abs().max() + 1e-7
            continue
        judge(name, ours[name], plain[name], gold[name])
    return report


@pytest.mark.parametrize("loss", [False, True], ids=["outputs", "loss"])
@pytest.mark.parametrize("kind", HEADS)
def test_outputs_and_gradients_are_transformers(kind: str, loss: bool) -> None:
    given = padded(kind)
    report = check(made(kind, **QUIET), given | (labels(kind, given) if loss else {}))
    assert report.calls == {interop.OURS: 1}


@pytest.mark.parametrize("kind", HEADS)
def test_float64_is_the_same_to_its_own_rounding(kind: str) -> None:
    model, given = made(kind, **QUIET).double(), padded(kind)
    want = results(model, given)
    largest = max(float(value.abs().max()) for value in want.values())  # a key's bias has a gradient of 0
    report = ef.accelerate(model)
    for name, value in results(model, given).items():
        torch.testing.assert_close(value, want[name], rtol=1e-9, atol=1e-12 * largest)
    assert report.calls == {interop.OURS: 1}


def test_where_padding_is_read_it_is_computed() -> None:
    """A loss over labels at padding, hidden states, question answering, the bare model: every position is equal."""
    given = padded()
    for kind, asked in (
        ("ElectraModel", {}),
        ("ElectraForQuestionAnswering", {}),
        ("ElectraForMaskedLM", dict(labels=given["input_ids"])),
        ("ElectraForTokenClassification", dict(labels=given["input_ids"] % 2)),
        ("ElectraForPreTraining", dict(output_hidden_states=True)),
    ):
        model = made(kind)
        want = model(**given, **asked)
        report = ef.accelerate(model)
        got = model(**given, **asked)
        assert report.calls == {interop.OURS: 1} and got.keys() == want.keys()
        for name, value in want.items():
            found = got[name]
            for a, b in zip(found, value, strict=True) if isinstance(value, tuple) else [(found, value)]:
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_padding_that_no_one_reads_is_not_computed() -> None:
    model, given = made(), padded()
    ef.accelerate(model)
    hidden: list[Tensor] = []
    model.discriminator_predictions.register_forward_pre_hook(lambda module, args: hidden.append(args[0]))
    model(**given)
    assert not hidden[0][given["attention_mask"] == 0].any() and hidden[0][given["attention_mask"] == 1].any()


def test_positions_types_and_tuples() -> None:
    model, given = made(), padded()
    places = torch.randint(0, 40, (4, 24))
    check(made(**QUIET), given | dict(position_ids=places))
    check(made(**QUIET), given | dict(position_ids=places[:1]))
    want = model(**given, return_dict=False, labels=given["input_ids"] % 2, output_hidden_states=True)
    ef.accelerate(model)
    got = model(**given, return_dict=False, labels=given["input_ids"] % 2, output_hidden_states=True)
    assert isinstance(got, tuple) and len(got) == len(want) == 3
    torch.testing.assert_close(got[0], want[0])


def test_the_padding_token_learns_no_embedding_without_a_mask() -> None:
    ids = torch.randint(0, 3, (2, 8))
    given = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
    model = made(**QUIET)
    check(model, given)
    assert not model.electra.embeddings.word_embeddings.weight.grad[0].any()
    assert model.electra.embeddings.word_embeddings.weight.grad[1].any()


def test_revert_restores_the_instance() -> None:
    model, given = made(), padded()
    before = {name: (type(m), dict(vars(m))) for name, m in model.named_modules()}
    parameters = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    want = model(**given).logits
    report = ef.accelerate(model)
    assert {name: id(p) for name, p in model.named_parameters()} == {n: id(p) for n, (p, _) in parameters.items()}
    model(**given)
    report.revert()
    after = {name: (type(m), dict(vars(m))) for name, m in model.named_modules()}
    assert after.keys() == before.keys()
    for name, (kind, state) in before.items():
        assert after[name][0] is kind and after[name][1].keys() == state.keys(), name
    for name, p in model.named_parameters():
        assert p is parameters[name][0] and torch.equal(p, parameters[name][1])
    assert torch.equal(model(**given).logits, want)
    with pytest.raises(ValueError, match="reverted before"):
        report.revert()


def test_copies_pickles_and_files(tmp_path: Path) -> None:
    model, given = made(), padded()
    model.save_pretrained(tmp_path / "plain")
    report = ef.accelerate(model)
    want = model(**given).logits
    model.save_pretrained(tmp_path / "ours")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    loaded = transformers.ElectraForPreTraining.from_pretrained(tmp_path / "ours").eval()
    ef.accelerate(loaded)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert other.electra_fast_report is not report and torch.equal(other(**given).logits, want)
        nn.init.zeros_(other.discriminator_predictions.dense_prediction.weight)  # its own parameters compute
        assert not torch.equal(other(**given).logits, want) and torch.equal(model(**given).logits, want)
        other.electra_fast_report.revert()
        assert type(other) is transformers.ElectraForPreTraining
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    made().load_state_dict(torch.load(file, weights_only=True))


def test_names_are_found_when_asked_for() -> None:
    """`from electra_fast import *` imports no transformers, which takes seconds; `accelerate` does."""
    code = """
import sys
sys.modules["transformers"] = None  # importing it is an ImportError
from electra_fast import *
import electra_fast
try:
    electra_fast.accelerate
except ImportError:
    sys.exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert ef.accelerate.__module__ == "electra_fast.interop.accelerate"
    with pytest.raises(AttributeError, match="no attribute 'accelerated'"):
        _ = ef.accelerated
