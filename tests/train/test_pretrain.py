"""The command line end to end: a run, its files, resume, signals, full disks, warm starts, and what it refuses."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from electra_fast import Discriminator, Electra, ElectraConfig, Generator, info
from electra_fast.cli.main import main
from electra_fast.data.tokenizer import Tokenizer
from electra_fast.storage import checkpoint
from electra_fast.storage.lock import Lock
from electra_fast.train import finish

TEXT = "\n".join(f"the {a} of the {b} is {c} ." for a in "cat dog sun hat map".split() for b in "king queen boy".split()
                 for c in "red big old new dry".split())  # fmt: skip
pytestmark = pytest.mark.usefixtures("no_pictures")
SHORT = ["--steps", "4", "--batch-size", "4", "--max-length", "32", "--vocab-size", "80", "--device", "cpu"]
SHORT += ["--save-every", "2", "--eval-every", "2", "--log-every", "1"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared directory, so that the runs below need not prepare."""
    root = tmp_path_factory.mktemp("text")
    (root / "text.txt").write_text("\n\n".join([TEXT] * 6))
    assert main(["prepare", str(root / "text.txt"), "--out", str(root / "data"), "--max-length", "32",
                 "--vocab-size", "80", "--heldout", "0.2"]) == 0  # fmt: skip
    return root / "data"


def run(corpus: Path, out: Path, *options: str) -> int:
    return main(["pretrain", "--data", str(corpus), "--out", str(out), *SHORT, *options])


def weights(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.glob("*.safetensors"))}


def test_a_run_leaves_what_it_promises(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # this run draws its curves
    assert run(corpus, tmp_path) == 0
    said = capsys.readouterr().out
    assert "discriminator AUC (0.5 is a guess)" in said and "{" in said
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if row["kind"] == "heldout"] == [0, 2, 4]
    assert {"loss", "auc", "tokens_per_s", "peak_share"} <= rows[1].keys()
    assert {"auc", "auc_pairs", "generator_loss", "trigram_loss"} <= rows[0].keys()
    transformers = pytest.importorskip("transformers")
    for kind, ours, name in (
        ("generator", Generator, "ElectraForMaskedLM"),
        ("discriminator", Discriminator, "ElectraForPreTraining"),
    ):
        theirs, info = getattr(transformers, name).from_pretrained(tmp_path / "final" / kind, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "final" / kind)
        batch = tokenizer(["the cat of the king", "old"], return_tensors="pt", padding=True)
        model = ours.from_pretrained(tmp_path / "final" / kind)
        with torch.no_grad():
            got, want = model(**batch), theirs.eval()(**batch).logits
        assert torch.allclose(got[batch["attention_mask"] == 1], want[batch["attention_mask"] == 1], atol=1e-4)


