"""The entry point: the first screen, mistakes in a sentence, exit statuses, Ctrl-C, and readers that leave early."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from electra_fast.cli.main import COMMANDS, SCREEN, main

ROOT = Path(__file__).resolve().parents[2]


MAIN = "import sys\nfrom electra_fast.cli.main import main\n"


def python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run code in another process, in which Ctrl-C is not ignored, whatever started these tests."""
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{code}"
    return subprocess.run([sys.executable, "-c", code], text=True, cwd=ROOT, **({"capture_output": True} | options))


def test_the_first_screen(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert main(arguments) == 0
        said = capsys.readouterr()
        assert said.out.startswith(SCREEN) and said.err == ""
        assert all(f"\n  {command} " in said.out for command in COMMANDS)
        assert max(map(len, said.out.splitlines())) <= 80


def test_as_a_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    done = subprocess.run([sys.executable, "-m", "electra_fast"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, capsys.readouterr().out, "")
    done = subprocess.run([sys.executable, "-m", "electra_fast", "x"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("arguments", [[], ["pretrain", "--help"], ["finetune", "--help"], ["predict", "--modle"]])
def test_help_loads_no_torch(arguments: list[str]) -> None:
    done = python(f"{MAIN}main({arguments})\nprint('torch' in sys.modules, file=sys.stderr)")
    assert done.stderr.splitlines()[-1] == "False"


FINETUNE = "finetune --task qa --model m --train t --dev d --out o"
HELP = "(see electra-fast {} --help)"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train", "electra-fast: train is not a command; allowed: " + ", ".join(COMMANDS)),
        ("--steps 3", "electra-fast: --steps is not a command; allowed: " + ", ".join(COMMANDS)),
        ("pretrain --stpes 3", "electra-fast pretrain: --stpes is not an option; did you mean --steps?"),
        ("pretrain --steps many", "electra-fast pretrain: --steps is many; it must be a whole number"),
        ("pretrain --steps 1.5", "electra-fast pretrain: --steps is 1.5; it must be a whole number"),
        ("pretrain --vocab-size None", "electra-fast pretrain: --vocab-size is None; it must be a whole number"),
        ("pretrain --learning-rate x", "electra-fast pretrain: --learning-rate is x; it must be a number"),
        ("pretrain --model huge", "--model is huge; allowed: tiny, small, small_plus, base, large"),
        ("pretrain --log-to disk", "--log-to is disk; allowed: tensorboard, wandb"),
        ("pretrain --steps", "electra-fast pretrain: --steps needs a value"),
        ("pretrain --data --resume", "electra-fast pretrain: --data needs a value"),
        ("pretrain text.txt", "electra-fast pretrain: text.txt is one argument too many"),
        ("pretrain --resume yes", "electra-fast pretrain: yes is one argument too many"),
        ("prepare --out x", "electra-fast prepare: FILE is missing"),
        ("prepare a.txt", "electra-fast prepare: --out is missing"),
        ("convert a", "electra-fast convert: OUT is missing"),
        ("finetune --task qa", "electra-fast finetune: --model, --train, --dev and --out are missing"),
        (
            f"{FINETUNE} --task sorting",
            "--task is sorting; allowed: classification, multilabel, regression, tagging, qa",
        ),
        ("finetune --trian t", "electra-fast finetune: --trian is not an option; did you mean --train?"),
        (
            f"{FINETUNE} --seeds 1 b",
            "electra-fast finetune: --seeds is 1 b; it must be whole numbers",
        ),
        ("evaluate --model m", "electra-fast evaluate: --data is missing"),
        ("info now", "electra-fast info: now is one argument too many"),
    ],
)
def test_a_command_line_that_does_not_fit(
    line: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")  # tyro wraps what it says
    assert main(line.split()) == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.count("\n") == 1 and said in found.err
    command = line.split()[0]
    assert command not in COMMANDS or found.err.endswith(HELP.format(command) + "\n")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pretrain --batch-size 0", "batch_size is 0; it must be at least 1"),
        ("pretrain --dropout 1.5", "dropout is 1.5; it must lie between 0 (none) and 1, not including 1"),
        ("pretrain --mask-prob 2", "mask_prob is 2.0; a probability lies between 0 and 1"),
        ("predict --model m --at-once 0", "at_once is 0; it must be at least 1"),
        ("predict --model m a b --out o", "out is o, one file of predictions, and 2 files are given; name one"),
        (f"{FINETUNE} --seeds 1 1", "seeds are (1, 1); one or more"),
    ],
)
def test_a_value_that_does_not_fit(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 1
    found = capsys.readouterr()
    assert found.out == "" and found.err.startswith(f"electra-fast: {said}") and found.err.count("\n") == 1


def test_help_where_the_terminal_knows_no_boxes() -> None:
    """In a locale without UTF-8, tyro draws with spaces, and errors are read from such boxes too."""
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    done = python(f"{MAIN}sys.exit(main(['pretrain', '--help']))", env=environment)
    assert done.returncode == 0 and "--steps N" in done.stdout and done.stdout.isascii(), done.stderr
    done = python(f"{MAIN}sys.exit(main(['pretrain', '--model', 'huge']))", env=environment)
    assert done.returncode == 2 and "--model is huge; allowed: tiny" in done.stderr


INTERRUPT = """
import os, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            try:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(1000): pass
            except BaseException: pass  # as code that is imported may do
sys.meta_path.insert(0, Interrupt())
from electra_fast.cli.main import main
sys.exit(main({}))
"""


@pytest.mark.parametrize("arguments", [["info"], ["pretrain", "--out", "/nowhere/at/all"], ["predict", "--model", "x"]])
def test_interrupted_while_torch_is_imported(arguments: list[str]) -> None:
    done = python(INTERRUPT.replace("{}", repr(arguments)))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "electra-fast: interrupted\n")


def test_interrupted_while_it_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("electra_fast.interop.convert.convert", interrupt)
    assert main(["convert", "a", "b"]) == 130
    assert capsys.readouterr() == ("", "electra-fast: interrupted\n")


@pytest.mark.parametrize(
    "arguments", [["info"], *(pytest.param(words, marks=pytest.mark.slow) for words in ([], ["pretrain", "--help"]))]
)
def test_a_reader_that_leaves(arguments: list[str]) -> None:
    """`electra-fast info | head -1`: the pipe is closed before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    done = python(
        f"{MAIN}sys.exit(main({arguments}))",
        capture_output=False, stdout=writer, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
