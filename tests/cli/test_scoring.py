"""electra-fast score: a line in, a score out."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from electra_fast.cli.main import main
from electra_fast.config import ElectraConfig
from electra_fast.data.prepare import prepare
from electra_fast.objectives.electra import Electra
from electra_fast.special_ids import SpecialIds
from electra_fast.tasks.sentence_scores import load_network, sentence_scores

LINES = ["the cat sleeps", "", "a dog that sees cats barks", "cat the sleeps", "über"]


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("networks")
    (path / "text.txt").write_text("\n\n".join(LINES * 20))
    tokenizer = prepare(path / "text.txt", path / "corpus", vocab_size=60, max_length=16, progress=False).tokenizer
    torch.manual_seed(0)
    ids = SpecialIds.of(tokenizer).token_ids
    Electra(ElectraConfig.tiny(vocab_size=tokenizer.vocab_size, initializer_range=0.3, **ids)).save_pretrained(path)
    for network in ("generator", "discriminator"):
        tokenizer.save(path / network)
    return path


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_a_line_in_a_score_out(
    network: str, networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = sentence_scores(*load_network(networks / network), LINES).tolist()
    (tmp_path / "lines.txt").write_text("\n".join(LINES))
    model = ["score", "--model", str(networks / network), "--device", "cpu"]
    assert main([*model, str(tmp_path / "lines.txt"), "--at-once", "2"]) == 0
    assert [float(line) for line in capsys.readouterr().out.split("\n")[:-1]] == pytest.approx(wanted, abs=1e-4)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("\r\n".join(LINES).encode())))
    assert main([*model, "--tokens"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == LINES
    for row, total in zip(rows, wanted, strict=True):
        assert row["score"] == pytest.approx(total, abs=1e-4)
        assert sum(score for _, score in row["tokens"]) == pytest.approx(total, abs=1e-4)
    assert [word for word, _ in rows[0]["tokens"]] == ["the", "cat", "sleeps"]


def test_groups_are_ranked(networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "lines.txt").write_text("\n".join([LINES[0], LINES[3], "", "", LINES[2] + "\x1b[2J"]))
    assert main(["score", "--model", str(networks / "generator"), "--rank", str(tmp_path / "lines.txt")]) == 0
    said = capsys.readouterr().out
    first, second = said.strip().split("\n\n")
    pairs = [line.split("\t") for line in first.split("\n")]
    scores = dict(zip(LINES, sentence_scores(*load_network(networks / "generator"), LINES).tolist(), strict=True))
    assert [text for _, text in pairs] == sorted([LINES[0], LINES[3]], key=lambda text: -scores[text])
    assert [float(score) for score, _ in pairs] == pytest.approx([scores[text] for _, text in pairs], abs=1e-4)
    assert second.endswith("\t" + LINES[2] + r"\x1b[2J"), "no escape of the text reaches the terminal"


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"fine\n\xff\n", [], "lines.txt, line 2 holds the byte 0xff, which is no UTF-8"),
        (b"", [], "lines.txt is empty"),
        (b"a", ["--tokens", "--rank"], "tokens and rank are two forms of the output; leave one away"),
        (b"a", ["--at-once", "0"], "at_once is 0; it must be at least 1"),
    ],
)
def test_what_is_refused(
    content: bytes, options: list[str], words: str, networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "lines.txt").write_bytes(content)
    assert main(["score", "--model", str(networks / "generator"), str(tmp_path / "lines.txt"), *options]) == 1
    assert words in capsys.readouterr().err
