"""Ids: equal to transformers', training that is a function of the text, and what is refused."""

import hashlib
import json
import lzma
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers

from electra_fast.data.normalizer import Normalizer, TrainingText
from electra_fast.data.text import documents
from electra_fast.data.tokenizer import LONGEST_WORD, SPECIAL_TOKENS, Tokenizer

DATA = Path(os.environ.get("ELECTRA_FAST_DATA", Path(__file__).parents[3] / "shared/data"))
SAMPLES = {
    "english": ["The quick brown fox jumps over the lazy dogs.", "Dogs don't like jumping foxes; foxes do!"],
    "german": ["Größere Äpfel fürs Mädchen, süße Öfen und Straßenbahnen.", "Die größten Straßen führen nach Übersee."],
    "korean": ["지미 카터는 미국의 정치인이다.", "그는 조지아주에서 태어난 정치인이었다."],
    "chinese": ["妄想女友是2015年開始播放的電視劇。", "東富山站是日本的鐵路車站。"],
}
TEXT = [SAMPLES[name] * 20 for name in SAMPLES]


def data(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"needs {DATA / name}; set ELECTRA_FAST_DATA")
    return DATA / name


def vocabulary(tmp_path: Path, tokens: list[str]) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", "utf-8")
    return tmp_path / "vocab.txt"


def test_wordpiece_by_hand(tmp_path):
    path = vocabulary(tmp_path, [*SPECIAL_TOKENS, "un", "##aff", "##able", "cafe", ",", "!", "中", "文", "##a", "a"])
    tokenizer = Tokenizer.load(path)
    assert tokenizer.vocab_size == 15
    names = ("pad", "unk", "cls", "sep", "mask")
    assert [getattr(tokenizer, f"{name}_token_id") for name in names] == [0, 1, 2, 3, 4]
    lines = ["Unaffable, café!", "中文", "", "unaffxable a\0a", "[MASK] [SEP]", "a" * 200, "a" * 201]
    ids = tokenizer.encode(lines)
    assert ids[:4] == [[5, 6, 7, 9, 8, 10], [11, 12], [], [1, 14, 13]]
    assert 4 not in ids[4] and 3 not in ids[4]  # text that speaks of special tokens holds none
    assert ids[5] == [14] + [13] * 199 and ids[6] == [1]  # words of up to 200 characters
    assert tokenizer.decode([2, 5, 6, 7, 3]) == "[CLS] unaffable [SEP]"
    assert tokenizer.token(7) == "##able"
    for outside in (15, -1):
        with pytest.raises(IndexError, match=f"id {outside} is outside the vocabulary of 15"):
            tokenizer.token(outside)
    cased = Tokenizer.load(path, lowercase=False)
    assert cased.encode(["un café Un"]) == [[5, 1, 1]]
    accents = Tokenizer.load(path, strip_accents=False)
    assert accents.encode(["UN café"]) == [[5, 1]]


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [None, True, False])
def test_ids_are_those_of_the_librarys_own_normaliser(lowercase, strip_accents):
    """Any characters among any others: controls, spaces, ideographs, marks that are dropped or put in order."""
    tokenizer = Tokenizer.train([["a b", "é中"] * 3], 64, lowercase=lowercase, strip_accents=strip_accents)
    library = tokenizer._tokenizer.normalizer
    draw, odd = random.Random(0), "\u302e\u302f\u0301\u0327\u094d\u05b0İΣßẞ가ﬁ\xa0\t\0\u200b\u3000中𝅥"
    codes = [code for code in range(0x30000) if not 0xD800 <= code < 0xE000]
    lines = [f"a{chr(code)}B" for code in codes[::31]]
    lines += ["".join(draw.choice([draw.choice(odd), draw.choice("aB .")]) for _ in range(12)) for _ in range(2000)]
    lines += ["".join(chr(draw.choice(codes)) for _ in range(12)) for _ in range(1000)]
    wrong = [line for line in lines if tokenizer._normalize(line) != library.normalize_str(line)]
    assert not wrong
    expected = tokenizer._tokenizer.encode_batch(lines, add_special_tokens=False)
    assert tokenizer.encode(lines) == [line.ids for line in expected]


