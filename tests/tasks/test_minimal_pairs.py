"""Minimal pairs: scores against those of transformers and sums by hand, and accuracies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from electra_fast.cli.main import main
from electra_fast.config import ElectraConfig
from electra_fast.data.prepare import prepare
from electra_fast.data.tokenizer import Tokenizer
from electra_fast.objectives.electra import Electra
from electra_fast.special_ids import SpecialIds
from electra_fast.tasks import sentence_scores as scoring
from electra_fast.tasks.minimal_pairs import MinimalPair, accuracies, read_pairs
from electra_fast.tasks.sentence_scores import load_network, sentence_scores

SENTENCES = ["the cat sleeps", "the cats sleeps on the mat", "", "a dog that sees cats barks"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair of networks with random weights, each with a tokenizer of the sentences' words."""
    path = tmp_path_factory.mktemp("pairs")
    (path / "text.txt").write_text("\n\n".join(SENTENCES * 20))
    tokenizer = prepare(path / "text.txt", path / "corpus", vocab_size=60, max_length=16, progress=False).tokenizer
    torch.manual_seed(0)
    ids = SpecialIds.of(tokenizer).token_ids
    Electra(ElectraConfig.tiny(vocab_size=tokenizer.vocab_size, initializer_range=0.3, **ids)).save_pretrained(path)
    for network in ("generator", "discriminator"):
        tokenizer.save(path / network)
    return path


def test_pseudo_log_likelihood_is_that_of_transformers(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence and one blank at a time there; here in batches, also where each holds one sentence alone."""
    network, tokenizer = load_network(directory / "generator")
    theirs = transformers.ElectraForMaskedLM.from_pretrained(directory / "generator").eval()
    wanted = []
    for ids in tokenizer.encode(SENTENCES):
        row, total = torch.tensor([tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]), 0.0
        for place in range(1, len(row) - 1):
            blank = row.clone()
            blank[place] = tokenizer.mask_token_id
            with torch.no_grad():
                total += theirs(blank[None]).logits[0, place].log_softmax(-1)[row[place]].item()
        wanted.append(total)
    counted = []
    assert sentence_scores(network, tokenizer, SENTENCES, counted.append).tolist() == pytest.approx(wanted, rel=1e-4)
    assert sum(counted) == len(SENTENCES)
    monkeypatch.setattr(scoring, "AT_ONCE", 1)
    assert sentence_scores(network, tokenizer, SENTENCES).tolist() == pytest.approx(wanted, rel=1e-4)


def test_discriminator_sums_its_log_odds(directory: Path) -> None:
    network, tokenizer = load_network(directory / "discriminator")
    theirs = transformers.ElectraForPreTraining.from_pretrained(directory / "discriminator").eval()
    wanted = []
    for ids in tokenizer.encode(SENTENCES):
        row = torch.tensor([[tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]])
        with torch.no_grad():
            wanted.append(-theirs(row).logits[0, 1:-1].sum().item())
    assert sentence_scores(network, tokenizer, SENTENCES).tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_accuracy_is_a_mean_over_sets() -> None:
    """Set a: both right; set b: one of three, and a draw. Phenomenon y holds b alone."""
    pairs = [MinimalPair("", "", name, "xy"[name == "b"]) for name in "aabbb"]
    good, bad = [2, 2, 2, 0, 1], [1, 1, 1, 1, 1]
    scores = torch.tensor([*good, *bad], dtype=torch.float64)
    assert accuracies(pairs, scores) == pytest.approx({"accuracy": (1 + 0.5) / 2, "x": 1.0, "y": 0.5})


def test_command(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"sentence_good": SENTENCES[0], "sentence_bad": SENTENCES[1], "linguistics_term": "agreement"}
    (tmp_path / "one.jsonl").write_text(json.dumps(row) + "\n")
    for network in ("generator", "discriminator"):
        command = ["evaluate", "--task", "blimp", "--model", str(directory / network), "--data", str(tmp_path)]
        assert main(command) == 0
        assert set(json.loads(capsys.readouterr().out)) == {"accuracy", "agreement"}
    assert main([*command, "--out", str(tmp_path / "out")]) == 1
    assert "blimp has no predictions to write" in capsys.readouterr().err


def test_what_is_no_set_of_pairs(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no \.jsonl file"):
        read_pairs(tmp_path)
    wanted = ": a JSON object with sentence_good and sentence_bad, two texts, is needed"
    for text, error in (
        (b"no JSON", " is no JSON"),
        (b"[" * 5000, " is no JSON"),
        (b"[1]", " is a list; each line is an object"),
        (b"\xff", " holds the byte 0xff, which is no UTF-8"),
        (b'{"sentence_good": "a"}', wanted),
        (b'{"sentence_good": "a", "sentence_bad": null}', wanted),
        (b'{"sentence_good": "a", "sentence_bad": " "}', wanted),
    ):
        (tmp_path / "set.jsonl").write_bytes(b'{"sentence_good": "a", "sentence_bad": "b"}\n' + text + b"\n")
        with pytest.raises(ValueError, match=rf"set\.jsonl, line 2{error}"):
            read_pairs(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(ValueError, match="holds BertModel; pre-trained networks are needed: ElectraForMaskedLM or"):
        load_network(tmp_path)
    assert isinstance(Tokenizer.load(directory / "generator"), Tokenizer)