def test_resumed_equals_uninterrupted(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped by SIGTERM after step 2 (saved, exit 143), then resumed: the same bits, and one row a step."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(corpus, whole) == 0
    save = checkpoint.save

    def save_and_terminate(root: Path, step: int, *rest: object) -> Path:
        path = save(root, step, *rest)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return path

    monkeypatch.setattr(checkpoint, "save", save_and_terminate)
    assert run(corpus, broken, "--save-every", "1") == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert not (broken / "final").exists()
    assert run(corpus, broken, "--resume") == 0
    assert weights(whole / "checkpoint-4") == weights(broken / "checkpoint-4")
    rows = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_flipped_bit_in_the_data_ends_the_run_before_a_checkpoint(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture, split: str
) -> None:
    """The last token of a shard becomes its neighbour in the vocabulary, which only the digest can tell."""
    shutil.copytree(corpus, tmp_path / "data")
    shard = tmp_path / "data" / f"{split}-00000.bin"
    content = bytearray(shard.read_bytes())
    content[-2] ^= 1
    shard.write_bytes(content)
    for options in (["--save-every", "1"], ["--steps", "1"]):
        assert run(tmp_path / "data", tmp_path / "out", *options) == 1
        said = capsys.readouterr().err
        assert f"shard {shard}: sha256 " in said and "its content has changed since it was written" in said
        assert "Traceback" not in said and not checkpoint.checkpoints(tmp_path / "out")


def test_a_second_signal_leaves_at_once(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = checkpoint.save

    def save_and_terminate_twice(root: Path, step: int, *rest: object) -> Path:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return save(root, step, *rest)

    monkeypatch.setattr(checkpoint, "save", save_and_terminate_twice)
    before = signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background of a shell
    with pytest.raises(SystemExit) as left:
        run(corpus, tmp_path)
    assert left.value.code == 128 + signal.SIGINT and checkpoint.latest(tmp_path) is None
    assert signal.getsignal(signal.SIGINT) is before


def test_a_full_disk_costs_the_checkpoint_not_the_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    save = checkpoint.save

    def full(root: Path, step: int, *rest: object) -> Path:
        if step < 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(root, step, *rest)

    monkeypatch.setattr(checkpoint, "save", full)
    assert run(corpus, tmp_path, "--save-every", "1") == 0
    said = capsys.readouterr()
    assert (said.out + said.err).count("training goes on") == 1 and "No space left" in said.out + said.err
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["checkpoint-4"]


def test_steps_left_out_are_told(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    diverging = ("--learning-rate", "1e30", "--warmup-steps", "0")
    assert run(corpus, tmp_path / "stopped", *diverging) == 1
    assert "leave such steps out by non_finite='skip' (--non-finite skip)" in capsys.readouterr().err
    assert run(corpus, tmp_path / "skipping", *diverging, "--non-finite", "skip") == 0
    assert "3 of 4 steps were left out: a loss or gradient was not finite" in capsys.readouterr().out


def test_two_runs_do_not_share_a_directory(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with Lock(tmp_path / ".lock", tmp_path):
        options = ["pretrain", "--data", str(corpus), "--out", str(tmp_path), *SHORT]
        code = f"import sys; from electra_fast.cli.main import main; sys.exit(main({options}))"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert other.returncode == 1 and str(tmp_path) in other.stderr and "Traceback" not in other.stderr


def test_warm_start_continues_from_given_weights(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(corpus, tmp_path / "first") == 0
    final = tmp_path / "first" / "final"
    start = [f(n) for n in ("generator", "discriminator") for f in (lambda n: f"--init-{n}", lambda n: str(final / n))]
    assert run(corpus, tmp_path / "second", "--steps", "1", "--learning-rate", "1e-12", *start) == 0
    before, after = (
        load_file(d / "discriminator" / "model.safetensors") for d in (final, tmp_path / "second" / "final")
    )
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)
    pair = Electra.from_pretrained(final)
    tables = [network.encoder.embeddings.word.weight for network in (pair.generator, pair.discriminator)]
    assert not torch.equal(*tables)  # each has its own by the recipe of tiny
    shared = ["--steps", "8", "--embedding-sharing", "tied"]
    assert run(corpus, tmp_path / "refused", *shared) == 1
    assert "embeddings are shared: a discriminator that learns alone would change" in capsys.readouterr().err
    assert run(corpus, tmp_path / "shared", *shared, "--generator-share", "0") == 0
    pair = Electra.from_pretrained(tmp_path / "shared" / "final")
    assert pair.generator.encoder.embeddings is pair.discriminator.encoder.embeddings


def test_word_tables_filled_up_beyond_the_tokenizer(corpus: Path, tmp_path: Path) -> None:
    """Rows that no word has, as published models have them for a round number: taken by convert and --init-*, trained,
    saved and resumed as they are."""
    words = Tokenizer.load(corpus / "tokenizer").vocab_size
    sizes = dict(embedding_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    pair = Electra(ElectraConfig.small(vocab_size=words + 24, max_position_embeddings=32, **sizes))
    pair.save_pretrained(tmp_path / "given")
    for name in ("generator", "discriminator"):
        Tokenizer.load(corpus / "tokenizer").save(tmp_path / "given" / name)
    assert main(["convert", str(tmp_path / "given"), str(tmp_path / "taken")]) == 0
    start = [f"--init-{name}" for name in ("generator", "discriminator")]
    start = [text for name in start for text in (name, str(tmp_path / "taken" / name.removeprefix("--init-")))]
    for options in (start, start[:2], start[2:], [*start[:2], "--objective", "mlm"]):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        assert run(corpus, out, *options) == 0
        assert run(corpus, out, *options, "--resume", "--steps", "5", "--allow-change", "pretrain.steps") == 0
        assert Generator.from_pretrained(out / "final" / "generator").config.vocab_size == words + 24
    with torch.no_grad():
        shown = finish._token(Tokenizer.load(corpus / "tokenizer"), words + 3)
    assert shown == f"[{words + 3}]"


def test_callback_receives_every_figure(corpus: Path, tmp_path: Path) -> None:
    from electra_fast.train.pretrain import pretrain
    from electra_fast.train.settings import PretrainConfig, RunConfig

    seen: list[tuple[int, dict[str, float]]] = []
    settings = RunConfig(out=tmp_path, data=(corpus,), max_length=32, log_every=1, eval_every=2, device="cpu")
    pretrain(settings, PretrainConfig(batch_size=4, steps=2), lambda step, figures: seen.append((step, figures)))
    assert [step for step, _ in seen] == [0, 1, 2, 2]
    assert "heldout/auc" in seen[0][1] and "train/loss" in seen[1][1]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--batch-size", "100000"], ["fewer than batch_size 100000", "add text, or lower --batch-size"]),
        (["--batch-size", "0"], ["batch_size is 0", "at least 1"]),
        (["--learning-rate", "-1"], ["learning_rate is -1.0", "must be positive"]),
        (["--learning-rate", "nan"], ["learning_rate is nan", "finite"]),
        (["--max-length", "64"], ["examples of 32 tokens, max_length is 64", "--max-length 32"]),
        (["--precision", "bfloat16"], ["precision is bfloat16", "--precision float32"]),
        (["--vocab-size", "40"], ["with a vocabulary of", "vocab_size is 40", "leave --vocab-size out"]),
        (["--init-generator", "/nowhere"], ["/nowhere"]),
        (["--save-every", "0"], ["save_every is 0"]),
        *([] if find_spec("wandb") else [(["--log-to", "wandb"], ["No module named 'wandb'", "pip install wandb"])]),
        *([] if torch.cuda.is_available() else [(["--device", "cuda"], ["device is cuda", "--device cpu"])]),
    ],
)
def test_mistakes_get_one_sentence(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], parts: list[str]
) -> None:
    assert run(corpus, tmp_path / "out", *options) == 1
    said = capsys.readouterr().err
    assert all(part in said for part in parts) and "Traceback" not in said, said
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_an_earlier_run_is_neither_overwritten_nor_resumed_with_other_settings(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(corpus, tmp_path) == 0
    kept = weights(tmp_path / "checkpoint-4")
    assert run(corpus, tmp_path) == 1
    assert "holds checkpoint-4 of an earlier run; go on with it by --resume" in capsys.readouterr().err
    assert run(corpus, tmp_path, "--resume", "--seed", "5", "--learning-rate", "0.1") == 1
    said = capsys.readouterr().err
    assert (
        "pretrain.seed: saved 0, now 5" in said and "pretrain.learning_rate: saved" in said and "--allow-change" in said
    )
    assert weights(tmp_path / "checkpoint-4") == kept
    assert run(corpus, tmp_path, "--resume", "--steps", "5", "--allow-change", "pretrain.steps") == 0
    assert checkpoint.latest(tmp_path).name == "checkpoint-5"


def from_text(root: Path, *options: str) -> int:
    """A run of two steps from ROOT/text.txt into ROOT/out."""
    settings = ["--steps", "2", "--batch-size", "4", "--max-length", "32", "--device", "cpu", *options]
    return main(["pretrain", "--data", str(root / "text.txt"), "--out", str(root / "out"), *settings])


def test_a_refused_start_can_be_corrected(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Following the remedy works: the text, prepared once, is taken again; another text is not taken for it."""
    (tmp_path / "text.txt").write_text("\n\n".join([TEXT] * 6))
    words = ("--vocab-size", "80")
    assert from_text(tmp_path, *words, "--batch-size", "1000") == 1
    assert "lower --batch-size" in capsys.readouterr().err
    prepared = (tmp_path / "out" / "data" / "corpus.json").stat()
    assert from_text(tmp_path, "--vocab-size", "70") == 1
    assert "vocab_size: saved 80, now 70\npass the old values" in capsys.readouterr().err
    assert from_text(tmp_path, *words) == 0
    assert (tmp_path / "out" / "data" / "corpus.json").stat() == prepared
    (tmp_path / "text.txt").write_text("\n\n".join([TEXT] * 7))
    assert from_text(tmp_path, *words, "--resume") == 1
    said = capsys.readouterr().err
    assert "out/data was prepared by an earlier start" in said and "data: saved [" in said and "--allow-change" in said
    assert from_text(tmp_path, *words, "--resume", "--allow-change", "data") == 0


def test_weights_bring_the_tokenizer_they_were_trained_with(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join([TEXT] * 6))
    assert from_text(tmp_path, "--vocab-size", "80") == 0
    (tmp_path / "out").rename(tmp_path / "first")
    weights = tmp_path / "first" / "final" / "discriminator"
    start = ("--init-discriminator", str(weights))
    assert from_text(tmp_path, *start, "--vocab-size", "70") == 1
    assert f"vocab_size 70 and the tokenizer {weights} are both given" in capsys.readouterr().err
    (weights / "tokenizer.json").unlink()  # vocab.txt is left
    assert from_text(tmp_path, *start) == 0
    shutil.rmtree(tmp_path / "out")
    (weights / "vocab.txt").unlink()
    assert from_text(tmp_path, *start) == 1
    assert f"{weights} holds neither tokenizer.json nor vocab.txt; name" in capsys.readouterr().err


def test_one_prepared_directory_is_read_alone(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(corpus, tmp_path, "--data", str(corpus), str(corpus)) == 1
    assert f"data holds {corpus}, which is prepared, and 1 more; one prepared directory" in capsys.readouterr().err


def test_another_version_is_told_on_resume(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert run(corpus, tmp_path) == 0
    monkeypatch.setattr("electra_fast.train.resume.info", lambda: {"versions": {**info()["versions"], "numpy": "1.0"}})
    assert run(corpus, tmp_path, "--resume") == 0
    said = capsys.readouterr().out
    assert "not bit-equal" in said and 'now "1.0"' in said and "  torch:" not in said


def test_prepared_data_take_no_other_tokenizer(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(corpus, tmp_path / "own", "--tokenizer", str(corpus / "tokenizer")) == 0
    Tokenizer.train([["another text"]], 40).save(tmp_path / "other")
    assert run(corpus, tmp_path / "out", "--tokenizer", str(tmp_path / "other")) == 1
    assert f"prepared with another tokenizer than {tmp_path / 'other'}; leave --tokenizer" in capsys.readouterr().err


def test_a_file_in_the_way_of_out(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        assert run(corpus, out) == 1
        assert f"out is {out}; a directory is needed, and a file is in its way" in capsys.readouterr().err


def test_interrupted_before_the_first_step(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("electra_fast.train.pretrain.measured_peak", interrupt)
    assert run(corpus, tmp_path) == 130
    assert capsys.readouterr().err.endswith("electra-fast: interrupted\n")


def test_a_corrupt_checkpoint_is_refused_by_name(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(corpus, tmp_path) == 0
    victim = tmp_path / "checkpoint-4" / "model.safetensors"
    data = bytearray(victim.read_bytes())
    data[-5] ^= 1
    victim.write_bytes(data)
    assert run(corpus, tmp_path, "--resume", "--seed", "9") == 1  # digests come before settings
    said = capsys.readouterr().err
    assert "model.safetensors" in said and "checkpoint-2" in said and "seed" not in said


def test_info_names_every_op(capsys: pytest.CaptureFixture) -> None:
    assert main(["info"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"masking", "corrupt", "attention_fwd", "adamw"} <= found["ops"].keys()
    assert found["versions"]["torch"] == torch.__version__


def test_a_stable_schedule_is_left_where_one_likes(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A checkpoint from before the fall serves runs of other lengths; one from after it does not."""
    stable = ["--schedule", "stable", "--warmup-steps", "1", "--generator-share", "0", "--optimizer", "muon"]
    assert run(corpus, tmp_path / "whole", *stable, "--decay-from", "2") == 0
    assert run(corpus, tmp_path / "branch", *stable, "--steps", "3", "--decay-from", "2") == 0
    shutil.rmtree(tmp_path / "branch" / "checkpoint-3")
    assert run(corpus, tmp_path / "branch", *stable, "--decay-from", "2", "--resume") == 0
    assert weights(tmp_path / "branch" / "checkpoint-4") == weights(tmp_path / "whole" / "checkpoint-4")
    assert run(corpus, tmp_path / "whole", *stable, "--steps", "6", "--decay-from", "5", "--resume") == 1
    assert "pretrain.decay_from: saved 2, now 5" in capsys.readouterr().err


def test_a_checkpoint_that_is_older_than_a_setting_had_its_default(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(corpus, tmp_path, "--steps", "2") == 0
    load = checkpoint.load

    def older(path: Path) -> checkpoint.Saved:
        step, tensors, state = load(path)
        del state["settings"]["pretrain"]["optimizer"], state["settings"]["model"]["mask_prob"]
        return step, tensors, state

    monkeypatch.setattr(checkpoint, "load", older)
    assert run(corpus, tmp_path, "--steps", "2", "--resume") == 0
    assert run(corpus, tmp_path, "--steps", "2", "--resume", "--optimizer", "muon") == 1
