"""benches/tools/transfer.py on miniature data: it runs to the end, does nothing twice, and spends equal flops."""

import json
from pathlib import Path

import pytest
import torch
from test_pretrain import TEXT
from tools import transfer
from tools.transfer import INITS, Phase, Plan, Task

from electra_fast.config import ElectraConfig
from electra_fast.model.flops import generator_flops, step_flops
from electra_fast.tasks.model import load_encoder


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "text.txt").write_text("\n\n".join([TEXT] * 4))
    lines = [
        f"the {a} is {b}\t{int(b in ('new', 'big'))}\n"
        for a in "cat dog sun".split()
        for b in "new big old dry".split()
    ]
    (tmp_path / "task.tsv").write_text("text\tlabel\n" + "".join(lines))
    tasks = (Task("words", "classification", tmp_path / "task.tsv", tmp_path / "task.tsv", 1),)
    phases = dict(start=Phase(16, 4, 2), phases=(Phase(32, 4, 2),))
    return Plan((tmp_path / "text.txt",), tasks, tmp_path / "work", 80, **phases, seeds=(0, 1))


@pytest.mark.slow
def test_all_of_it_and_nothing_twice(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "results" / "transfer.json"
    transfer.run(plan, out, jobs=2)
    rows = json.loads(out.read_text())
    assert [list(row) for row in rows] == [["task", "init", "metric", "median", "runs"]] * 3
    assert [row["init"] for row in rows] == list(INITS) and all(len(row["runs"]) == 2 for row in rows)
    assert out.with_suffix(".png").stat().st_size > 5_000
    results = {init: json.loads((plan.work / f"finetuned/words-{init}/results.json").read_text()) for init in INITS}
    assert {init: found["random_init"] for init, found in results.items()} == dict(
        electra=False, mlm=False, random=True
    )
    models = {init: Path(found["model"]).relative_to(plan.work).as_posix() for init, found in results.items()}
    ours = "electra-32/final/discriminator"
    assert models == {"electra": ours, "mlm": "mlm-32/final/generator", "random": ours}
    log = (plan.work / "logs" / "electra-32.log").stat()
    monkeypatch.setattr(transfer, "call", lambda *_: pytest.fail("it was done already"))
    transfer.run(plan, out, jobs=2)
    assert (plan.work / "logs" / "electra-32.log").stat() == log


def test_seeds_that_are_missing_are_trained(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    out, called = plan.work / "finetuned" / "words-mlm", []
    out.mkdir(parents=True)
    monkeypatch.setattr(transfer, "call", lambda plan, name, arguments: called.append((name, out.exists())))
    for seeds in ({"0": {}, "1": {}}, {"0": {}}):
        (out / "results.json").write_text(json.dumps({"seeds": seeds}))
        transfer.finetune(plan, plan.tasks[0], "mlm")
    assert called == [("words-mlm", False)]


@pytest.mark.slow
def test_both_start_from_what_mlm_learnt(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    transfer.prepare(plan)
    transfer.begin(plan)
    learnt = plan.work / "mlm-16" / "final" / "generator"
    (mlm, _), (electra, _) = (load_encoder(path) for path in (learnt, plan.work / "discriminator"))
    for name, weight in mlm.state_dict().items():
        assert torch.equal(weight, electra.state_dict()[name]), name
    starts: list[list[str | Path]] = []
    monkeypatch.setattr(transfer, "train", lambda *given: starts.append(given[-1]) or given[0].work)
    for objective in ("electra", "mlm"):
        transfer.pretrain(plan, objective)
    assert starts == [["--init-discriminator", plan.work / "discriminator"], ["--init-generator", learnt]]


def test_mlm_takes_as_many_steps_as_cost_the_same() -> None:
    phase, config = Phase(128, 32, 1000), ElectraConfig.tiny(vocab_size=8192)
    assert phase.steps_of("electra", 8192) == 1000
    lengths, slots = [128] * 32, 32 * 19
    ours = 1000 * step_flops(config, lengths, slots)
    theirs = generator_flops(config.discriminator, lengths, slots)
    assert 0 <= phase.steps_of("mlm", 8192) * theirs - ours < theirs


def test_a_part_that_fails_is_named(plan: Plan) -> None:
    with pytest.raises(RuntimeError, match=r"x failed: .* \(all of it in .*x.log\)"):
        transfer.call(plan, "x", ["pretrain", "--model", "huge"])
