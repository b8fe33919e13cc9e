"""Published tokenizers: the files that name added tokens and rules. Ids are transformers', or known by hand."""

import json
import lzma
import os
import shutil
from pathlib import Path

import pytest

from electra_fast.data.tokenizer import SPECIAL_TOKENS, Tokenizer

DATA = Path(os.environ.get("ELECTRA_FAST_DATA", Path(__file__).parents[3] / "shared/data"))
WORDS = [
    *SPECIAL_TOKENS,
    "bill",
    "said",
    "co",
    "##vid",
    "##19",
    "x",
    "[",
    "e",
    "##1",
    "]",
    "中",
    "[unused1]",
]  # 0 to 16
BOTH = ["[E1]", "[/E1]"]
PLAIN = dict(lstrip=False, rstrip=False, single_word=False)
ADDED = {  # what is beside the vocab.txt
    "added_tokens.json": {"added_tokens.json": {"covid19": 17, "[E1]": 18, "Bill said": 19}},
    "numbered in another order": {"added_tokens.json": {"b9": 18, "a9": 17, "[MASK]": 4}},
    "special, with ids": {
        "added_tokens.json": {"[E1]": 17, "[/E1]": 18},
        "special_tokens_map.json": {"additional_special_tokens": BOTH, "mask_token": "[MASK]"},
    },
    "special, without ids": {"special_tokens_map.json": {"additional_special_tokens": BOTH}},
    "another special token": {"special_tokens_map.json": {"additional_special_tokens": BOTH, "eos_token": "</s>"}},
    "in the configuration": {"tokenizer_config.json": {"additional_special_tokens": [*BOTH, "[unused1]"]}},
    "by their newer name": {"tokenizer_config.json": {"extra_special_tokens": BOTH}},
    "with all flags": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "4": {"content": "[MASK]", "special": True, "normalized": False, **PLAIN},
                "17": {"content": "[E1]", "special": True, "normalized": False, **PLAIN | {"rstrip": True}},
                "18": {"content": "[/E1]", "special": True, "normalized": False, **PLAIN | {"lstrip": True}},
                "19": {"content": "covid19", "special": False, "normalized": True, **PLAIN | {"single_word": True}},
            },
            "additional_special_tokens": BOTH,
        }
    },
}
LINES = ["[E1] bill [/E1] said", "COVID19 covid19 xcovid19x covid", "[e1] x", "bill said Bill Said", "[unused1] 中 x中"]
LINES += ["a9 b9 x", "x</s>x", ""]


def directory(path: Path, files: dict[str, dict], vocabulary: str | None = None) -> Path:
    path.mkdir()
    (path / "vocab.txt").write_text(vocabulary or "\n".join(WORDS) + "\n", "utf-8")
    (path / "config.json").write_text(json.dumps({"model_type": "electra"}))
    for name, content in files.items():
        (path / name).write_text(json.dumps(content))
    return path


