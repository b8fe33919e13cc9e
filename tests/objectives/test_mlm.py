"""The objective mlm: its loss in plain PyTorch, micro-batches, and the command line end to end."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_model import CONFIG, padded
from test_pretrain import TEXT, run, weights

from electra_fast import Batch, Discriminator, Electra, Generator, PretrainConfig, Pretrainer, evaluate
from electra_fast.cli.main import main
from electra_fast.objectives.mlm import MaskedLanguageModel
from electra_fast.storage import checkpoint

FIGURES = {"generator_loss", "generator_accuracy", "most_sampled"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("text")
    (root / "text.txt").write_text("\n\n".join([TEXT] * 6))
    assert main(["prepare", str(root / "text.txt"), "--out", str(root / "data"), "--max-length", "32",
                 "--vocab-size", "80", "--heldout", "0.2"]) == 0  # fmt: skip
    return root / "data"


def test_loss_and_accuracy_are_those_of_plain_pytorch() -> None:
    model = MaskedLanguageModel(CONFIG).double().eval()
    batch = Batch.from_padded(*padded((9, 7, 24, 3, 17)))
    out = model(batch, seed=2)
    seen = (out.slots.masked_ids, torch.ones_like(batch.input_ids), batch.token_type_ids)
    logits = model.generator(*map(batch.pad, seen))
    rows = torch.repeat_interleave(torch.arange(len(batch)), batch.lengths)
    places = out.masked_positions
    found, wanted = logits[rows[places], batch.position_ids[places]], batch.input_ids[places]
    assert out.loss.dtype == torch.float64
    assert out.loss.item() == pytest.approx(F.cross_entropy(found, wanted).item(), rel=1e-5)
    assert out.generator_loss is out.loss and not len(out.discriminator_logits)
    accuracy = (found.argmax(1) == wanted).double().mean().item()
    figures = evaluate(model, [batch], seed=2)
    counts = out.sampled_ids.bincount()
    assert figures.keys() == FIGURES
    repeated = counts.max().item() / counts.sum().item()
    assert figures == pytest.approx(
        {"generator_loss": out.loss.item(), "generator_accuracy": accuracy, "most_sampled": repeated}, rel=1e-5
    )


def test_it_is_the_discriminators_size_and_masks_as_electra() -> None:
    model, pair = MaskedLanguageModel(CONFIG), Electra(CONFIG)
    assert model.generator.config == CONFIG.discriminator and list(dict(model.named_children())) == ["generator"]
    batch = Batch.from_padded(*padded())
    ours, theirs = model.mask(batch, 3, 4), pair.mask(batch, 3, 4)
    assert torch.equal(ours.masked_ids, theirs.masked_ids) and torch.equal(ours.labels, theirs.labels)


def test_micro_batches_change_nothing_but_rounding() -> None:
    batch = Batch.from_padded(*padded((9, 7, 24, 3, 17)))
    found = []
    for size in (None, 2):
        torch.manual_seed(1)
        trainer = Pretrainer(
            MaskedLanguageModel(CONFIG), PretrainConfig(steps=100, warmup_steps=2, micro_batch_size=size)
        )
        found.append([trainer.step(batch).row() for _ in range(3)])
    for one, two in zip(*found, strict=True):
        assert one.keys() == {"loss", "generator_loss", "grad_norm", "learning_rate"}
        assert one == pytest.approx(two, rel=1e-4)


def test_a_run_end_to_end(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(corpus, tmp_path, "--objective", "mlm") == 0
    said = capsys.readouterr().out
    assert "generator accuracy" in said and "discriminator" not in said
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["generator"]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row.keys() - {"kind", "step"} for row in rows if row["kind"] == "heldout"] == [
        FIGURES | {"trigram_loss"}
    ] * 3
    assert (
        run(corpus, tmp_path / "on", "--objective", "mlm", "--init-generator", str(tmp_path / "final/generator")) == 0
    )
    transformers = pytest.importorskip("transformers")
    theirs = transformers.ElectraForMaskedLM.from_pretrained(tmp_path / "final" / "generator").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "final" / "generator")
    batch = tokenizer(["the cat of the king"], return_tensors="pt")
    with torch.no_grad():
        got = Generator.from_pretrained(tmp_path / "final" / "generator")(**batch)
        assert torch.allclose(got, theirs(**batch).logits, atol=1e-4)


def test_resumed_equals_uninterrupted(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(corpus, whole, "--objective", "mlm") == 0
    save = checkpoint.save

    def save_and_terminate(root: Path, step: int, *rest: object) -> Path:
        path = save(root, step, *rest)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return path

    monkeypatch.setattr(checkpoint, "save", save_and_terminate)
    assert run(corpus, broken, "--objective", "mlm") == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert run(corpus, broken, "--objective", "mlm", "--resume") == 0
    assert weights(whole / "checkpoint-4") == weights(broken / "checkpoint-4")


def test_what_is_refused(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from electra_fast.train.settings import RunConfig

    with pytest.raises(ValueError, match="objective is 'bert'; allowed: electra, mlm"):
        RunConfig(out=tmp_path, objective="bert")
    assert main(["pretrain", "--objective", "bert"]) == 2
    assert "--objective is bert; allowed: electra, mlm" in capsys.readouterr().err
    Discriminator(CONFIG.discriminator).save_pretrained(tmp_path / "d")
    assert run(corpus, tmp_path / "x", "--objective", "mlm", "--init-discriminator", str(tmp_path / "d")) == 1
    assert "/d and objective mlm, which does not take it; leave --init-discriminator out" in capsys.readouterr().err
    assert run(corpus, tmp_path / "y") == 0
    assert run(corpus, tmp_path / "y", "--resume", "--objective", "mlm") == 1
    said = capsys.readouterr().err
    assert 'objective: saved "electra", now "mlm"' in said and "Traceback" not in said
