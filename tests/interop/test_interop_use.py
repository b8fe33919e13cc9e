"""accelerate() in use: dropout and seeds, checkpointing, autocast, torch.compile, what is left to transformers, bad
input, and the loops that people train with."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from numerics import dropout_factors
from test_interop import QUIET, check, made, padded, results
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

transformers = pytest.importorskip("transformers")

import electra_fast as ef  # noqa: E402
from electra_fast.interop import accelerate as interop  # noqa: E402


def loss_and_grads(model: nn.Module, given: dict[str, Tensor], seed: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return results(model, given | dict(labels=given["input_ids"] % 2))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_dropout_follows_manual_seed_and_training() -> None:
    model, given = made().train(), padded()
    ef.accelerate(model)
    once, again, other = (loss_and_grads(model, given, seed) for seed in (3, 3, 4))
    assert same(once, again) and not torch.equal(once["output logits"], other["output logits"])
    state = torch.get_rng_state()
    model.eval()
    assert torch.equal(model(**given).logits, model(**given).logits) and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("where", ["embeddings", "attention", "hidden", "ffn"])
def test_every_dropout_has_its_own_probability(where: str) -> None:
    """One kind on at a time: the share of dropped elements is its module's, and the mean stays."""
    model = made(**QUIET).train()
    layer, p = model.electra.encoder.layer[0], 0.25
    module = dict(
        embeddings=model.electra.embeddings.dropout,
        attention=layer.attention.self.dropout,
        hidden=layer.attention.output.dropout,
        ffn=layer.output.dropout,
    )[where]
    given = padded()
    want = model(**given).logits
    ef.accelerate(model)

    def error() -> float:
        return (model(**given).logits - want)[given["attention_mask"] == 1].abs().max().item()

    assert error() < 1e-5
    module.p = p
    assert error() > 1e-3
    (layer.attention.self if where == "attention" else module).eval()
    assert error() < 1e-5


def test_dropout_masks_have_their_probability() -> None:
    """With everything but the embeddings' dropout off: 0 where dropped, scaled where kept, as often as p says."""
    model = made("ElectraModel", **QUIET).train()
    tables = model.embeddings
    tables.dropout.p = 0.25
    nn.init.eye_(model.embeddings_project.weight)
    nn.init.zeros_(model.embeddings_project.bias)
    ef.accelerate(model)
    ids = torch.randint(1, 90, (64, 40))
    first = model(ids, output_hidden_states=True).hidden_states[0][..., :16]
    model.eval()
    plain = model(ids, output_hidden_states=True).hidden_states[0][..., :16]
    dropped = first == 0
    share, count = dropped.double().mean().item(), dropped.numel()
    assert abs(share - 0.25) < 5 * (0.25 * 0.75 / count) ** 0.5
    torch.testing.assert_close(first[~dropped], plain[~dropped] / 0.75)
    assert dropout_factors(0, torch.arange(2), 16, 0.25).max() == 256 / 192  # the scale of p = 64/256


