"""Options from dataclasses: a command is a function of dataclasses, and each of their fields is an option.

The field's name is the option's (`max_length` -> `--max-length`), its type says what is read, its default what is taken
otherwise, and its docstring is the help. The class whose docstring starts with "Name:" puts its fields into the group
of that name. tyro parses and draws the help: it keeps the names and forms that people expect (`--data FILE FILE`,
`--resume` without a value), where jsonargparse has `--max_length`, `--data [FILE,FILE]` and `--resume true`.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import io
import itertools
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import tyro

GROUPS = ("Task", "Data", "Model", "Optimisation", "Output", "Hardware")  # in the order of the help; others follow
METAVARS = {int: "N", float: "X", Path: "PATH", str: "NAME"}
WORDS = {int: ("a whole number", "whole numbers"), float: ("a number", "numbers")}
REWORDED = {  # tyro's sentences -> ours
    r"^Missing value for argument '(.*)'\. Expected.*": r"\1 needs a value",
    r"^Missing from .*?: (\S+).*": r"\1 is missing",
    r"^Error parsing ": "",
}
MARKERS = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)


class Default(NamedTuple):
    """A default that a command sets in place of its dataclasses', and what the help says of it."""

    value: Any
    words: str


def _none(arguments: Sequence[str]) -> Mapping[str, Default]:
    return {}


class Command(NamedTuple):
    """A function of dataclasses that returns the exit status; its docstring, which starts with an example, is the help.

    defaults: the defaults, by field, that depend on the arguments.
    variant: takes the command's name and the arguments, and gives another Command if they ask for it, else None.
    """

    run: Callable[..., int]
    defaults: Callable[[Sequence[str]], Mapping[str, Default]] = _none
    variant: Callable[[str, Sequence[str]], Any] = lambda name, arguments: None


class UsageError(Exception):
    """A command line that does not say what to do; the message is one sentence."""


def build(name: str, command: Command, arguments: Sequence[str]) -> list[Any] | None:
    """The dataclasses that a command takes, built from the arguments.

    name: of the command, as in `electra-fast name`. arguments: those after it.

    Returns None after --help, which is printed. Raises UsageError where the arguments do not fit, and what the
    dataclasses raise.
    """
    kinds = [kind for name, kind in get_type_hints(command.run).items() if name != "return"]
    program = f"electra-fast {name}"
    try:
        values = _parse(program, _groups(kinds, command.defaults(arguments)), _description(command), list(arguments))
    except UsageError as error:
        raise UsageError(f"{program}: {error} (see {program} --help)") from None
    return None if values is None else [kind(**{name: values[name] for name in docstrings(kind)}) for kind in kinds]


def _description(command: Command) -> str:
    """The docstring, indented, since tyro joins lines that start with a letter to one of any length."""
    lines = (inspect.getdoc(command.run) or "").splitlines()
    return "\n".join(f"  {line}" for line in lines if line)


@functools.cache
def docstrings(kind: type) -> dict[str, tuple[str, str]]:
    """(group, docstring) of each field of a dataclass, read from the class that declares it."""
    found: dict[str, tuple[str, str]] = {}
    for owner in kind.__mro__:
        if not dataclasses.is_dataclass(owner):
            continue
        title, colon, _ = (owner.__doc__ or "").partition(":")
        declaration = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        for field, text in itertools.pairwise(getattr(declaration, "body", [])):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(field.target, ast.Name):
                words = " ".join(ast.literal_eval(text.value).split())
                found.setdefault(field.target.id, (title if colon else "Other", words))
    return found


def _groups(kinds: list[type], defaults: Mapping[str, Default]) -> dict[str, list[Any]]:
    """Group -> its options as make_dataclass takes them, from the documented fields of all dataclasses."""
    groups: dict[str, list[Any]] = {title: [] for title in GROUPS}
    for kind in kinds:
        hints = get_type_hints(kind, include_extras=True)
        fields = {field.name: field for field in dataclasses.fields(kind)}
        for name, (group, text) in docstrings(kind).items():
            default = fields[name].default
            if name in defaults:
                default, words = defaults[name]
                text += f" (default: {words})"
            groups.setdefault(group, []).append(_option(name, hints[name], text, default))
    return {title: options for title, options in groups.items() if options}


