"""Training of models that write: they learn, a run that is stopped goes on as if it had not been, OUT is complete."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import written

from electra_fast.cli.main import main
from electra_fast.decoding.settings import WritingConfig
from electra_fast.seq2seq.finetune import finetune, load_learner
from electra_fast.seq2seq.pairs import Pair
from electra_fast.seq2seq.predict import write_stream
from electra_fast.seq2seq.settings import SequenceConfig, SequenceRun
from electra_fast.seq2seq.writing_model import WritingModel
from electra_fast.tasks.examples import Refused

FAST = SequenceConfig(learning_rate=5e-3, batch_tokens=500, epochs=3, warmup_prob=0.2, label_smoothing=0.0)
SHORT = WritingConfig(max_length=12)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return written.networks(tmp_path_factory.mktemp("networks"))


def translation(folder: Path, pretrained: tuple[Path, Path], out: str, **changes: Any) -> SequenceRun:
    source, target = written.parallel(folder, "train", 400, 0)
    dev_source, dev_target = written.parallel(folder, "dev", 24, 1)
    files: dict[str, Any] = dict(source=source, target=target, dev_source=dev_source, dev_target=dev_target)
    model, decoder = pretrained
    options = dict(task="translation", model=model, decoder=decoder, out=folder / out) | files | changes
    return SequenceRun(**options)


def test_a_model_learns_to_copy_and_is_loaded_by_transformers(tmp_path: Path, pretrained: tuple[Path, Path]) -> None:
    config = dataclasses.replace(FAST, learning_rate=3e-3, epochs=16, batch_tokens=250)
    run = translation(tmp_path, pretrained, "out", dev_examples=8, eval_every=100, separate_embeddings=True)
    results = finetune(run, config, SHORT)
    assert results["median"] > 50, "BLEU of copies, which a model that learns nothing leaves near 0"
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "curves.png", "dev.jsonl", "metrics.jsonl", "model", "results.json", "run.json",
    ]  # fmt: skip
    rows = [json.loads(line) for line in (out / "dev.jsonl").read_text().splitlines()]
    assert len(rows) == 24 and sum(row["text"] == row["references"][0] for row in rows) > 8
    losses = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    validations = [row for row in losses if row["kind"] == "validation"]
    assert len(validations) > 2 and validations[-1]["loss"] < validations[0]["loss"] / 2
    learner = load_learner(out / "model")
    assert isinstance(learner, WritingModel)
    theirs = transformers.EncoderDecoderModel.from_pretrained(out / "model").eval()
    ids = torch.tensor([[2, *learner.source.encode(["red cat sees"])[0], 3]])
    ours = learner.model.generate(ids, num_beams=4, max_length=12)
    assert theirs.generate(ids, num_beams=4, max_length=12)[0, : ours.shape[1]].tolist() == ours[0].tolist()


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path, pretrained: tuple[Path, Path]) -> None:
    config = dataclasses.replace(FAST, dropout=0.1)
    whole = finetune(translation(tmp_path, pretrained, "whole", seeds=(3, 4), eval_every=8), config, SHORT)

    def stop(step: int, figures: dict[str, float]) -> None:
        if "validation/loss" in figures and figures["validation/seed"] == 4 and step == 16:
            raise KeyboardInterrupt

    stopped = translation(tmp_path, pretrained, "stopped", seeds=(3, 4), eval_every=8)
    with pytest.raises(KeyboardInterrupt):
        finetune(stopped, config, SHORT, stop)
    out = tmp_path / "stopped"
    assert (out / "training-4" / "checkpoint-8").is_dir() and (out / "model").is_dir()
    with pytest.raises(FileExistsError, match="continue it with --resume"):
        finetune(stopped, config, SHORT)
    resumed = dataclasses.replace(stopped, resume=True)
    with pytest.raises(ValueError, match="begun with other settings"):
        finetune(resumed, dataclasses.replace(config, epochs=4), SHORT)
    results = finetune(resumed, config, SHORT)
    assert results["seeds"] == whole["seeds"]
    assert not (out / "training-4").exists() and not (out / "seed-4").exists()
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "stopped")]
    rows = [[{k: v for k, v in json.loads(line).items() if k != "tokens_per_s"} for line in log] for log in logs]
    assert rows[0] == rows[1]
    models = [load_learner(tmp_path / name / "model") for name in ("whole", "stopped")]
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(models[1].state_dict()[name], tensor), name


def test_a_first_run_that_is_stopped_early_leaves_its_checkpoint_or_nothing(
    tmp_path: Path, pretrained: tuple[Path, Path]
) -> None:
    for step, left in ((1, False), (5, True)):

        def stop(at: int, figures: dict[str, float], step: int = step) -> None:
            if at == step:
                raise KeyboardInterrupt

        run = translation(tmp_path, pretrained, f"out{step}", eval_every=4, log_every=1)
        with pytest.raises(KeyboardInterrupt):
            finetune(run, FAST, SHORT, stop)
        assert (tmp_path / f"out{step}").exists() == left


SUMMARIES = [
    {"source": ["One cat sees.", "Red bird likes two.", "Six dog."], "target": ["red bird likes two"], "id": str(i)}
    for i in range(12)
]


def test_sentences_are_chosen(tmp_path: Path, pretrained: tuple[Path, Path]) -> None:
    """The second sentence is always the summary, and the model learns to choose it."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in SUMMARIES))
    run = SequenceRun(task="extractive", model=pretrained[0], train=path, dev=path, out=tmp_path / "out", eval_every=99)
    results = finetune(run, dataclasses.replace(FAST, epochs=20, batch_tokens=120), WritingConfig())
    assert results["seeds"]["0"]["rouge1"] == 1.0
    learner = load_learner(tmp_path / "out" / "model")
    assert learner.task.sentences == 1
    pair = Pair("x", ("",), (), ("Six dog.", "Red bird likes two.", "One cat."))
    assert learner.write([pair]) == ["Red bird likes two."]
    theirs = transformers.ElectraForTokenClassification.from_pretrained(tmp_path / "out" / "model").eval()
    ((_, scores),) = learner.scores([pair])
    ids, positions = learner._tokens(pair)
    with torch.no_grad():
        torch.testing.assert_close(theirs(torch.tensor([ids])).logits[0, positions, 0], scores, rtol=1e-4, atol=1e-5)


