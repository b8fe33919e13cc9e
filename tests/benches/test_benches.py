"""The harness on contestants that only pretend, the count of flops, the command line, and a race of tiny models."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_accelerate
import bench_adamw
import bench_attention_block
import bench_discriminator_head
import bench_dropout_add_layer_norm
import bench_embedding
import bench_encoder
import bench_ffn_block
import bench_inference
import bench_linear
import bench_masking
import bench_pretrain_step
import pytest
import torch
import torch.nn.functional as F
from racing import case, clock, parity, race
from racing.race import Options, Race, Roofs, run
from racing.results import Row, Writer, plot, table

from electra_fast import Batch, PretrainConfig
from electra_fast.config import ElectraConfig
from electra_fast.model.flops import encoder_flops, step_flops
from electra_fast.ops._philox import dropout_reference

BENCHES = Path(__file__).resolve().parents[2] / "benches"
FIELDS = (
    "bench model provider shape dtype ms_p20 ms ms_p80 tokens_per_s tflops gbps percent_roof peak_mem_mb launches "
    "device torch triton commit date"
).split()


class Clockwork:
    """Contestants whose seconds are scripted: `clock.sample` reads them instead of the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **seconds: list[float]) -> None:
        self.turns: list[str] = []
        self.scripts = {name: iter(times) for name, times in seconds.items()}
        self.current = ""
        monkeypatch.setattr(clock, "sample", self.sample)
        monkeypatch.setattr(clock, "warm_up", lambda *_: 1)
        self.contestants = {name: (lambda name=name: lambda: self.turn(name)) for name in seconds}

    def turn(self, name: str) -> None:
        self.current = name
        self.turns.append(name)

    def sample(self, step: clock.Step, *_: object) -> float:
        step()
        return next(self.scripts[self.current])


def test_contestants_take_turns_and_ratios_are_of_rounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Round 3 slows everybody tenfold: the ratio of b to a is 2 all the same; a's second lane is the noise bar."""
    script = Clockwork(monkeypatch, a=[1, 1, 1, 1, 10, 20, 1, 1, 1, 1], b=[2, 2, 20, 2, 2])
    writer = Writer(tmp_path / "rows.jsonl")
    race = Race("op", "m", "4x4", script.contestants, tokens=16, flops=3e12, bytes=5e9)
    rows = run(race, Options(rounds=5), writer, Roofs(gbps=10.0, tflops={"float32": 4.0}))
    assert script.turns == ["a", "b", "a"] * 5
    by_name = {row.provider: row for row in rows}
    assert set(by_name) == {"a", "b", "a (again)"}
    a, b = by_name["a"], by_name["b"]
    assert (a.ms, b.ms, a.ratio_to_best, b.ratio_to_best) == (1000, 2000, 1, 2)
    assert (b.ms_p20, b.tokens_per_s, b.tflops, b.gbps) == (2000, 8, 1.5, 2.5)
    assert a.percent_roof == pytest.approx(75) and b.percent_roof == pytest.approx(37.5)  # flops; bytes need less
    written = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [list(row) for row in written] == [FIELDS] * 3
    assert written[0]["launches"] is None and written[0]["torch"] == torch.__version__


def test_the_narrower_roof_counts() -> None:
    roofs = Roofs(gbps=10.0, tflops={"float32": 4.0, "bfloat16": 400.0})
    assert roofs.percent("float32", 2.0, 4e12, 5e9) == pytest.approx(50)
    assert roofs.percent("bfloat16 autocast", 2.0, 4e12, 5e9) == pytest.approx(25)
    assert roofs.percent("float32", 2.0, None, None) is None and Roofs().percent("float32", 1.0, 1.0, 1.0) is None


def test_what_cannot_run_or_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent() -> clock.Step:
        raise ModuleNotFoundError("No module named 'rival'\nmore")

    script = Clockwork(monkeypatch, wrong=[1], right=[1, 1, 1, 1])
    writer = Writer(tmp_path / "rows.jsonl")
    contestants = {"absent": absent, **script.contestants}

    def check(step: clock.Step) -> str:
        step()
        return "off by one" if script.current == "wrong" else ""

    rows = {row.provider: row for row in run(Race("op", "m", "1", contestants, check), Options(rounds=2), writer)}
    assert rows["absent"].skipped == "ModuleNotFoundError: No module named 'rival'" and rows["absent"].ms is None
    assert rows["wrong"].skipped == "wrong: off by one" and rows["right"].ms == 1000 and not rows["right"].skipped
    printed = table(rows.values())
    assert "absent  skipped: ModuleNotFoundError" in printed and "wrong  skipped: wrong: off by one" in printed
    written = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [list(row) for row in written if row["ms"] is None] == [[*FIELDS, "skipped"]] * 2