@pytest.mark.parametrize("kind", ["ElectraForPreTraining", "ElectraForTokenClassification"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(kind: str, reentrant: bool) -> None:
    """Also over frozen embeddings; the layers are run again in the backward."""
    model, given = made(kind).train(), padded()
    model.electra.embeddings.requires_grad_(False)
    model.electra.embeddings_project.requires_grad_(False)
    report = ef.accelerate(model)
    want = loss_and_grads(model, given)
    model.activation_checkpointing_enable(dict(use_reentrant=reentrant))
    runs: list[int] = []
    for layer in model.electra.encoder.layer:
        again = layer._gradient_checkpointing_func
        layer._gradient_checkpointing_func = lambda *args, again=again: (runs.append(1), again(*args))[1]
    got = loss_and_grads(model, given)
    assert len(runs) == 2 and report.calls == {interop.OURS: 2} and got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max()) + 1e-7)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_around_the_model_changes_no_bit(reentrant: bool) -> None:
    model, given = made().train(), padded()
    ef.accelerate(model)

    def run(around: bool) -> dict[str, Tensor]:
        torch.manual_seed(5)
        model.zero_grad()
        factor = torch.ones((), requires_grad=True)

        def forward(factor: Tensor) -> Tensor:
            return model(**given).logits * factor

        out = checkpoint(forward, factor, use_reentrant=reentrant) if around else forward(factor)
        out.square().sum().backward()
        return {"output": out.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain = {name: t.clone() for name, t in run(False).items()}
    assert same(run(True), plain)


def test_autocast_on_the_cpu_is_float32() -> None:
    model, given = made(), padded()
    want = model(**given).logits
    report = ef.accelerate(model)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(**given).logits
    real = given["attention_mask"] == 1
    torch.testing.assert_close(got[real], want[real], rtol=1e-5, atol=1e-5)
    assert report.calls == {interop.OURS: 1}


@pytest.mark.parametrize(
    ("change", "asked", "why"),
    [
        (None, dict(output_attentions=True), "output_attentions"),
        (None, dict(output_hidden_states=[0]), "some of the hidden states"),
        (None, dict(attention_mask=torch.ones(4, 1, 24, 24, dtype=torch.bool)), "attention_mask of shape"),
        (lambda m: m.bfloat16(), {}, "torch.bfloat16 on cpu"),
        (lambda m: m.electra.encoder.layer[0].output.dense.bfloat16() and None, {}, None),
        (lambda m: m.electra.encoder.layer[1].register_forward_hook(lambda *a: None), {}, "encoder.layer.1 has hooks"),
        (lambda m: nn.utils.parametrizations.weight_norm(m.electra.encoder.layer[1].output.dense), {}, "Parametrized"),
    ],
    ids=["attentions", "some states", "4-D mask", "bfloat16", "mixed", "hook", "parametrized"],
)
def test_what_is_not_ours_is_left_to_transformers(change: Any, asked: dict[str, Any], why: str | None) -> None:
    model, other, given = made(), made(), padded() | asked
    other.load_state_dict(model.state_dict())
    report = ef.accelerate(model)
    if why is None:  # transformers itself cannot
        change(model)
        with pytest.raises(RuntimeError):
            model(**given)
        assert report.calls == {"parameters of several dtypes or devices, or input_ids on another": 1}
        return
    for m in (model, other):
        if change:
            change(m)
    want, got = other(**given), model(**given)
    torch.testing.assert_close(got.logits, want.logits, rtol=1e-5, atol=1e-5)
    assert got.keys() == want.keys() and (got.hidden_states is None) == (want.hidden_states is None)
    assert [why in reason for reason in report.calls] == [True] and why in str(report)


class Quantised(Tensor):
    """A weight as a quantiser such as torchao leaves it: of its own class, and known to torch's functions alone."""

    @staticmethod
    def __new__(cls, wide: Tensor) -> Any:
        made = Tensor._make_wrapper_subclass(cls, wide.shape, dtype=wide.dtype)
        made.narrow = (wide * 16).round()
        return made

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is nn.functional.linear:
            x, weight, bias = args
            return nn.functional.linear(x, weight.narrow / 16, bias)
        return super().__torch_function__(function, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return cls(args[0].narrow / 16)
        raise NotImplementedError(str(function))


def quantise(model: nn.Module) -> nn.Module:
    for module in [m for m in model.modules() if type(m) is nn.Linear]:
        module.weight = nn.Parameter(Quantised(module.weight.detach()), requires_grad=False)
    return model


class Linear(nn.Module):
    """An adapter, as PEFT's, of the very name of torch's."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = (nn.Parameter(0.2 * torch.randn(n, m)) for n, m in ((4, 32), (32, 4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


def adapt(model: nn.Module) -> nn.Module:
    torch.manual_seed(4)
    for layer in model.electra.encoder.layer:
        for name in ("query", "value"):
            setattr(layer.attention.self, name, Linear(getattr(layer.attention.self, name)))
    return model


def dynamic(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)


ALTERATIONS = {
    "quantised weights": (quantise, "embeddings_project has a test_interop_use.Quantised for a weight"),
    "dynamic quantisation": (
        dynamic,
        "embeddings_project is a torch.ao.nn.quantized.dynamic.modules.linear.Linear, not a torch.nn.modules.linear",
    ),
    "adapters": (adapt, "query is a test_interop_use.Linear, not a torch.nn.modules.linear.Linear"),
    "a part replaced": (
        lambda m: setattr(m.electra.encoder.layer[1].output, "dense", nn.Linear(64, 32, bias=False)) or m,
        "encoder.layer.1.output.dense has no bias",
    ),
    "hooks": (
        lambda m: m.electra.encoder.layer[0].register_forward_hook(lambda module, given, out: out * 2) and m,
        "encoder.layer.0 has hooks",
    ),
}


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("name", ALTERATIONS)
def test_altered_parts_fall_back_before_and_after(name: str, before: bool) -> None:
    """Whenever a part is quantised, adapted or hooked, transformers' code computes with it."""
    alter, why = ALTERATIONS[name]
    model, other, given = made(), made(), padded()
    other.load_state_dict(model.state_dict())
    state = torch.get_rng_state()
    want = alter(other)(**given).logits
    torch.set_rng_state(state)
    if before:
        alter(model)
        with pytest.warns(UserWarning, match="transformers' own code computes the embeddings and the encoder") as told:
            report = ef.accelerate(model)
        assert why in str(told[0].message) and why in str(report) and "ops.encoder" not in str(report)
    else:
        report = ef.accelerate(model)
        alter(model)
    torch.testing.assert_close(model(**given).logits, want, rtol=1e-5, atol=1e-6)  # the head may be ours
    assert report.calls.total() == 1 and why in next(iter(report.calls)), report.calls


def test_adapters_that_are_merged_run_on_ours() -> None:
    model, given = adapt(made()), padded()
    with pytest.warns(UserWarning, match="Merged adapters"):
        report = ef.accelerate(model)
    want = model(**given).logits
    for layer in model.electra.encoder.layer:
        for name in ("query", "value"):
            adapter = getattr(layer.attention.self, name)
            with torch.no_grad():
                adapter.base.weight += adapter.up @ adapter.down
            setattr(layer.attention.self, name, adapter.base)
    real = given["attention_mask"] == 1
    torch.testing.assert_close(model(**given).logits[real], want[real], rtol=1e-4, atol=1e-4)
    assert report.calls[interop.OURS] == 1


def test_inputs_embeds_are_left_to_transformers_and_hooks_that_capture_are_no_hindrance() -> None:
    model, given = made(), padded()
    report = ef.accelerate(model)
    model(**given, output_attentions=True)  # leaves hooks behind
    model(**given)
    mask = given["attention_mask"]
    model(inputs_embeds=torch.randn(4, 24, 16), attention_mask=mask)
    assert report.calls[interop.OURS] == 1 and report.calls["inputs_embeds given"] == 1


def test_compiled() -> None:
    model, given = made(**QUIET).train(), padded()
    want = loss_and_grads(model, given)
    ef.accelerate(model)
    compiled = torch.compile(model, backend="aot_eager")
    got = loss_and_grads(compiled, given)
    for name, value in want.items():
        torch.testing.assert_close(
            got[name.replace("_orig_mod.", "")] if name in got else got["_orig_mod." + name],
            value,
            rtol=1e-3,
            atol=1e-5,
        )


def test_exported_as_transformers_is() -> None:
    model, given = made(), padded()
    report = ef.accelerate(model)
    program = torch.export.export(model, (), given)
    want = model(**given).logits
    assert report.calls == {interop.OURS: 1}
    real = given["attention_mask"] == 1
    torch.testing.assert_close(program.module()(**given).logits[real], want[real], rtol=1e-5, atol=1e-5)


def test_a_sequence_of_padding_alone_is_finite() -> None:
    given = padded()
    given["attention_mask"][1] = 0
    for kind in ("ElectraForPreTraining", "ElectraForQuestionAnswering"):
        model = made(kind).train()
        ef.accelerate(model)
        assert all(t.isfinite().all() for t in results(model, given).values())


def test_refusals_change_nothing() -> None:
    bert = transformers.BertModel(
        transformers.BertConfig(
            hidden_size=32, num_attention_heads=2, num_hidden_layers=1, intermediate_size=64, vocab_size=90
        )
    )
    with pytest.raises(TypeError, match="model is a transformers.*BertModel; .*register_attention"):
        ef.accelerate(bert)
    with pytest.raises(TypeError, match="before torch.compile"):
        ef.accelerate(torch.compile(made()))
    with pytest.raises(ValueError, match="decoder"):
        ef.accelerate(made(is_decoder=True))
    relu = made(hidden_act="relu")
    with pytest.raises(ValueError, match="encoder.layer.0 has another activation"):
        ef.accelerate(relu)
    assert type(relu) is transformers.ElectraForPreTraining
    model = made()
    model.electra.encoder.layer[1].attention = nn.Identity()
    with pytest.raises(
        ValueError, match="encoder.layer.1.attention is a torch.nn.modules.linear.Identity, not a transf"
    ):
        ef.accelerate(model)
    assert type(model.electra) is transformers.ElectraModel and not hasattr(model, "electra_fast_report")
    model = made()
    ef.accelerate(model)
    for part in (model, model.electra):
        with pytest.raises(ValueError, match="accelerated already"):
            ef.accelerate(part)
    with pytest.raises(ValueError, match="41 columns, the model has 40 positions"):
        model(torch.ones(1, 41, dtype=torch.long))
    with pytest.raises(IndexError, match="outside the table of 90"):
        model(torch.full((1, 4), 90))


def test_another_version_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interop.transformers, "__version__", "5.99.0")
    with pytest.warns(UserWarning, match=r"tested with transformers .*this is 5.99.0"):
        check(made(**QUIET), padded())


def test_a_head_of_ones_own_keeps_its_padding() -> None:
    """Nobody knows what a subclass with another forward reads."""

    class Pooled(transformers.ElectraForTokenClassification):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            return self.electra(input_ids, attention_mask=attention_mask).last_hidden_state.mean(1)

    plain = made()
    model = Pooled(plain.config).eval()
    given = {name: t for name, t in padded().items() if name != "token_type_ids"}
    want = model(**given)
    ef.accelerate(model)
    torch.testing.assert_close(model(**given), want, rtol=1e-5, atol=1e-5)


class Rows(torch.utils.data.Dataset):
    def __init__(self) -> None:
        given = padded()
        self.rows = [{name: t[i] for name, t in given.items()} | dict(labels=torch.tensor(i % 2)) for i in range(4)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return self.rows[i]


def test_in_a_loop_that_is_compared() -> None:
    """Five steps of AdamW end where transformers' own do."""
    losses = []
    for ours in (False, True):
        torch.manual_seed(0)
        model = made("ElectraForSequenceClassification", **QUIET).train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        if ours:
            ef.accelerate(model)
        for batch in list(torch.utils.data.DataLoader(Rows(), 2)) * 3:
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_in_transformers_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model = made("ElectraForSequenceClassification")
    report = ef.accelerate(model)
    before = model.classifier.out_proj.weight.detach().clone()
    settings = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = transformers.Trainer(model, settings, train_dataset=Rows())
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert report.calls == {interop.OURS: 2} and not torch.equal(model.classifier.out_proj.weight, before)
    transformers.ElectraForSequenceClassification.from_pretrained(tmp_path / "saved")


def test_in_accelerate() -> None:
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True)
    model = made("ElectraForSequenceClassification")
    report = ef.accelerate(model)
    data = torch.utils.data.DataLoader(Rows(), 2)
    model, optimizer, data = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1), data)
    for batch in data:
        accelerator.backward(model(**batch).loss)
        optimizer.step()
    assert report.calls == {interop.OURS: 2}


def test_in_lightning(tmp_path: Path) -> None:
    found = [name for name in ("lightning", "pytorch_lightning") if importlib.util.find_spec(name)]
    lightning: Any = pytest.importorskip((found or ["lightning"])[0])

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = made("ElectraForSequenceClassification")
            self.report = ef.accelerate(self.model)

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            return self.model(**batch).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    module, data = Module(), torch.utils.data.DataLoader(Rows(), 2)
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    lightning.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet).fit(module, data)
    assert module.report.calls == {interop.OURS: 2}
