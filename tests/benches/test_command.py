"""Wrong options of `python benches` and of its tools are told in a sentence, before anything is measured."""

import importlib
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from racing import command

BENCHES = Path(__file__).parents[2] / "benches"
main: Any = runpy.run_path(str(BENCHES / "__main__.py"), run_name="benches")["main"]


def tool(name: str) -> Any:
    return importlib.import_module(f"tools.{name}").main


NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")


def test_shapes() -> None:
    assert [command.shape(text) for text in ("16x128", "2x16 text", "1x8 ragged")] == [
        "16x128",
        "2x16 text",
        "1x8 ragged",
    ]
    assert command.plain_shape("4x32") == "4x32"


@pytest.mark.parametrize(
    ("run", "arguments", "error"),
    [
        (main, "linear --models huge", "argument --models: invalid choice: 'huge' (choose from "),
        (main, "linear --shapes 16", "argument --shapes: '16' is no batch shape; write sequences x tokens"),
        (main, "linear --shapes 0x16", "'0x16' is no batch shape"),
        pytest.param(main, "roofs --device cuda", "torch sees no CUDA device here; take --device cpu", marks=NO_GPU),
        pytest.param(
            tool("gpu"), "--phase a", "torch sees no CUDA device here; --dry-run prints the plan", marks=NO_GPU
        ),
        (main, "linear --rounds 0", "--rounds is 0; at least 1 is needed"),
        (tool("launches"), "--model huge", "argument --model: invalid choice: 'huge'"),
        (tool("launches"), "--shape 2x16x3", "argument --shape: '2x16x3' is no batch shape"),
        (
            tool("memory"),
            "--model tiny --shape 2x16_text",
            "'2x16 text' has sequences of different lengths; write a plain",
        ),
        (tool("tune"), "linear --dry-run --shapes 2x16_text", "has sequences of different lengths"),
        (
            tool("loss_curves"),
            "--corpus nowhere --json x.jsonl",
            "--corpus: nowhere is no corpus: it has no corpus.json",
        ),
    ],
)
def test_a_mistake_is_told(run: Any, arguments: str, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run([word.replace("_", " ") for word in arguments.split()])
    assert stop.value.code == 2 and error in capsys.readouterr().err


def test_a_pattern_that_no_kernel_matches(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    compile = importlib.import_module("tools.compile")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(compile, "CALLS", [])
    with pytest.raises(SystemExit):
        compile.main(["--only", "atention"])
    assert "no kernel matches --only atention" in capsys.readouterr().err