def test_a_contestant_that_breaks_down_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Clockwork(monkeypatch, good=[1] * 6, bad=[1, 1])  # StopIteration in the third round
    rows = {row.provider: row for row in run(Race("op", "m", "1", script.contestants), Options(rounds=3), Writer(None))}
    assert rows["bad"].skipped.startswith("StopIteration") and rows["good"].ms == 1000


def test_only_those_asked_for_run(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Clockwork(monkeypatch, **{"ours": [1] * 9, "hf-a": [1] * 9, "hf-b": [1] * 9})
    options = Options(rounds=1, providers=("hf-*",))
    rows = run(Race("op", "m", "1", script.contestants), options, Writer(None))
    assert {row.provider for row in rows} == {"hf-a", "hf-b", "hf-a (again)"}


def test_times_are_those_of_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall clock of our own, which stands still between calls, so that no load on the machine changes a figure."""
    wall = [0.0]
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: wall[0]))

    def step(seconds: float) -> None:
        wall[0] += seconds

    assert clock.sample(lambda: step(0.01), 20, "cpu", False) == pytest.approx(0.01)
    assert clock.warm_up(lambda: step(0.3 * clock.SAMPLE_SECONDS), "cpu", False) == 4


def test_quantiles() -> None:
    assert race.quantiles([3.0]) == (3, 3, 3)
    assert race.quantiles([float(n) for n in range(11)]) == (2, 5, 8)


def test_plot(tmp_path: Path) -> None:
    empty = dict.fromkeys(FIELDS)
    row = Row(
        **empty | dict(bench="op", model="m", provider="ours", shape="1", dtype="float32", ms_p20=1, ms=2, ms_p80=4)
    )
    plot([row], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    plot([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_profile_writes_a_trace_and_keeps_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        clock.profile(lambda: torch.ones(8, 8) @ torch.ones(8, 8), "cpu", tmp_path / "trace.json")
    assert {path.name for path in tmp_path.iterdir()} == {"trace.json", "trace-2.json"}
    assert "traceEvents" in json.loads((tmp_path / "trace.json").read_text()) and "aten::mm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "width", "slots", "mflop"),
    [
        ("small", 128, 19, 23.40),
        ("small", 512, 79, 29.34),
        ("base", 128, 19, 203.63),
        ("base", 512, 79, 222.78),
        ("large", 128, 32, 675.84),
        ("large", 512, 130, 723.27),
    ],
)
def test_flops_of_a_token(model: str, width: int, slots: int, mflop: float) -> None:
    """Forward MFLOP per token, counted on paper; a step is three times that."""
    config = getattr(ElectraConfig, model)()
    assert step_flops(config, [width] * 3, 3 * slots) / 3 / (3 * width) == pytest.approx(mflop * 1e6, rel=2e-4)


def test_case_counts_tokens_and_slots() -> None:
    full = bench_pretrain_step.Case.make("tiny", "4x64", "cpu")
    assert full.lengths == [64] * 4 and full.padding is None
    assert full.flops == step_flops(full.config, [64] * 4, 4 * 10)
    ragged = bench_pretrain_step.Case.make("tiny", "4x64 ragged", "cpu")
    assert ragged.lengths[0] == 64 and min(ragged.lengths) >= 8 and sum(ragged.lengths) < 256
    assert not ragged.input_ids[ragged.attention_mask == 0].any() and ragged.padding is not None


def test_case_is_as_long_as_text(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A heading of 7 tokens, a paragraph of more than 128, a heading of 5, ...: [CLS] and [SEP] make two more each."""
    monkeypatch.setattr(bench_pretrain_step, "DATA", data)
    case = bench_pretrain_step.Case.make("tiny", "16x128 text", "cpu")
    assert case.lengths == [9, 128, 7, 128, 91, 74, 63, 30, 37, 32, 8, 123, 128, 7, 98, 114]
    assert not case.input_ids[case.attention_mask == 0].any()


def test_shapes_without_the_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench_pretrain_step, "DATA", tmp_path)
    assert bench_pretrain_step.shapes("small", Options()) == ["16x128", "16x128 text"]
    assert bench_pretrain_step.shapes("small", Options(ragged=True)) == ["16x128 ragged", "16x128 text"]
    monkeypatch.setattr(bench_pretrain_step, "DATA", tmp_path / "none")
    assert bench_pretrain_step.shapes("small", Options()) == ["16x128", "16x128 ragged"]
    assert bench_pretrain_step.shapes("small", Options(ragged=True)) == ["16x128 ragged"]


def test_the_gate_sees_what_does_not_learn() -> None:
    check = bench_pretrain_step.learns(ElectraConfig.small())
    falling = iter([45.0, 44.0, 43.0, 42.0])
    assert not check(lambda: next(falling))
    assert "first loss" in check(lambda: 12.0) and "first loss" in check(lambda: float("nan"))
    assert "does not fall" in check(lambda: 45.0)


