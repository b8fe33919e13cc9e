"""The files around a published vocabulary: the words, the rules that cut text into them, and the tokens added to them.

    vocab.txt                 a token a line; ids are line numbers
    tokenizer_config.json     the rules, and in newer directories the added tokens with their flags
    added_tokens.json         added tokens of older directories: token -> id
    special_tokens_map.json   names of special tokens, some of which may be added

An added token is found in the text before the rest is cut into words, and is one id: `[E1]`, or `covid19`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken

from electra_fast.storage.atomic import parse_json, shortened

CONFIG, SPECIAL_MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
LISTS = ("additional_special_tokens", "extra_special_tokens")  # transformers' older and newer name
SINGLE = ("bos_token", "eos_token")  # special tokens beside ELECTRA's five


class Rules(NamedTuple):
    """How BERT's normaliser treats text. strip_accents: None strips them where text is lower-cased."""

    lowercase: bool = True
    strip_accents: bool | None = None
    split_chinese: bool = True  # Chinese characters are words of their own


def read_vocabulary(path: Path) -> list[str]:
    """The tokens of a vocab.txt, in the order of their ids; raises ValueError, naming the line, where one is no id."""
    try:
        tokens = [line.rstrip("\r") for line in path.read_bytes().decode().removesuffix("\n").split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error}); a vocab.txt holds one token a line") from error
    seen: dict[str, int] = {}
    for number, token in enumerate(tokens, 1):
        if not token or token in seen:
            what = f"repeats {token!r} of line {seen[token]}" if token else "is empty"
            raise ValueError(f"{path}, line {number} {what}; ids are line numbers, so each line holds one new token")
        seen[token] = number
    return tokens


def read_rules(directory: Path) -> Rules:
    """The rules that the tokenizer_config.json of a directory has for its vocab.txt; BERT's if there is none.

    Raises ValueError, which says what to do, for a tokenizer that cuts text into words by a program of its own.
    """
    path = directory / CONFIG
    config = _read(path)
    japanese = "BertJapanese" in str(config.get("tokenizer_class"))
    for key, allowed in (("word_tokenizer_type", "basic"), ("subword_tokenizer_type", "wordpiece")):
        if japanese and (kind := config.get(key, allowed)) != allowed:
            advice = (
                f'cut your text into words with {kind} yourself (spaces between the words) and write "basic" there'
                if allowed == "basic"
                else "take a model with a WordPiece vocabulary"
            )
            raise ValueError(
                f"{path}: {key} is {shortened(kind)}, which electra_fast does not have ({allowed!r} is allowed); "
                f"{advice}, or put a tokenizer.json of the same tokenizer beside it"
            )
    rules = Rules(lowercase=not japanese, split_chinese=not japanese)
    return Rules(
        _flag(path, config, "do_lower_case", rules.lowercase),
        None if config.get("strip_accents") is None else _flag(path, config, "strip_accents", False),
        _flag(path, config, "tokenize_chinese_chars", rules.split_chinese),
    )


def added_tokens(directory: Path, vocabulary: Mapping[str, int]) -> list[AddedToken]:
    """The tokens that the files of a directory add to a vocabulary, as transformers reads them.

    vocabulary: token -> id. Tokens of it may be among those returned, since they are to be found in the text whole.

    Returns the tokens in the order of their ids. Raises ValueError, naming the file, if an id is not the next free one.
    """
    config, special = _read(directory / CONFIG), _read(directory / SPECIAL_MAP)
    numbered: dict[int, AddedToken] = {}
    path = directory / CONFIG
    if isinstance(listed := config.get("added_tokens_decoder"), dict):
        for number, entry in listed.items():
            numbered[_id(path, number)] = _token(path, entry, normalized=False)
    else:
        path = directory / ADDED
        for token, number in _read(path).items():
            numbered[_id(path, number)] = _token(path, token, normalized=True)
    free = max(vocabulary.values(), default=-1) + 1
    tokens: dict[str, AddedToken] = {}
    for number, added in sorted(numbered.items()):
        expected = vocabulary.get(added.content, free)
        if number != expected:
            raise ValueError(
                f"{path} gives {shortened(added.content)} the id {number}, and {expected} is its place in the "
                f"vocabulary; number added tokens from the end of the vocabulary on, without holes"
            )
        free += added.content not in vocabulary
        tokens[added.content] = added
    for name, values in ((SPECIAL_MAP, special), (CONFIG, config)):
        entries = [values[key] for key in SINGLE if values.get(key)]
        for key in LISTS:
            several = values.get(key) or []
            if not isinstance(several, list | dict):
                raise ValueError(f"{directory / name}: {key} is {shortened(several)}; a list is allowed: correct it")
            entries += several.values() if isinstance(several, dict) else several
        for entry in entries:
            added = _token(directory / name, entry, normalized=False, special=True)
            tokens.setdefault(added.content, added)
    return list(tokens.values())


def _token(path: Path, entry: Any, **defaults: bool) -> AddedToken:
    """An added token from its text or from an object with its text and flags."""
    flags = defaults
    if isinstance(entry, dict):
        flags = defaults | {
            name: _flag(path, entry, name, defaults.get(name, False)) for name in FLAGS if name in entry
        }
        entry = entry.get("content")
    if not isinstance(entry, str) or not entry:
        raise ValueError(f"{path} names an added token {shortened(entry)}; a text is allowed: correct it there")
    return AddedToken(entry, **flags)


def _id(path: Path, number: Any) -> int:
    try:
        if not isinstance(number, int | str) or not 0 <= int(number) < 1 << 31:
            raise ValueError
    except ValueError:
        message = f"{path} gives an added token the id {shortened(number)}; a whole number from 0 is allowed"
        raise ValueError(f"{message}: correct it there") from None
    return int(number)


def _flag(path: Path, values: Mapping[str, Any], name: str, default: bool) -> bool:
    value = default if values.get(name) is None else values[name]
    if not isinstance(value, bool):
        raise ValueError(f"{path}: {name} is {shortened(value)}; true or false are allowed: correct it there")
    return value


def _read(path: Path) -> dict[str, Any]:
    return parse_json(path.read_bytes(), path) if path.is_file() else {}
