"""The captured step, with a stand-in for the CUDA graph: its buffers, its ring, and the steps that do not fit it."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_budget import LENGTHS, OTHERS, NoWaits, batch, budget, filled, trainer
from test_model import CONFIG

from electra_fast import Batch, Electra, Pretrainer
from electra_fast.train import graph, pretrain
from electra_fast.train.graph import FIGURES, RING, WARMUP, Inputs, StepGraph, budget_for
from electra_fast.train.metrics import StepMetrics
from electra_fast.train.settings import PretrainConfig

UNFIT = (24, 24, 24, 24)
ORDER = (LENGTHS, OTHERS, LENGTHS, OTHERS, OTHERS, UNFIT, LENGTHS, OTHERS)


class Again:
    """Runs what was captured again. Of the step it knows no more than a graph would: the host's count is hidden."""

    def __init__(self, trainer: Pretrainer) -> None:
        self.trainer, self.calls = trainer, ""

    def warm(self, work: Callable[[], None]) -> None:
        self.calls += "w"
        work()

    def capture(self, work: Callable[[], None]) -> None:
        self.calls += "c"
        self.work = work

    def replay(self) -> None:
        self.calls += "r"
        steps, self.trainer.steps_done = self.trainer.steps_done, -7
        self.work()
        self.trainer.steps_done = steps


def captured(**changes: object) -> StepGraph:
    t = trainer(**changes)
    return StepGraph(t, budget(), Again(t))


def in_the_open(steps: int) -> tuple[Pretrainer, list[StepMetrics]]:
    """The same steps, of the same shapes, by the Pretrainer alone."""
    t = trainer()
    return t, [t.step(batch(UNFIT) if lengths is UNFIT else filled(lengths)) for lengths in ORDER[:steps]]


def same(one: Pretrainer, two: Pretrainer) -> bool:
    pairs = zip(one.model.parameters(), two.model.parameters(), strict=True)
    return one.steps_done == two.steps_done and all(torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize("ring", [RING, 2])
def test_steps_and_figures_are_those_of_the_trainer(ring: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rows for two steps, figures that are held longer have been moved out of the way."""
    monkeypatch.setattr(graph, "RING", ring)
    ours, (theirs, wanted) = captured(), in_the_open(len(ORDER))
    found = [ours.step(batch(lengths)) for lengths in ORDER]
    assert ours.graph.calls == "w" * WARMUP + "c" + "r" * (len(ORDER) - WARMUP - 1), "one step did not fit"
    assert same(ours.trainer, theirs)
    for one, two in zip(found, wanted, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in FIGURES)
        assert (one.tokens, one.learning_rate, one.row()) == (two.tokens, two.learning_rate, two.row())
    held = {t.data_ptr() for t in ours.ring.rows[0]}
    assert sum(one.losses.data_ptr() in held for one in found) == min(ring, len(ORDER) - 1)


def test_all_that_a_step_reads_lies_in_one_block() -> None:
    there, full = Inputs(budget(), torch.device("cpu")), filled(OTHERS)
    there.block.fill_(-1)
    there.write(full, 41, 0.25)
    for name in ("input_ids", "token_type_ids", "position_ids", "row_ids", "cu_seqlens", "offsets"):
        tensor = getattr(there.batch, name)
        assert torch.equal(tensor, getattr(full, name)) and tensor.dtype == getattr(full, name).dtype
        assert tensor.untyped_storage().data_ptr() == there.block.untyped_storage().data_ptr()
    assert there.step.tolist() == [41] and there.rate.tolist() == [0.25]
    assert (there.batch.max_seqlen, there.batch.width) == (full.max_seqlen, full.width)


def test_a_replay_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    ours = captured()
    ours.trainer.read_every = 1000
    for lengths in ORDER[: WARMUP + 1]:
        ours.step(batch(lengths))
    with NoWaits() as mode:
        ours.again()
    assert any("adamw" in name for name, _ in mode.made)


def test_where_the_capture_fails_steps_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, (theirs, wanted) = captured(), in_the_open(5)

    def refused(work: Callable[[], None]) -> None:
        ours.trainer.model.discriminator.out.bias.grad = torch.ones(1, dtype=torch.float64)  # left half done
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(ours.graph, "capture", refused)
    for lengths in ORDER[:WARMUP]:
        ours.step(batch(lengths))
    with pytest.warns(UserWarning, match="could not be captured in a CUDA graph .operation not permitted"):
        ours.step(batch(ORDER[WARMUP]))
    last = ours.step(batch(ORDER[WARMUP + 1]))
    assert same(ours.trainer, theirs) and torch.equal(last.losses, wanted[-1].losses) and "r" not in ours.graph.calls


def test_a_loss_that_is_not_finite_is_found_among_replays() -> None:
    ours = captured()
    ours.trainer.read_every = WARMUP + 3
    bias = ours.trainer.model.generator.encoder.layers[0].up.bias
    for i, lengths in enumerate(ORDER[: WARMUP + 2]):
        if i == WARMUP + 1:
            with torch.no_grad():
                bias[0] = math.nan
        ours.step(batch(lengths))
    with pytest.raises(FloatingPointError, match=f"step {WARMUP + 1}: the loss is nan"):
        ours.step(batch(LENGTHS))
    assert ours.trainer.steps_done == WARMUP + 1


def test_a_run_through_it_ends_where_another_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None
) -> None:
    """Of pretrain: the budget comes from the text, and the figures and weights are those of a run without."""
    (tmp_path / "text.txt").write_text(
        "\n\n".join(["\n".join(f"the {a} of the {b} ." for a in "abcd" for b in "xyz")] * 9)
    )
    config = PretrainConfig(batch_size=4, steps=WARMUP + 2, warmup_steps=0)
    made: list[StepGraph] = []

    def through(trainer: Pretrainer, corpus: object) -> Callable[[Batch], StepMetrics]:
        made.append(StepGraph(trainer, budget_for(trainer, corpus), Again(trainer)))
        return made[-1].step

    def run(out: str) -> dict[str, float]:
        where = pretrain.RunConfig(
            out=tmp_path / out, data=(tmp_path / "text.txt",), vocab_size=40, max_length=32, device="cpu"
        )
        return pretrain.pretrain(where, config).figures

    plain = run("plain")
    monkeypatch.setattr(pretrain, "stepper", through)
    assert run("graph") == pytest.approx(plain, rel=1e-3)
    assert made[0].graph.calls == "w" * WARMUP + "crr"


@pytest.mark.cuda
@pytest.mark.filterwarnings("error:the step could not be captured")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_on_a_gpu_a_replay_is_the_step(precision: str) -> None:
    def on_gpu() -> Pretrainer:
        torch.manual_seed(1)
        return Pretrainer(Electra(CONFIG).cuda(), PretrainConfig(steps=100, warmup_steps=2, precision=precision))

    theirs, plain = on_gpu(), trainer()
    ours = StepGraph(on_gpu(), budget())
    for lengths in ORDER:
        one, two = ours.step(batch(lengths)), theirs.step(batch(lengths) if lengths is UNFIT else filled(lengths))
        assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in FIGURES)
        assert one.loss == pytest.approx(plain.step(batch(lengths)).loss, rel=1e-4 if precision == "float32" else 3e-2)
    assert same(ours.trainer, theirs)
