"""Options and the dataclasses they become: names, meanings, defaults, help, and what is refused."""

import dataclasses
import importlib
import inspect
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

from electra_fast.cli.main import COMMANDS, SCREEN, main
from electra_fast.cli.options import build
from electra_fast.tasks.examples import Columns
from electra_fast.train.recipes import PAPER, ModelName, recipe_of
from electra_fast.train.settings import PretrainConfig, RunConfig

FINETUNE = "--task qa --model m --train t --dev d --out o"


def options(line: str) -> dict[str, Any]:
    """The fields of all dataclasses that a command line becomes."""
    name, *arguments = shlex.split(line)
    commands = importlib.import_module(f"electra_fast.cli.{COMMANDS[name][0]}")
    built = build(name, commands.COMMANDS[name], arguments)
    return {key: value for config in built or [] for key, value in vars(config).items()}


PREPARE = dict(
    files=(Path("a.txt"), Path("b.gz")), out=Path("o"), vocab_size=None, tokenizer=None, max_length=128,
    packing="pairs", cased=False, no_strip_accents=False, heldout=0.01, processes=None, seed=0,
)  # fmt: skip
PRETRAIN = dict(
    data=(), tokenizer=None, vocab_size=None, model="tiny", objective="electra", steps=1200, batch_size=32,
    max_length=None, learning_rate=7e-4, micro_batch_size=None, warmup_steps=None, out=Path("electra-out"),
    resume=False, allow_change=(), save_every=1000, keep=3, eval_every=100, log_every=10, seed=0, device="auto",
    precision="auto", non_finite="stop", init_generator=None, init_discriminator=None, faithful=False, log_to=None,
    packing=None, mask_prob=None, dropout=None, threads=None, stop_when_dead=False, recipe=None,
    initial_weights=None, embedding_sharing=None, generator_share=1 / 6, generator_learning_rate=2e-3, beta2=0.98,
)  # fmt: skip
PAPERS = dict(generator_share=0.0, generator_learning_rate=None, beta2=0.999)
TASK = dict(
    task="qa", model=Path("m"), train=Path("t"), dev=Path("d"), out=Path("o"), text_column=None, text2_column=None,
    label_column=None, id_column=None, seeds=(0,), random_init=False, device="auto", log_every=10, epochs=None,
    learning_rate=1e-4, layerwise_decay=0.8, weight_decay=0.01, batch_size=32, max_length=None, stride=128,
    head="google", precision="auto", faithful=False, threads=None,
)  # fmt: skip
EVALUATE = dict(model=Path("m"), data=Path("d"), out=None, text_column=None, device="auto", precision="auto")
PREDICT = dict(files=(), model=Path("m"), out=None, at_once=256, id_column=None, device="auto", precision="auto")


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("prepare a.txt b.gz --out o", PREPARE),
        ("pretrain", PRETRAIN),
        (f"finetune {FINETUNE}", TASK),
        ("evaluate --model m --data d", EVALUATE),
        ("predict --model m", PREDICT),
        ("convert s o", dict(source=Path("s"), out=Path("o"), tokenizer=None)),
        ("info", {}),
    ],
)
def test_what_is_taken_without_options(line: str, wanted: dict[str, Any]) -> None:
    found = options(line)
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("prepare --out o a.txt b.gz --vocab-size 7", dict(vocab_size=7)),
        ("prepare a.txt b.gz --out o --tokenizer v.txt", dict(tokenizer=Path("v.txt"))),
        ("prepare a.txt b.gz --out o --max-length 64", dict(max_length=64)),
        ("prepare a.txt b.gz --out o --packing plain", dict(packing="plain")),
        ("prepare a.txt b.gz --out o --cased", dict(cased=True)),
        ("prepare a.txt b.gz --out o --no-strip-accents", dict(no_strip_accents=True)),
        ("prepare a.txt b.gz --out=o --heldout=0.5", dict(heldout=0.5)),
        ("prepare a.txt b.gz --out o --processes 2", dict(processes=2)),
        ("prepare a.txt b.gz --out o --seed -3", dict(seed=-3)),
    ],
)
def test_options_of_prepare(line: str, changed: dict[str, Any]) -> None:
    assert options(line) == PREPARE | changed


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("--data a b", dict(data=(Path("a"), Path("b")))),
        ("--tokenizer t", dict(tokenizer=Path("t"))),
        ("--vocab-size 7", dict(vocab_size=7)),
        ("--model base", dict(model="base", batch_size=256, learning_rate=2e-4, steps=766_000) | PAPERS),
        ("--recipe paper", dict(recipe="paper", batch_size=128, learning_rate=6e-4, steps=2000) | PAPERS),
        ("--model base --recipe few", dict(model="base", recipe="few")),
        ("--initial-weights random --embedding-sharing none", dict(initial_weights="random", embedding_sharing="none")),
        ("--model=small --steps 5", dict(model="small", batch_size=128, learning_rate=5e-4, steps=5) | PAPERS),
        (
            "--objective mlm",
            dict(objective="mlm", learning_rate=2e-3, generator_share=0.0, generator_learning_rate=None),
        ),
        ("--steps 7 --batch-size 4", dict(steps=7, batch_size=4)),
        ("--max-length 64", dict(max_length=64)),
        ("--learning-rate 1e-3", dict(learning_rate=1e-3)),
        ("--micro-batch-size 2", dict(micro_batch_size=2)),
        ("--warmup-steps 0", dict(warmup_steps=0)),
        ("--out o --resume", dict(out=Path("o"), resume=True)),
        ("--allow-change a.b c", dict(allow_change=("a.b", "c"))),
        ("--save-every 1 --keep 2", dict(save_every=1, keep=2)),
        ("--eval-every 3 --log-every 4", dict(eval_every=3, log_every=4)),
        ("--seed 5 --device cpu", dict(seed=5, device="cpu")),
        ("--precision float32 --non-finite skip", dict(precision="float32", non_finite="skip")),
        ("--init-generator g --init-discriminator d", dict(init_generator=Path("g"), init_discriminator=Path("d"))),
        ("--faithful --log-to wandb", dict(faithful=True, log_to="wandb")),
        ("--packing plain --mask-prob 0.3 --dropout 0", dict(packing="plain", mask_prob=0.3, dropout=0.0)),
    ],
)
def test_options_of_pretrain(line: str, changed: dict[str, Any]) -> None:
    found = options(f"pretrain {line}")
    assert {name: found[name] for name in PRETRAIN} == PRETRAIN | changed


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("--text-column a --text2-column b", dict(text_column="a", text2_column="b")),
        ("--label-column a --id-column b", dict(label_column="a", id_column="b")),
        ("--seeds 3", dict(seeds=(3,))),
        ("--seeds 3 1 2", dict(seeds=(3, 1, 2))),
        ("--random-init --device cpu", dict(random_init=True, device="cpu")),
        ("--log-every 1 --epochs 0.5", dict(log_every=1, epochs=0.5)),
        ("--learning-rate 1 --layerwise-decay 0.5", dict(learning_rate=1.0, layerwise_decay=0.5)),
        ("--weight-decay 0 --batch-size 2", dict(weight_decay=0.0, batch_size=2)),
        ("--max-length 9 --stride 4", dict(max_length=9, stride=4)),
        ("--head huggingface --precision bfloat16", dict(head="huggingface", precision="bfloat16")),
        ("--faithful --task tagging", dict(faithful=True, task="tagging")),
    ],
)
def test_options_of_finetune(line: str, changed: dict[str, Any]) -> None:
    found = options(f"finetune {FINETUNE} {line}")
    assert {name: found[name] for name in TASK} == TASK | changed


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("evaluate --model m --data d --out o", EVALUATE | dict(out=Path("o"))),
        ("evaluate --model m --data d --text-column a", EVALUATE | dict(text_column="a")),
        ("evaluate --model m --data d --device cpu", EVALUATE | dict(device="cpu")),
        ("evaluate --model m --data d --precision float32", EVALUATE | dict(precision="float32")),
        ("predict a b --model m", PREDICT | dict(files=(Path("a"), Path("b")))),
        ("predict --model m a --out o", PREDICT | dict(files=(Path("a"),), out=Path("o"))),
        ("predict --model m --at-once 1 --id-column i", PREDICT | dict(at_once=1, id_column="i")),
        ("predict --model m --device cpu --precision float32", PREDICT | dict(device="cpu", precision="float32")),
        ("convert s o --tokenizer t", dict(source=Path("s"), out=Path("o"), tokenizer=Path("t"))),
    ],
)
def test_options_of_the_others(line: str, changed: dict[str, Any]) -> None:
    found = options(line)
    assert {name: found[name] for name in changed} == changed


