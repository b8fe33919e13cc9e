"""What tests of Triton's kernels share: sizes that suit the interpreter, which takes about as long for a large block as
for a small one."""

import pytest
import torch


@pytest.fixture(autouse=True)
def wide_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of sum_partials take many columns each, so that there are few of them."""
    if not torch.cuda.is_available():
        from electra_fast.kernels.parts import partials

        monkeypatch.setattr(partials, "BLOCK", 16 * partials.BLOCK)
        monkeypatch.setitem(partials.SUM, "BLOCK_N", 32 * partials.SUM["BLOCK_N"])
