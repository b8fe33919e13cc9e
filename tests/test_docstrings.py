"""Docstrings of public names describe every argument and field; those of ops also results, errors, cost and source."""

import dataclasses
import inspect
import re

import pytest

import electra_fast
from electra_fast import ops
from electra_fast.cli.options import docstrings

CONFIGS = ("Batch", "ElectraConfig", "ElectraOutput", "EncoderDecoderConfig", "NetworkConfig", "PretrainConfig")
CLASSES = ("Discriminator", "Electra", "EncoderDecoder", "Generator", "Pretrainer")
FUNCTIONS = ("accelerate", "evaluate", "register_attention")


def undescribed(public: object, docstring: str) -> set[str]:
    """The parameters that no line `name: text` or `name, name: text` of the docstring describes."""
    lines = re.findall(r"^ *(\w+(?:, \w+)*): ", docstring, re.M)
    described = {name for line in lines for name in line.split(", ")}
    return set(inspect.signature(public).parameters) - described  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ops.__all__)
def test_ops_say_all_there_is_to_know(name: str) -> None:
    op = getattr(ops, name)
    assert not undescribed(op, op.__doc__)
    for part in ("Returns ", "Raises ", "Cost: ", "Source: "):
        assert f"\n    {part}" in op.__doc__, part


@pytest.mark.parametrize("name", CLASSES + FUNCTIONS)
def test_public_arguments_are_described(name: str) -> None:
    public = getattr(electra_fast, name)
    assert not undescribed(public, public.__doc__)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_has_a_docstring(name: str) -> None:
    kind = getattr(electra_fast, name)
    assert docstrings(kind).keys() >= {field.name for field in dataclasses.fields(kind)}


def test_no_public_name_is_left_out() -> None:
    assert {*CONFIGS, *CLASSES, *FUNCTIONS, "info", "ops"} == {*dir(electra_fast)}