def test_every_parameter_of_prepare_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `prepare` is called with, by the flags; only the bar is not asked for."""
    from electra_fast.data import prepare

    calls: list[dict[str, Any]] = []
    signature = inspect.signature(prepare.prepare)
    monkeypatch.setattr(prepare, "prepare", lambda *a, **k: calls.append(signature.bind(*a, **k).arguments))
    for flags in ("", "--cased", "--no-strip-accents"):
        assert main(["prepare", "a.txt", "b.gz", "--out", "o", *flags.split()]) == 0
    rest = {name: PREPARE[name] for name in PREPARE if name not in ("cased", "no_strip_accents")}
    plain = rest | dict(files=[Path("a.txt"), Path("b.gz")], lowercase=True, strip_accents=None)
    assert calls == [plain, plain | dict(lowercase=False), plain | dict(strip_accents=False)]
    assert set(signature.parameters) - set(plain) == {"progress"}


def test_columns_are_named_or_left_to_the_benchmark() -> None:
    from electra_fast.cli.tasks import ColumnOptions

    assert ColumnOptions().columns() is None
    assert ColumnOptions(label_column="y").columns() == Columns(label="y")


def test_recipes_are_of_the_models() -> None:
    """Without a name tiny has the recipe few; its fields are fields, and its values what `PretrainConfig` gets."""
    assert get_args(ModelName) == tuple(PAPER)
    for model, (batch_size, rate, steps, length) in PAPER.items():
        config = PretrainConfig.recipe(model, "paper")
        assert (config.batch_size, config.learning_rate, config.steps) == (batch_size, rate, steps)
        run = RunConfig(out=Path("out"), model=model, recipe="paper")
        assert run.chosen("max_length") == length and run.chosen("initial_weights") is None
        assert config.generator_steps == 0
    assert PretrainConfig.recipe("tiny") == PretrainConfig.recipe("tiny", "few") == PretrainConfig.recipe("base", "few")
    assert PretrainConfig.recipe("base") == PretrainConfig.recipe("base", "paper")
    few = recipe_of("tiny", "few", "electra")
    assert set(few["run"]) <= {field.name for field in fields(RunConfig)}
    assert PretrainConfig.recipe("tiny", steps=3).steps == 3
    assert RunConfig(out=Path("out"), packing="pairs").chosen("packing") == "pairs"


def test_recipe_of_one_network_has_no_share_of_the_steps() -> None:
    alone = PretrainConfig.recipe("tiny", "few", "mlm")
    assert alone.generator_steps == 0
    assert alone.learning_rate == PretrainConfig.recipe("tiny", "few").generator_learning_rate


def test_objectives_are_those_of_the_settings() -> None:
    from electra_fast.train.settings import ObjectiveName
    from electra_fast.train.start import OBJECTIVES

    assert get_args(ObjectiveName) == tuple(OBJECTIVES)


@pytest.fixture(params=COMMANDS)
def help_of(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[str, str]:
    """A command and its help on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main([request.param, "--help"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return request.param, said.out


def test_help(help_of: tuple[str, str]) -> None:
    """A runnable example first, no line too long, and a default in words for every option that is not required."""
    command, text = help_of
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "None" not in text
    words = re.sub(r"[│|\s]+", " ", text)
    example = re.search(r"Example: (?:echo .* \| )?electra-fast (.*?)(?<!\\)\n", text.replace("\\\n", "")).group(1)
    assert lines[0].startswith("usage:") and lines[2].startswith("  Example: ")
    assert example.split()[0] == command and options(example) is not None
    with_values = re.findall(r"^(?:│ | ) ?--\S+ \S", text, re.M)
    assert len(with_values) <= len(re.findall(r"\((?:default: [^)]|required\))", words))


def test_help_groups_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--help"]) == 0
    titles = re.findall(r"(\w+) options", capsys.readouterr().out)
    assert titles == ["data", "model", "optimisation", "output", "hardware"]


def test_help_says_what_the_model_is_trained_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--model", "large", "--help"]) == 0
    said = re.sub(r"[│|\s]+", " ", capsys.readouterr().out)
    assert "Optimiser steps. (default: 400000, the recipe of large)" in said


def test_help_of_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--help"]) == 0
    said = re.sub(r"[│|\s]+", " ", capsys.readouterr().out)
    wanted = "Random seeds: one model is trained per seed. A single number N means seeds 0 to N-1. (default: 0)"
    assert f"--seeds N ... {wanted}" in said


def test_every_field_is_documented() -> None:
    """So that each field of a config is an option; the columns have options of their own."""
    from electra_fast.cli.options import docstrings
    from electra_fast.tasks.settings import FinetuneConfig, FinetuneRun
    from electra_fast.train.settings import RunConfig

    for kind in (RunConfig, PretrainConfig, FinetuneRun, FinetuneConfig):
        names = {field.name for field in dataclasses.fields(kind)} - {"columns"}
        assert set(docstrings(kind)) == names, kind


def test_screen_of_commands_that_work() -> None:
    for line in SCREEN.replace("\\\n", "").splitlines():
        if "  electra-fast " in line or "| electra-fast " in line:
            assert options(line.split("electra-fast ")[1])