def test_overlong_words_are_left_out_of_training():
    """The trainer's time grows with the square of a word's length: 300,000 characters took minutes. They are [UNK]."""
    library = Tokenizer.train([["a b"] * 3], 64)._tokenizer
    lines = ["Aa " + "b" * 201 + " c,", "é" * 200, "x" * 201 + "-ok." + "y" * 200]
    text = TrainingText([lines], Normalizer(library.normalizer), library.pre_tokenizer, LONGEST_WORD)
    assert list(text) == [["aa c ,", "e" * 200, "- ok . " + "y" * 200]]
    words = [["some words"] * 9, ["z" * 300_000, "zz"]]
    assert Tokenizer.train(words, 64).encode(["zz", "z" * 201])[1] == [1]


def test_an_added_token_that_is_found_in_the_text_stays_found(tmp_path):
    Tokenizer.train([["a b"] * 3], 32).save(tmp_path)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.add_tokens(["New York"])
    tokenizer = Tokenizer(library.to_str().encode())
    assert tokenizer.encode(["a New York b"])[0][1] == tokenizer.vocab_size - 1


@pytest.mark.parametrize("sample", [*SAMPLES, "languages/german-small.txt.xz", "languages/kowiki-small.txt.xz",
                                    "languages/zhwiki-small.txt.xz", "us_speeches/us_speeches.txt.xz"])  # fmt: skip
@pytest.mark.parametrize("cased", [False, True])
def test_ids_equal_transformers(sample, cased):
    """The published vocabulary, and real text in four languages."""
    transformers = pytest.importorskip("transformers")
    vocab = data("vocab/bert-uncased-30522.vocab.txt")
    lines = SAMPLES.get(sample)
    if lines is None:
        with lzma.open(data(sample), "rt", encoding="utf-8") as file:
            lines = file.read(60_000).split("\n")
    theirs = transformers.BertTokenizerFast(vocab=str(vocab), do_lower_case=not cased)
    ours = Tokenizer.load(vocab, lowercase=not cased)
    assert ours.vocab_size == 30522 and ours.mask_token_id == 103
    assert ours.encode(lines) == theirs(lines, add_special_tokens=False, verbose=False)["input_ids"]


@pytest.mark.parametrize("rules", [dict(), dict(lowercase=False), dict(lowercase=True, strip_accents=False)])
def test_trained_is_saved_and_loaded_by_us_and_transformers(tmp_path, rules):
    tokenizer = Tokenizer.train(TEXT, 300, **rules)
    assert [tokenizer.token(i) for i in range(5)] == list(SPECIAL_TOKENS)
    lines = [line for sample in SAMPLES.values() for line in sample] + ["x" * 150]
    wanted = tokenizer.encode(lines)
    tokenizer.save(tmp_path / "saved")
    for path in ("saved", "saved/tokenizer.json", "saved/vocab.txt"):
        loaded = Tokenizer.load(tmp_path / path)
        assert loaded.encode(lines) == wanted and loaded.vocab_size == tokenizer.vocab_size
        assert loaded.sha256 == tokenizer.sha256
    assert tokenizer.sha256 == hashlib.sha256((tmp_path / "saved/tokenizer.json").read_bytes()).hexdigest()
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs(lines, add_special_tokens=False)["input_ids"] == wanted
    assert theirs.mask_token_id == 4 and theirs.pad_token_id == 0
    pair = theirs("dogs", "fox")
    kinds = pair["token_type_ids"]
    assert (
        pair["input_ids"][0] == 2
        and pair["input_ids"].count(3) == 2
        and kinds == sorted(kinds)
        and set(kinds) == {0, 1}
    )


def test_rules_change_what_is_learned():
    def words(**rules) -> set[str]:
        tokenizer = Tokenizer.train([SAMPLES["german"] * 20], 200, **rules)
        return {tokenizer.token(i) for i in range(tokenizer.vocab_size)}

    assert "straßen" in words() and "großten" in words()
    assert "Straßen" in words(lowercase=False) and "größten" in words(lowercase=False)
    assert "größten" in words(strip_accents=False) and "Straßen" not in words(strip_accents=False)


def test_ideographs_get_no_continuing_form():
    tokenizer = Tokenizer.train(TEXT, 300)
    tokens = {tokenizer.token(i) for i in range(tokenizer.vocab_size)}
    assert {"妄", "f", "##f", "."} <= tokens and not {"##妄", "##."} & tokens
    assert not any(tokenizer.unk_token_id in ids for text in TEXT for ids in tokenizer.encode(text))