def test_an_added_token_is_one_id(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(directory(tmp_path / "d", ADDED["added_tokens.json"]))
    assert (tokenizer.vocab_size, tokenizer.base_size) == (20, 17)
    assert tokenizer.encode(["[E1] bill COVID19 x", "bill said x", "[MASK] covid"])[:2] == [[18, 5, 17, 10], [19, 10]]
    assert tokenizer.encode_offsets("x [e1]bill") == ([10, 18, 5], [(0, 1), (2, 6), (6, 10)])
    assert tokenizer.decode([18, 5]) == "[e1] bill"  # as transformers shows tokens that are found in lower-cased text
    special = Tokenizer.load(directory(tmp_path / "s", ADDED["special, without ids"]))
    assert special.encode(["[E1] bill [/E1]", "[e1]"]) == [[17, 5, 18], [11, 12, 13, 14]]
    flags = [{"content": text, "normalized": False, **PLAIN} for text in BOTH]  # as transformers 4 writes them
    path = directory(tmp_path / "f", {"special_tokens_map.json": {"additional_special_tokens": flags}})
    assert Tokenizer.load(path).sha256 == special.sha256
    assert not {2, 3, 4} & set(special.encode(["[CLS] [SEP] [MASK]"])[0])  # text that speaks of ELECTRA's own tokens


@pytest.mark.parametrize("name", ADDED)
def test_added_tokens_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    """Read from vocab.txt or from the tokenizer.json that transformers makes of it; kept when they are saved."""
    transformers = pytest.importorskip("transformers")
    path = directory(tmp_path / "d", ADDED[name])
    theirs, ours = transformers.AutoTokenizer.from_pretrained(path), Tokenizer.load(path)
    wanted = theirs(LINES, add_special_tokens=False)["input_ids"]
    assert ours.encode(LINES) == wanted and ours.vocab_size == len(theirs) > 17 >= ours.base_size >= 16
    assert [ours.encode_offsets(line)[0] for line in LINES] == wanted
    ours.save(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    assert (
        transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")(LINES, add_special_tokens=False)["input_ids"]
        == wanted
    )
    assert Tokenizer.load(tmp_path / "ours").sha256 == ours.sha256
    for loaded in ("ours", "ours/tokenizer.json", "ours/vocab.txt", "theirs"):
        assert Tokenizer.load(tmp_path / loaded).encode(LINES) == wanted, loaded


def test_tokens_added_beside_a_tokenizer_json(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path = directory(tmp_path / "d", {})
    Tokenizer.load(path).save(path)
    config = json.loads((path / "tokenizer_config.json").read_text()) | {"additional_special_tokens": BOTH}
    (path / "SHA256SUMS").unlink()
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    wanted = transformers.AutoTokenizer.from_pretrained(path)(LINES, add_special_tokens=False)["input_ids"]
    assert Tokenizer.load(path).encode(LINES) == wanted and wanted[0] == [17, 5, 18, 6]


@pytest.mark.parametrize("name", ["added_tokens.json", "special, without ids", "with all flags"])
def test_added_tokens_of_the_published_vocabulary(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    published, text = DATA / "vocab/bert-uncased-30522.vocab.txt", DATA / "us_speeches/us_speeches.txt.xz"
    if not published.exists() or not text.exists():
        pytest.skip(f"needs {published} and {text}; set ELECTRA_FAST_DATA")
    files = json.loads(json.dumps(ADDED[name]))
    for entries in files.values():
        for key, number in list(entries.items()):
            if isinstance(number, int):
                entries[key] = number - 17 + 30522
        if decoder := entries.get("added_tokens_decoder"):
            entries["added_tokens_decoder"] = {str(int(n) - 17 + 30522): t for n, t in decoder.items() if n != "4"}
    path = directory(tmp_path / "d", files, published.read_text("utf-8"))
    with lzma.open(text, "rt", encoding="utf-8") as file:
        lines = file.read(100_000).replace(" the ", " [E1] the [/E1] ").replace("nation", "Covid19").split("\n")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(path), Tokenizer.load(path)
    assert ours.encode(lines) == theirs(lines, add_special_tokens=False, verbose=False)["input_ids"]
    assert ours.base_size == 30522


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"added_tokens.json": {"x9": 19}}, "added_tokens.json gives 'x9' the id 19, and 17 is its place"),
        ({"added_tokens.json": {"bill": 17}}, "added_tokens.json gives 'bill' the id 17, and 5 is its place"),
        ({"added_tokens.json": {"x9": "many"}}, "added_tokens.json gives an added token the id 'many'"),
        ({"added_tokens.json": {"x9": None}}, "added_tokens.json gives an added token the id None"),
        ({"added_tokens.json": {"": 17}}, "added_tokens.json names an added token ''; a text is allowed"),
        (
            {"special_tokens_map.json": {"additional_special_tokens": [3]}},
            "special_tokens_map.json names an added .* 3",
        ),
        ({"special_tokens_map.json": {"eos_token": {"content": 3}}}, "special_tokens_map.json names an added token 3"),
        (
            {"tokenizer_config.json": {"added_tokens_decoder": {"17": {"content": "x9", "lstrip": "no"}}}},
            "tokenizer_config.json: lstrip is 'no'; true or false are allowed",
        ),
        ({"tokenizer_config.json": {"do_lower_case": "no"}}, "do_lower_case is 'no'; true or false are allowed"),
        ({"tokenizer_config.json": {"additional_special_tokens": 3}}, "additional_special_tokens is 3; a list is"),
    ],
)
def test_odd_files_are_refused_by_name(tmp_path: Path, files: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(directory(tmp_path / "d", files))


def test_no_json_is_refused_by_name(tmp_path: Path) -> None:
    path = directory(tmp_path / "d", {})
    for name in ("added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"):
        (path / name).write_text("[")
        with pytest.raises(ValueError, match=f"{name}: .* was found; one JSON object"):
            Tokenizer.load(path)
        (path / name).unlink()


@pytest.mark.parametrize("sample", ["languages/zhwiki-small.txt.xz", "languages/kowiki-small.txt.xz"])
def test_chinese_characters_that_are_not_split(tmp_path: Path, sample: str) -> None:
    """tokenize_chinese_chars: false, on real text, as transformers reads it; kept when it is saved."""
    by_hand = directory(tmp_path / "h", {"tokenizer_config.json": {"tokenize_chinese_chars": False}})
    assert Tokenizer.load(by_hand).encode(["中 x中x 中中"]) == [[15, 1, 1]]
    transformers = pytest.importorskip("transformers")
    published = DATA / "vocab/bert-uncased-30522.vocab.txt"
    if not published.exists() or not (DATA / sample).exists():
        pytest.skip(f"needs {published} and {DATA / sample}; set ELECTRA_FAST_DATA")
    files = {"tokenizer_config.json": {"tokenize_chinese_chars": False, "do_lower_case": True}}
    path = directory(tmp_path / "d", files, published.read_text("utf-8"))
    with lzma.open(DATA / sample, "rt", encoding="utf-8") as file:
        lines = file.read(100_000).split("\n")
    ours = Tokenizer.load(path)
    wanted = transformers.AutoTokenizer.from_pretrained(path)(lines, add_special_tokens=False, verbose=False)
    assert ours.encode(lines) == wanted["input_ids"]
    if "zh" in sample:
        assert ours.encode(lines) != Tokenizer.load(published).encode(lines)
    ours.save(tmp_path / "saved")
    for name in ("tokenizer.json", "vocab.txt"):
        assert Tokenizer.load(tmp_path / "saved" / name).encode(lines) == wanted["input_ids"]


def test_words_cut_by_another_program_are_refused_with_advice(tmp_path: Path) -> None:
    japanese = {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"}
    path = directory(tmp_path / "d", {"tokenizer_config.json": japanese})
    advice = (
        r"tokenizer_config.json: word_tokenizer_type is 'mecab', which electra_fast does not have \('basic' is "
        r'allowed\); cut your text into words with mecab yourself .* write "basic" there, or put a tokenizer.json'
    )
    with pytest.raises(ValueError, match=advice):
        Tokenizer.load(path)
    characters = japanese | {"word_tokenizer_type": "basic", "subword_tokenizer_type": "character"}
    (path / "tokenizer_config.json").write_text(json.dumps(characters))
    with pytest.raises(ValueError, match="subword_tokenizer_type is 'character'.*take a model with a WordPiece"):
        Tokenizer.load(path)
    # Words that are cut already: case counts, and characters stay together, as in transformers' class.
    (path / "tokenizer_config.json").write_text(json.dumps(japanese | {"word_tokenizer_type": "basic"}))
    assert Tokenizer.load(path).encode(["中 中中 bill Bill"]) == [[15, 1, 5, 1]]
    # A tokenizer.json carries its own rules.
    plain = Tokenizer.load(directory(tmp_path / "plain", {}))
    plain.save(tmp_path / "plain")
    shutil.copy(tmp_path / "plain" / "tokenizer.json", path)
    (path / "tokenizer_config.json").write_text(json.dumps(japanese))
    assert Tokenizer.load(path).encode(["中 Bill"]) == plain.encode(["中 Bill"])
