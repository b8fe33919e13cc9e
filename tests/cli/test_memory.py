"""What the command line says where the memory does not suffice."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from electra_fast.cli import main as cli

MORE = "lower --batch-size or --max-length, or take a smaller model or a smaller file\n"


@pytest.mark.parametrize(
    ("ask", "amount"),
    [
        (lambda: torch.empty(1 << 60, dtype=torch.int8), f" for {1 << 60} bytes more"),
        (lambda: np.empty(1 << 60, np.int8), " for 1.00 EiB more"),
        (lambda: bytearray(1 << 60), ""),
    ],
)
def test_an_allocator_that_fails_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ask: Callable[[], Any], amount: str
) -> None:
    monkeypatch.setattr(cli, "_run", lambda arguments: ask())
    assert cli.main(["info"]) == 1
    assert capsys.readouterr().err == f"electra-fast: there is not enough memory{amount}; {MORE}"


def test_other_runtime_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_run", lambda arguments: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        cli.main(["info"])


def test_cudas_allocator(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def ask(arguments: list[str]) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 1")

    monkeypatch.setattr(cli, "_run", ask)
    assert cli.main(["info"]) == 1
    assert capsys.readouterr().err == f"electra-fast: there is not enough memory for 20.00 MiB more; {MORE}"