def test_a_step_of_ours_is_judged_by_all_it_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    case = bench_pretrain_step.Case.make("tiny", "2x32 ragged", "cpu")
    given = (case.config, PretrainConfig(warmup_steps=0), Batch.from_padded(case.input_ids, case.attention_mask))
    assert not parity.first_step_differs(*given)
    honest = parity.philox_dropout
    monkeypatch.setattr(parity, "philox_dropout", lambda batch, seed, step: honest(batch, seed, step + 1))
    assert "the loss is" in parity.first_step_differs(*given)
    monkeypatch.setattr(parity, "philox_dropout", honest)
    monkeypatch.setattr(parity, "learning_rate", lambda config, step: 1.05 * config.learning_rate)
    assert "learning rates from the reference's" in parity.first_step_differs(*given)


@pytest.mark.parametrize("ragged", [False, True])
def test_masking_is_judged(ragged: bool) -> None:
    """All contestants are right; one token hidden, chosen, replaced or labelled otherwise is seen."""
    case = bench_masking.Case.make(ElectraConfig.small(), "16x64", Options(ragged=ragged))
    check = bench_masking.right(case)
    for name, build in bench_masking.CONTESTANTS.items():
        assert not check(build(case)), name
    found: Any = bench_masking.ours(case)()
    for name, message in (
        ("masked_ids", "not chosen is hidden"),
        ("labels", "their labels are others'"),
        ("corrupted_ids", "not chosen is replaced"),
        ("is_replaced", "a label is wrong"),
    ):
        wrong = getattr(found, name).clone()
        wrong[0] = 1 - wrong[0].long()  # [CLS], or the first slot
        assert message in check(lambda name=name, wrong=wrong: found._replace(**{name: wrong}))
    swapped = found.corrupted_ids.clone()
    swapped[found.positions[:2]] = swapped[found.positions[:2]].flip(0)
    assert "another token's place" in check(lambda: found._replace(corrupted_ids=swapped))


def spoilt(step: clock.Step) -> clock.Step:
    """The same, the last tensor that comes back 1 % larger."""

    def call() -> object:
        found = list(step())
        return [*found[:-1], found[-1] * 1.01]

    return call


