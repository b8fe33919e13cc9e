"""The directory of a fine-tuning run: what it holds after any failure, and that a resumed run ends as one in one go."""

import dataclasses
import json
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from finetuning import FAST, cli, run_for

from electra_fast.storage.atomic import read_json
from electra_fast.storage.lock import Lock
from electra_fast.tasks.datasets import read_dataset
from electra_fast.tasks.evaluate import evaluate
from electra_fast.tasks.finetune import finetune
from electra_fast.tasks.model import TaskModel
from electra_fast.tasks.output import Output
from electra_fast.tasks.settings import FinetuneConfig

FULL = OSError(28, "No space left on device")


pytestmark = pytest.mark.usefixtures("no_pictures")


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def after(count: int, then: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` for so many calls, and then `then`."""
    calls = 0

    def called(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return (function if calls <= count else then)(*arguments, **named)

    return called


def contents(out: Path) -> dict[str, bytes]:
    """Every file but the log and the lock."""
    files = (path for path in out.rglob("*") if path.is_file() and path.name not in (".lock", "metrics.jsonl"))
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", ["words.tsv", "words.jsonl"])
def test_words_with_spaces_are_trained_on_and_predicted(world: Path, tmp_path: Path, name: str) -> None:
    """Vietnamese: a word is one or several syllables with spaces between them."""
    sentences = [("học sinh", "NOUN"), ("đi", "VERB"), ("học", "VERB")], [("sinh viên", "NOUN"), ("ngủ", "VERB")]
    if name.endswith(".tsv"):
        text = "\n\n".join("\n".join("\t".join(row) for row in rows) for rows in sentences) + "\n"
    else:
        rows = [dict(zip(("words", "tags"), zip(*rows, strict=True), strict=True)) for rows in sentences]
        text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / name).write_text(text)
    file = tmp_path / name
    assert cli(world, tmp_path / "out", task="tagging", train=file, dev=file) == 0
    (written,) = (tmp_path / "out" / "dev").iterdir()
    assert written.name == "predictions.jsonl"
    found = read_dataset(written, "tagging").examples
    assert [s.words for s in found] == [("học sinh", "đi", "học"), ("sinh viên", "ngủ")]


@pytest.fixture(autouse=True)
def terminal() -> Iterator[None]:
    """SIGHUP ends a process as it does from a terminal, also where the tests run under nohup, which ignores it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("error", [FULL, RuntimeError("a bug")], ids=["full", "bug"])
@pytest.mark.parametrize("name", ["write_predictions", "errors", "plot_finetuning"])
def test_what_only_people_read_ends_no_run(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    error: Exception,
) -> None:
    monkeypatch.setattr(f"electra_fast.tasks.finetune.{name}", failing(error))
    assert cli(world, tmp_path / "out", seeds=2) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["seeds"]) == ["0", "1"] and TaskModel.load(tmp_path / "out" / "model")
    file = {"write_predictions": "dev/", "errors": "errors.txt", "plot_finetuning": "curves.png"}[name]
    assert f"{file} was not written ({type(error).__name__}: {error})" in capsys.readouterr().err


def test_a_run_interrupted_in_its_first_training_leaves_nothing(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("electra_fast.tasks.finetuner.Finetuner.step", failing(KeyboardInterrupt()))
    assert cli(world, tmp_path / "out") == 130
    (tmp_path / "empty").mkdir()
    assert cli(world, tmp_path / "empty") == 130
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


STOPS = {
    "interrupt": (failing(KeyboardInterrupt()), 130),
    "bug": (failing(ValueError("a bug")), 1),
    "full": (failing(FULL), 1),
    "SIGTERM": (lambda *_: os.kill(os.getpid(), signal.SIGTERM), 143),
    "SIGHUP": (lambda *_: os.kill(os.getpid(), signal.SIGHUP), 129),
}


def status(world: Path, out: Path, *flags: str, **changes: Any) -> int:
    try:
        return cli(world, out, *flags, **changes)
    except SystemExit as left:
        return left.code  # type: ignore[return-value]


@pytest.mark.parametrize("stop", STOPS)
def test_a_failure_of_the_first_measurement_costs_nothing(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stop: str
) -> None:
    fail, code = STOPS[stop]
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("electra_fast.tasks.finetune.evaluate", fail)
        assert status(world, out) == code
    said = f"{out} holds the model of seed 0, trained but not measured (seed-0/); the same command with --resume"
    assert said in capsys.readouterr().err
    assert TaskModel.load(out / "seed-0") and not (out / "model").exists()
    assert cli(world, out) == 1
    assert f"{out} holds an earlier run of finetune; continue it with --resume" in capsys.readouterr().err
    monkeypatch.setattr("electra_fast.tasks.finetuner.Finetuner.step", failing(AssertionError("it is trained already")))
    assert cli(world, out, "--resume") == 0
    assert TaskModel.load(out / "model") and not (out / "seed-0").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("stop", STOPS)
def test_finished_seeds_outlive_the_next(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stop: str
) -> None:
    fail, code = STOPS[stop]
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("electra_fast.tasks.finetune.evaluate", after(1, fail, evaluate))
        assert status(world, out, seeds=3) == code
    said = capsys.readouterr().err
    assert f"{out} holds the results of seed 0 (model/, results.json) and the model of seed 1, trained" in said
    assert list(json.loads((out / "results.json").read_text())["seeds"]) == ["0"]
    assert TaskModel.load(out / "model") and TaskModel.load(out / "seed-1")
    assert list(tmp_path.iterdir()) == [out]


def test_a_disk_that_is_full_for_the_second_model(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TaskModel, "save", after(1, failing(FULL), TaskModel.save))
    out = tmp_path / "out"
    assert cli(world, out, seeds=2) == 1
    assert f"{out} holds the results of seed 0 (model/, results.json); the same command" in capsys.readouterr().err
    names = {path.name for path in out.iterdir()}
    assert names == {"run.json", "model", "dev", "errors.txt", "results.json", "metrics.jsonl", "curves.png"}


def rows(out: Path) -> list[dict[str, Any]]:
    """Those of metrics.jsonl, without the speed."""
    read = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "tokens_per_s"} for row in read]


class Killed(BaseException):
    """Ends the run where it stands."""


@pytest.mark.parametrize(
    "clears", [pytest.param(False, id="kill -9"), pytest.param(True, id="exception", marks=pytest.mark.slow)]
)
def test_ended_at_any_rename_and_resumed_it_ends_the_same(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clears: bool
) -> None:
    """Every file and directory gets its name by os.rename or os.replace, so these are the moments that matter.

    Of the three seeds the worst is first, the best second: its model replaces one, and the third's is removed.
    """
    trial = finetune(run_for(world, tmp_path / "trial", "regression", seeds=(0, 1, 2)), FAST)
    low, middle, high = sorted(range(3), key=lambda seed: trial["seeds"][str(seed)][trial["metric"]])
    run = run_for(world, tmp_path / "whole", "regression", seeds=(low, high, middle))
    assert finetune(run, FAST)["best_seed"] == high
    whole, wanted = contents(run.out), rows(run.out)
    saved: list[int] = []
    save = Output.save
    monkeypatch.setattr(Output, "save", lambda self, seed, *model: (save(self, seed, *model), saved.append(seed)))
    if not clears:
        monkeypatch.setattr(Output, "__exit__", lambda self, *_: self.lock.release())
    number, finished = 0, False
    while not finished:
        number += 1
        ended = dataclasses.replace(run, out=tmp_path / str(number))
        with monkeypatch.context() as patch:
            left = number

            def counted(function: Callable[..., None], a: Path, b: Path, out: Path = ended.out) -> None:
                nonlocal left
                left -= out in (a.parent, b.parent)
                if left == 0:
                    left = -1
                    raise Killed
                function(a, b)

            patch.setattr(os, "rename", partial(counted, os.rename))
            patch.setattr(os, "replace", partial(counted, os.replace))
            try:
                finetune(ended, FAST)
                finished = True
            except Killed:
                pass
        if clears and ended.out.exists():
            results = read_json(ended.out / "results.json")["seeds"] if (ended.out / "results.json").exists() else {}
            assert len(results) < 2 or TaskModel.load(ended.out / "model")
            assert not list(ended.out.glob(".*"))
        finetune(dataclasses.replace(ended, resume=True), FAST)
        assert sorted(saved) == [0, 1, 2], "a seed whose model was saved is not trained again"
        saved.clear()
        assert contents(ended.out) == whole, f"ended at rename {number}"
        assert rows(ended.out) == wanted
    assert number > 12


def test_more_seeds_by_resume(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seeds in (("whole", (0, 1)), ("parts", (0,))):
        finetune(run_for(world, tmp_path / name, seeds=seeds), FAST)
    finetune(run_for(world, tmp_path / "parts", seeds=(0, 1), resume=True), FAST)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    monkeypatch.setattr("electra_fast.tasks.finetuner.Finetuner.step", failing(AssertionError("all is done")))
    results = finetune(run_for(world, tmp_path / "parts", seeds=(0, 1), resume=True), FAST)
    assert list(results["seeds"]) == ["0", "1"]


def test_resume_with_nothing_there_begins(world: Path, tmp_path: Path) -> None:
    finetune(run_for(world, tmp_path / "out", resume=True), FAST)
    assert TaskModel.load(tmp_path / "out" / "model")


def test_resume_refuses_another_run(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    finetune(run_for(world, out), FAST)
    before = contents(out)
    with pytest.raises(ValueError, match="begun with other settings than these:\n  settings.epochs: saved 1, now 2\n"):
        finetune(run_for(world, out, resume=True), FinetuneConfig(learning_rate=3e-3, epochs=2, batch_size=8))
    with pytest.raises(ValueError, match="task: saved .*regression"):
        finetune(run_for(world, out, "regression", resume=True), FAST)
    (tmp_path / "more.tsv").write_text((world / "train.tsv").read_text() + "a fine film\t1\n")
    with pytest.raises(ValueError, match="other settings than these:\n  train: saved"):
        finetune(run_for(world, out, train=tmp_path / "more.tsv", resume=True), FAST)
    with pytest.raises(FileExistsError, match="holds an earlier run of finetune; continue it with --resume, or"):
        finetune(run_for(world, out), FAST)
    assert "continues from there" not in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "text").write_text("x")
    with pytest.raises(FileExistsError, match="nothing there is touched"):
        finetune(run_for(world, tmp_path / "mine", resume=True), FAST)
    assert contents(out) == before and (tmp_path / "mine" / "text").read_text() == "x"
    (out / "results.json").write_text('{"seeds": [0]}')
    with pytest.raises(ValueError, match="results.json has no scores by seed"):
        finetune(run_for(world, out, resume=True), FAST)


def test_one_run_at_a_time(world: Path, tmp_path: Path) -> None:
    with (
        Lock(tmp_path / "out" / ".lock", tmp_path / "out"),
        pytest.raises(ValueError, match="out is in use by another run"),
    ):
        finetune(run_for(world, tmp_path / "out"), FAST)
    finetune(run_for(world, tmp_path / "out"), FAST)
