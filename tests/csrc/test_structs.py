"""The structs that cross into the core: the same in C++ and in Python, and what Python may pass for an address."""

import inspect
import re
from array import array
from typing import get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor

from electra_fast.ops import _structs
from electra_fast.ops._core import core, why

pytestmark = pytest.mark.skipif(core is None, reason=why)
ops = [op for name in (dir(core) if core else []) if callable(op := getattr(core, name)) and not name.startswith("isa")]
OURS = {n: t for n, t in vars(_structs).items() if inspect.isclass(t) and t.__module__ == _structs.__name__}


def described() -> dict[str, list[str]]:
    """The structs that the ops' docs describe, and their fields."""
    found: dict[str, list[str]] = {}
    for op in ops:
        for name, fields in re.findall(r"^(\w+): \((.*)\)$", op.__doc__, re.MULTILINE):
            assert found.setdefault(name, fields.split(", ")) == fields.split(", ")
    return found


def test_the_core_and_python_agree_on_every_struct() -> None:
    # Arrays of these are arrays of addresses (`addresses`), whose order is that of other structs.
    arrays = {"Parameter", "Layer", "LayerKept", "DecoderLayer"}
    found = described()
    assert arrays < found.keys() and found.keys() - arrays == OURS.keys()
    for name, struct in OURS.items():
        assert list(struct._fields) == found[name], name


def test_a_doc_names_every_argument_and_what_it_is_made_of() -> None:
    doc = core.attention_block_fwd.__doc__.splitlines()
    assert doc[0].startswith(
        "attention_block_fwd(const AttentionBlock& block, const AttentionWeights<const float>& weig"
    )
    nested = ["AttentionBlock", "Rows", "Sequences", "Dropout", "AttentionWeights", "Affine", "AttentionKept", "Normed"]
    assert [line.split(":")[0] for line in doc[1:]] == nested
    assert "Parameter: (value, grad, exp_avg, exp_avg_sq)" in core.adamw.__doc__


def test_no_op_takes_more_than_ten_arguments() -> None:
    declared = {op.__name__: op.__doc__.splitlines()[0] for op in ops}
    assert len(declared) > 20
    assert {name: line for name, line in declared.items() if line.count(",") >= 10} == {}


def test_the_fields_that_are_structs_are_structs_in_python() -> None:
    nested = {n: get_type_hints(t) for n, t in OURS.items()}
    assert nested["AttentionBlock"]["x"] is _structs.Rows and nested["Attention"]["q"] is _structs.Heads
    leaves = {hint for hints in nested.values() for hint in hints.values() if hint not in OURS.values()}
    assert leaves == {Tensor, Tensor | None, int, float, bool}


@pytest.mark.parametrize(
    "pass_as",
    [
        lambda rows: rows,
        lambda rows: rows.numpy(),
        lambda rows: array("q", rows.tolist()),
        lambda rows: rows.data_ptr(),
    ],
    ids=["tensor", "numpy", "array", "integer"],
)
def test_an_address_may_be(pass_as) -> None:
    rows = torch.tensor([3, 2**40, -1])
    out, expected = np.zeros((3, 4), np.uint32), np.zeros((3, 4), np.uint32)
    core.philox_words(5, rows.data_ptr(), 3, 0, 0, expected.ctypes.data)
    core.philox_words(5, pass_as(rows), 3, 0, 0, out)
    assert (out == expected).all() and expected.any()


def test_what_is_no_address_or_no_struct_is_refused() -> None:
    rows, out = torch.arange(3), np.zeros((3, 4), np.uint8)
    with pytest.raises(AttributeError, match="data_ptr"):
        core.dropout_mask((3.5, 1, 26), 3, 4, 0, out, 1)
    with pytest.raises(ValueError, match="contiguous"):
        core.dropout_mask((np.arange(6)[::2], 1, 26), 3, 4, 0, out, 1)
    for dropout in ((rows, 1), (rows, 1, 26, 0), rows, 7):
        with pytest.raises(TypeError, match=r"Dropout is a tuple of \(row_ids, seed, threshold\), not a "):
            core.dropout_mask(dropout, 3, 4, 0, out, 1)
    with pytest.raises(TypeError, match="(?s)dropout_mask.*; 2 arguments were given"):
        core.dropout_mask((rows, 1, 26), 3)
    with pytest.raises(OverflowError, match="out of its range"):
        core.dropout_mask((rows, 1, 2**40), 3, 4, 0, out, 1)