def _option(name: str, kind: Any, text: str, default: Any) -> tuple[Any, ...]:
    """One field as make_dataclass takes it, annotated with the help, the words on its default, and the value's name."""
    text, _, chosen = text.partition(" (default: ")
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    plain = next(part for part in get_args(bare) if part is not NoneType) if NoneType in get_args(bare) else bare
    inner = get_args(plain)[0] if get_origin(plain) is tuple else plain
    if chosen:
        hint = f"(default: {chosen}"
    elif default is dataclasses.MISSING:
        hint = "(required)"
    else:
        hint = "" if plain is bool else f"(default: {' '.join(map(str, default)) if inner is not plain else default})"
    value = _metavar(name) if _positional(kind) else METAVARS.get(inner)
    metavar = f"{value} ..." if value and inner is not plain else value
    annotations = [tyro.conf.arg(help=text, help_behavior_hint=hint, metavar=metavar)]
    if inner in WORDS or get_origin(inner) is Literal:
        annotations.append(_reader(name, inner, inner is not plain))
    annotated = functools.reduce(lambda kind, extra: Annotated[kind, extra], annotations, kind)
    return (name, annotated, *([] if default is dataclasses.MISSING else [dataclasses.field(default=default)]))


def _reader(name: str, kind: Any, several: bool) -> tyro.constructors.PrimitiveConstructorSpec[Any]:
    """How tyro is to read a number or a choice, or several, so that a mistake is told in a sentence."""
    choices = get_args(kind)
    words = f"allowed: {', '.join(choices)}" if choices else f"it must be {WORDS[kind][several]}"

    def read(texts: list[str]) -> Any:
        try:
            values = tuple(choices[choices.index(text)] if choices else kind(text) for text in texts)
        except ValueError:
            raise UsageError(f"--{_dashed(name)} is {' '.join(texts)}; {words}") from None
        return values if several else values[0]

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*" if several else 1,
        metavar=f"{{{','.join(choices)}}}" if choices else METAVARS[kind],
        instance_from_str=read,
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )


def _parse(program: str, groups: dict[str, list[Any]], description: str, arguments: list[str]) -> dict[str, Any] | None:
    """The fields' values; None after --help. Raises UsageError."""
    kinds = [(title.lower(), dataclasses.make_dataclass(title, found, kw_only=True)) for title, found in groups.items()]
    whole: type[Any] = dataclasses.make_dataclass("Options", kinds, kw_only=True)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            parsed, unknown = tyro.cli(
                whole, prog=program, description=description, args=arguments, config=MARKERS, return_unknown_args=True
            )
    except SystemExit as stop:
        if not stop.code:
            return None
        raise UsageError(_missing(groups, arguments) or _sentence(box.getvalue())) from None
    if unknown:
        raise UsageError(_unknown(unknown[0], groups))
    values = {name: value for group in vars(parsed).values() for name, value in vars(group).items()}
    for name, _, *field in itertools.chain(*groups.values()):
        if values[name] == () and f"--{_dashed(name)}" in arguments:
            raise UsageError(f"--{_dashed(name)} needs a value")
        if values[name] == () and not field:
            raise UsageError(f"{_metavar(name)} is missing")
    return values


def _missing(groups: dict[str, list[Any]], arguments: list[str]) -> str:
    """Which required options are not among the arguments, in a sentence; empty if all are.

    An option that is not known comes first, since it is likely one of them misspelt.
    """
    given = [f"--{_dashed(argument[2:].partition('=')[0])}" for argument in arguments if argument.startswith("--")]
    options = list(itertools.chain(*groups.values()))
    known = {f"--{_dashed(name)}": kind for name, kind, *_ in options}
    missing = [f"--{_dashed(name)}" for name, kind, *default in options if not default and not _positional(kind)]
    missing = [flag for flag in missing if flag not in given]
    for flag in given:
        if missing and flag not in known:
            return _unknown(flag, groups)
    if len(missing) < 2:
        return "".join(f"{flag} is missing" for flag in missing)
    return f"{', '.join(missing[:-1])} and {missing[-1]} are missing"


def _positional(kind: Any) -> bool:
    return tyro.conf.Positional in getattr(kind, "__metadata__", ())


def _metavar(name: str) -> str:
    """What the help calls a positional argument: files -> FILE."""
    return name.upper().removesuffix("S")


def _sentence(box: str) -> str:
    """What tyro says in the box that it prints, between its title and the first rule, as one sentence."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)  # without colours
    lines = [line.strip("│ ") for line in plain.splitlines()[1:]]
    body = itertools.dropwhile(lambda line: not line.strip("─-"), lines)
    said = " ".join(itertools.takewhile(lambda line: line.strip("─-"), body))
    for pattern, words in REWORDED.items():
        said = re.sub(pattern, words, said)
    return said


def _unknown(argument: str, groups: dict[str, list[Any]]) -> str:
    if not argument.startswith("-"):
        return f"{argument} is one argument too many"
    options = [f"--{_dashed(name)}" for found in groups.values() for name, *_ in found]
    near = difflib.get_close_matches(argument.partition("=")[0], options, 1)
    return f"{argument} is not an option" + "".join(f"; did you mean {option}?" for option in near)


def _dashed(name: str) -> str:
    return name.replace("_", "-")