@pytest.mark.parametrize("bench", [bench_adamw, bench_dropout_add_layer_norm, bench_embedding])
def test_the_gates_of_the_row_ops_pass_what_is_right_alone(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    smaller = ElectraConfig.tiny(vocab_size=500)
    monkeypatch.setattr(ElectraConfig, "tiny", lambda: smaller)
    options = Options(models=("tiny",), shapes=("8x32",))
    for held in bench.races(options):
        for name in set(held.contestants) - {"compiled"}:
            step = held.contestants[name]()
            assert not held.check(step), name
            assert held.check(spoilt(held.contestants[name]())), name


@pytest.mark.parametrize(
    "bench", [bench_linear, bench_ffn_block, bench_attention_block, bench_encoder, bench_discriminator_head]
)
def test_the_blocks_are_judged(bench) -> None:
    """Every contestant of every race is right, and wrong once its last result, an output or a gradient, is off."""
    parts = set()
    for held in bench.races(Options(models=("tiny",), shapes=("4x32",))):
        parts |= set(held.shape.split())
        assert set(held.contestants) == {"ours", "eager"}
        for name, factor in (("ours", 1.01), ("eager", 2)):
            step = held.contestants[name]()
            assert not held.check(step), f"{name}: {held.shape}"
            assert held.check(lambda step=step, factor=factor: [*(found := step())[:-1], found[-1] * factor])
    assert parts >= {"discriminator", "forward", "forward+backward"}


@pytest.mark.parametrize("shape", ["2x32", "3x32 ragged"])
def test_inference_is_judged(shape: str) -> None:
    """Ours and transformers are right, wrong once a bias is off or padding is looked at; flops count no padding."""
    case = bench_inference.Case.make("tiny", shape, "cpu")
    check = bench_inference.right(case)
    assert not check(bench_inference.ours(case)) and not check(bench_inference.hf(case))
    network, mask = case.config.discriminator, case.attention_mask
    head = 2 * sum(case.lengths) * network.hidden_size * (network.hidden_size + 1)
    assert case.flops == encoder_flops(network, case.lengths) + head
    if mask is not None:
        assert sum(case.lengths) == mask.sum() < mask.numel()
        assert "a logit is off by" in check(bench_inference.hf(replace(case, attention_mask=None)))
    assert all(p.std() > 0.04 for p in case.model.parameters() if len(p) > 1), "a bias or norm left out is not seen"
    bias = case.model.get_parameter("encoder.layers.0.up.bias")
    bias += 0.01
    assert "a logit is off by" in check(bench_inference.ours(case))


@pytest.mark.parametrize("shape", ["2x32", "3x32 ragged"])
def test_accelerate_is_judged(shape: str) -> None:
    """Before and after are right with all their gradients, and wrong once a bias is off."""
    case = bench_accelerate.Case.make("tiny", shape, "cpu")
    check = bench_accelerate.right(case)
    before, after = case.hf(), case.ours()
    assert after.model.electra_fast_report.calls == {} and not hasattr(before.model, "electra_fast_report")
    for step in (before, after):
        assert not check(step) and step().isfinite() and step.model.training
        assert all(p.grad is not None for p in step.model.parameters())
    assert after.model.electra_fast_report.calls == {"electra_fast": 2}
    with torch.no_grad():
        after.model.electra.encoder.layer[0].intermediate.dense.bias += 0.01
    assert "a logit is off by" in check(after)


def test_inference_races_what_is_asked() -> None:
    def shapes(**asked: Any) -> list[str]:
        return [held.shape for held in bench_inference.races(Options(models=("tiny",), **asked))]

    assert shapes() == ["1x128", "32x128", "32x128 ragged"]
    assert shapes(ragged=True) == ["1x128 ragged", "32x128 ragged"]
    assert shapes(shapes=("2x16",), ragged=True) == ["2x16 ragged"]


def test_dropout_of_its_own_is_judged_by_its_mean() -> None:
    setting = next(case.settings(Options(models=("tiny",), shapes=("4x32",))))
    given = case.Case.make(setting, [(128, 16)], (128, 16))

    def formula(p: float) -> case.Op:
        return lambda x: dropout_reference(x, p, setting.seed, setting.row_ids)

    check = case.right(given, formula, 0.1)
    assert not check(given.step(formula(0.1))) and not check(given.step(lambda x: F.dropout(x, 0.1)))
    assert "0 from no dropout in one call" in check(given.step(formula(0.0)))
    assert "from no dropout" in check(given.step(lambda x: 1.5 * F.dropout(x, 0.1)))
    assert "relative error 0.001" in case.right(given, formula, 0.0)(given.step(lambda x: 1.001 * x))


@pytest.mark.parametrize(
    ("bench", "forward", "both", "megabytes"),
    [
        (bench_linear, 1073.7, 3221.2, 26.2),
        (bench_ffn_block, 2147.5, 6442.5, 16.8),
        (bench_attention_block, 1342.2, 4160.7, 13.6),
        (bench_encoder, 41875.9, 127238.4, 124.1),
        (bench_discriminator_head, 268.44, 805.31, 7.1),
    ],
)
def test_flops_and_bytes_of_a_block(bench, forward: float, both: float, megabytes: float) -> None:
    """MFLOP in the small model's discriminator on 16 x 128 tokens, and what training moves, counted on paper."""
    options = Options(models=("small",), shapes=("16x128",), providers=("compiled",))
    kinds = {held.shape.split()[3]: held for held in reversed(list(bench.races(options))) if "disc" in held.shape}
    assert kinds["forward"].flops == pytest.approx(forward * 1e6, rel=1e-4)
    assert kinds["forward+backward"].flops == pytest.approx(both * 1e6, rel=1e-4)
    assert kinds["forward+backward"].bytes == pytest.approx(megabytes * 1e6, rel=1e-2)
    assert set(kinds["forward"].contestants) == {"ours", "eager", "compiled"}  # it was named


def test_command_line_says_what_there_is() -> None:
    done = subprocess.run([sys.executable, str(BENCHES), "no_such_bench"], capture_output=True, text=True)
    assert done.returncode == 2 and "there is no bench no_such_bench; there are" in done.stderr
    assert "pretrain_step" in done.stderr and "roofs" in done.stderr


@pytest.mark.parametrize("shape", ["2x32", "3x24 ragged"])
def test_a_race_of_tiny_models(tmp_path: Path, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every contestant of the step either runs and learns, or says why not; the reference does run."""
    smaller = ElectraConfig.tiny(vocab_size=2000, num_hidden_layers=1)
    monkeypatch.setattr(ElectraConfig, "tiny", lambda: smaller)
    options = Options(models=("tiny",), shapes=(shape.split()[0],), ragged="ragged" in shape, rounds=1)
    (race,) = bench_pretrain_step.races(options)
    assert race.shape == shape
    rows = {row.provider: row for row in run(race, options, Writer(tmp_path / "rows.jsonl"))}
    assert rows.keys() >= {"ours", "reference", "reference-all-rows", "hf-as-written", "hf-tuned"}
    for name in ("reference", "reference-all-rows"):
        assert rows[name].ms and rows[name].tokens_per_s and rows[name].tflops and not rows[name].skipped
    assert all(bool(row.ms) != bool(row.skipped) for row in rows.values())
    assert not any(row.skipped.startswith("wrong") for row in rows.values())