def test_answers_and_summaries_go_through_the_command_line(
    tmp_path: Path, pretrained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    squad = tmp_path / "q.jsonl"
    row = {
        "question": "what likes?",
        "context": "red bird likes two",
        "answers": {"text": ["bird"], "answer_start": [4]},
    }
    squad.write_text("".join(json.dumps(row | {"id": str(i)}) + "\n" for i in range(6)))
    summaries = tmp_path / "s.jsonl"
    summaries.write_text("".join(json.dumps(row) + "\n" for row in SUMMARIES))
    model = ["--model", str(pretrained[0]), "--epochs", "1", "--max-length", "10"]
    for task, file in (("answering", squad), ("summarization", summaries)):
        files = ["--train", str(file), "--dev", str(file), "--out", str(tmp_path / task)]
        assert main(["finetune", "--task", task, *files, *model]) == 0
        use = ["--model", str(tmp_path / task / "model")]
        assert main(["evaluate", *use, "--data", str(file), "--num-beams", "2", "--out", str(tmp_path / "w")]) == 0
        assert len((tmp_path / "w").read_text().splitlines()) == (6 if task == "answering" else 12)
        capsys.readouterr()
        assert main(["predict", *use, str(file), "--do-sample", "--seed", "2", "--at-once", "5"]) == 0
        rows = capsys.readouterr().out.splitlines()
        assert main(["predict", *use, str(file), "--do-sample", "--seed", "2", "--at-once", "3"]) == 0
        assert capsys.readouterr().out.splitlines() == rows and len(rows) in (6, 12)


def test_a_stream_has_a_row_for_each_line(tmp_path: Path, pretrained: tuple[Path, Path]) -> None:
    from electra_fast.seq2seq.learner import WritingTask

    task = WritingTask("translation", SHORT)
    learner = WritingModel.new(pretrained[0], pretrained[1], task, None, False).eval()
    pairs = [Pair("a", ("red cat",)), Refused("1", "it is nothing"), Pair("c", ("",))]
    rows = list(write_stream(learner, pairs, SHORT, 0, 2))
    assert [row["id"] for row in rows] == ["a", "1", "c"] and rows[1] == {"id": "1", "error": "it is nothing"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(source=None), "give either --train, or both --source and --target"),
        (dict(dev=Path("x")), "give either --dev, or both --dev-source and --dev-target"),
        (dict(task="extractive"), "extractive chooses sentences and has no decoder"),
        (dict(seeds=()), "seeds are"),
        (dict(eval_every=0), "eval_every is 0; it must be at least 1"),
    ],
)
def test_what_a_run_may_not_be_is_told(
    tmp_path: Path, pretrained: tuple[Path, Path], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        translation(tmp_path, pretrained, "out", **changes)


def test_lengths_beyond_the_positions_are_told(tmp_path: Path, pretrained: tuple[Path, Path]) -> None:
    run = translation(tmp_path, pretrained, "out")
    with pytest.raises(ValueError, match="max_length is 65, and the network has 64 positions; lower --max-length"):
        finetune(run, FAST, WritingConfig(max_length=65))
    with pytest.raises(ValueError, match="max_source_length is 70, and the network has 64 positions"):
        finetune(run, dataclasses.replace(FAST, max_source_length=70), SHORT)
    assert not (tmp_path / "out").exists()