def test_training_is_a_function_of_the_text():
    """Processes that hash strings differently, and count words in other threads, find the same vocabulary."""
    code = (
        "from electra_fast.data.tokenizer import Tokenizer; from pydoc_data.topics import topics;"
        "print(Tokenizer.train([text.split('\\n') for text in topics.values()], 3000).sha256)"
    )
    found = set()
    for seed, threads in ("1", "true"), ("2", "false"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": threads}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        found.add(run.stdout)
    assert len(found) == 1 and len(found.pop().strip()) == 64


def test_small_text_gives_what_there_is():
    tokenizer = Tokenizer.train([["aa bb aa bb"]], 1000)
    assert [tokenizer.token(i) for i in range(5, tokenizer.vocab_size)] == ["a", "b", "##a", "##b", "aa", "bb"]


def test_rare_characters_give_way_to_words():
    """However many characters there are, half of the vocabulary is left for words."""
    many = [["".join(chr(0x4E00 + i) for i in range(500))] * 2, ["common words " * 50]]
    tokenizer = Tokenizer.train(many, 100)
    tokens = [tokenizer.token(i) for i in range(tokenizer.vocab_size)]
    assert tokenizer.vocab_size <= 100 and "common" in tokens and "words" in tokens


def test_real_speeches_have_no_unknown_words():
    speeches = list(documents(data("us_speeches/us_speeches.txt.xz")))
    tokenizer = Tokenizer.train(speeches, 4000)
    assert tokenizer.vocab_size == 4000
    ids = [i for document in speeches for line in tokenizer.encode(document) for i in line]
    assert ids.count(tokenizer.unk_token_id) < 1e-3 * len(ids) and max(ids) < 4000


def test_rules_beside_a_vocabulary_are_heard(tmp_path):
    path = vocabulary(tmp_path, [*SPECIAL_TOKENS, "A", "a"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert Tokenizer.load(tmp_path).encode(["A"]) == [[5]]
    assert Tokenizer.load(path, lowercase=True).encode(["A"]) == [[6]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nb\n", r"vocab.txt has no \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\] among its 2 entries; ELECTRA needs"),
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\nx\n", r"vocab.txt has no \[MASK\] among its 5 entries"),
        ("[PAD]\n\nx\n", "vocab.txt, line 2 is empty; ids are line numbers"),
        ("[PAD]\nx\n[PAD]\n", r"vocab.txt, line 3 repeats '\[PAD\]' of line 1"),
        (b"\xff\xfe", "vocab.txt is no UTF-8 text"),
    ],
)
def test_bad_vocabularies_are_refused(tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(path)


def test_bad_tokenizers_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text('{"version": "1.0"}')
    with pytest.raises(ValueError, match=r"tokenizer.json is no tokenizer.json that this version .* load a vocab.txt"):
        Tokenizer.load(path)
    good = json.loads(Tokenizer.train(TEXT, 100)._content)
    del good["model"]["vocab"]["[MASK]"]
    good["added_tokens"] = good["added_tokens"][:-1]
    path.write_text(json.dumps(good))
    with pytest.raises(ValueError, match=r"tokenizer.json has no \[MASK\]"):
        Tokenizer.load(path)
    whole = json.loads(Tokenizer.train(TEXT, 100)._content)
    word_level = {"type": "WordLevel", "vocab": whole["model"]["vocab"], "unk_token": "<unk>"}
    for model in (word_level, dict(whole["model"], unk_token="<unk>")):
        path.write_text(json.dumps(whole | {"model": model}))
        with pytest.raises(ValueError, match=r"tokenizer.json cannot cut a word .*Missing \[UNK\] token"):
            Tokenizer.load(path)
    with pytest.raises(ValueError, match="carries its own rules"):
        Tokenizer.load(path, lowercase=False)
    with pytest.raises(FileNotFoundError, match="there is no tokenizer"):
        Tokenizer.load(tmp_path / "none.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds neither tokenizer.json nor vocab.txt"):
        Tokenizer.load(tmp_path / "empty")


def test_bad_training_is_refused():
    for size in (31, 4_000_001):
        with pytest.raises(ValueError, match=f"vocab_size is {size}; it must lie between 32 and 4000000"):
            Tokenizer.train(TEXT, size)
    with pytest.raises(ValueError, match="documents is an iterator"):
        Tokenizer.train(iter(TEXT), 100)
    with pytest.raises(ValueError, match="the text holds no words"):
        Tokenizer.train([["\x01"]], 100)
