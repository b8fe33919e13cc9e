"""Columns of words and tags as they are published: CoNLL-U, GermEval, MultiCoNER, OntoNotes, and what is refused."""

from pathlib import Path

import pytest

from electra_fast.tasks.datasets import read_dataset
from electra_fast.tasks.examples import Columns, Sentence

CONLLU = """\
# newdoc id = weblog
# sent_id = 1
# text = vámonos al mar
1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tvamos\tir\tVERB\tV\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\tP\t_\t1\tobj\t_\t_
3-4\tal\t_\t_\t_\t_\t_\t_\t_\t_
3\ta\ta\tADP\tS\t_\t5\tcase\t_\t_
4\tel\tel\tDET\tD\t_\t5\tdet\t_\t_
5\tmar\tmar\tNOUN\tN\t_\t1\tobl\t_\tSpaceAfter=No

# sent_id = 2
1\t#\t#\tSYM\t#\t_\t0\troot\t_\t_
1.1\tes\tser\tVERB\tV\t_\t_\t_\t_\t_
2\t20 000\t20000\tNUM\tZ\t_\t1\tnummod\t_\t_
"""
GERMEVAL = """\
#\thttp://de.wikipedia.org/wiki/Manfred_Korfmann\t[2009-10-17]
1\tAm\tO\tO
2\tKorfmann\tB-PER\tO

#\thttp://de.wikipedia.org/wiki/Rom\t[2009-10-17]
1\tRom\tB-LOC\tO
"""


def write(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def words_and_tags(path: Path, word: str | None = None, tag: str | None = None) -> list[tuple[tuple[str, ...], ...]]:
    """(words, tags) of each sentence, which are also read without the tags."""
    columns = Columns(word=word, tag=tag) if word or tag else None
    found = read_dataset(path, "tagging", columns=columns, max_bad_lines=0).examples
    bare = read_dataset(path, "tagging", columns=columns, labelled=False, max_bad_lines=0).examples
    assert bare == [Sentence(s.id, s.words) for s in found]
    return [(s.words, s.tags) for s in found]


def test_conllu(tmp_path: Path) -> None:
    """Forms and universal parts of speech; ranges, empty nodes and comments are no words; a form may have a space."""
    forms = [("vamos", "nos", "a", "el", "mar"), ("#", "20 000")]
    upos = [("VERB", "PRON", "ADP", "DET", "NOUN"), ("SYM", "NUM")]
    path = write(tmp_path / "es-ud-dev.conllu", CONLLU)
    assert words_and_tags(path) == list(zip(forms, upos, strict=True))
    xpos = [("V", "P", "S", "D", "N"), ("#", "Z")]
    for tag in ("5", "XPOS"):
        assert words_and_tags(path, tag=tag) == list(zip(forms, xpos, strict=True))
    lemmas = [("ir", "nosotros", "a", "el", "mar"), ("#", "20000")]
    assert words_and_tags(path, "LEMMA", "4") == list(zip(lemmas, upos, strict=True))
    plus = (
        "# global.columns = ID FORM UPOS PARSEME:MWE\n1\tUn\tDET\t*\n2-3\tau\t_\t_\n2\tà\tADP\t1:LVC\n3\tle\tDET\t1\n"
    )
    path = write(tmp_path / "fr.cupt", plus)
    assert words_and_tags(path) == [(("Un", "à", "le"), ("DET", "ADP", "DET"))]
    assert words_and_tags(path, tag="PARSEME:MWE") == [(("Un", "à", "le"), ("*", "1:LVC", "1"))]
    with pytest.raises(ValueError, match="has the columns ID, FORM, UPOS, PARSEME:MWE; 'NER' is wanted: give its num"):
        words_and_tags(path, tag="NER")
    path = write(tmp_path / "x.conllu", "1\ta\t_\t_\tX\t_\t_\t_\t_\t_\n2\tb\t_\t_\tY\t_\t_\t_\t_\t_\n")
    with pytest.raises(ValueError, match='x.conllu has nothing but "_" in column 4; name the column .*--tag-column'):
        words_and_tags(path)


def test_a_first_column_that_counts_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "NER-de-dev.tsv", GERMEVAL)
    with pytest.raises(ValueError, match="NER-de-dev.tsv counts 1, 2, 3 in its first .*--word-column 2 --tag-column 3"):
        words_and_tags(path)
    assert words_and_tags(path, "2", "3") == [(("Am", "Korfmann"), ("O", "B-PER")), (("Rom",), ("B-LOC",))]
    assert words_and_tags(path, "2") == [(("Am", "Korfmann"), ("O", "O")), (("Rom",), ("O",))]
    path = write(tmp_path / "zero.txt", "0 a X\n1 b Y\n\n0 c X\n")
    with pytest.raises(ValueError, match="counts 1, 2, 3"):
        words_and_tags(path)
    for numbers in ("3 X\n4 Y\n", "1 X\n3 Y\n", "1 X\n\n1 Y\n"):  # words that happen to be numbers
        assert [w for ws, _ in words_and_tags(write(tmp_path / "n.txt", numbers)) for w in ws] == numbers.split()[::2]


def test_columns_by_number_and_by_name(tmp_path: Path) -> None:
    ontonotes = (  # the width of a line changes with the number of its sentence's verbs
        "#begin document (bc/cctv); part 000\nbc/cctv 0 0 In IN (TOP(S *  -\nbc/cctv 0 1 Asia NNP *) (GPE) -\n\n"
        "bc/cctv 0 0 Yes UH (TOP) * - - (V*)\n\n#end document\n"
    )
    path = write(tmp_path / "cctv.gold_conll", ontonotes)
    assert words_and_tags(path, "4", "5") == [(("In", "Asia"), ("IN", "NNP")), (("Yes",), ("UH",))]
    path = write(tmp_path / "head.tsv", "id\tword\tner\tpos\na\tRome\tB-LOC\tNNP\na\tis\tO\tVBZ\n\nb\told\tO\tJJ\n")
    assert words_and_tags(path, "word", "ner") == [(("Rome", "is"), ("B-LOC", "O")), (("old",), ("O",))]
    assert words_and_tags(path, "word")[2 - 1] == (("old",), ("JJ",))
    for word, tag, message in (
        ("form", "ner", "has the columns id, word, ner, pos; 'form' is wanted"),
        ("5", None, "has 4 columns; column 5 is wanted, and 1 is the first"),
        ("0", None, "has 4 columns; column 0 is wanted"),
        ("2", "2", "has its words and its tags in column 2; name two columns"),
    ):
        with pytest.raises(ValueError, match=message):
            words_and_tags(path, word, tag)
    path = tmp_path / "a.jsonl"
    path.write_text('{"tokens": ["a", "b"], "ner_tags": [0, 3], "pos": ["X", "Y"]}\n')
    assert words_and_tags(path) == [(("a", "b"), ("0", "3"))]
    assert words_and_tags(path, tag="pos") == [(("a", "b"), ("X", "Y"))]


def test_comments_and_words_that_look_like_them(tmp_path: Path) -> None:
    """A line from "#" on before a sentence is a word only with as many columns as others and a tag that they have."""
    multiconer = "# id 1f2c\tdomain=en\nits _ _ O\nriver _ _ B-LOC\n\n# id 77aa domain=en\n# _ _ O\nx _ _ O\n"
    path = write(tmp_path / "en-dev.conll", multiconer)
    assert words_and_tags(path) == [(("its", "river"), ("O", "B-LOC")), (("#", "x"), ("O", "O"))]
    path = write(tmp_path / "wnut.txt", "#news\tO\nnow\tO\n\n# a comment\n# two\nParis\tB-LOC\n#fun\tO\n")
    assert words_and_tags(path) == [(("#news", "now"), ("O", "O")), (("Paris", "#fun"), ("B-LOC", "O"))]
    path = write(tmp_path / "one.txt", "# text = #wow !\n#wow\n!\n")
    assert read_dataset(path, "tagging", labelled=False).examples == [Sentence("0", ("#wow", "!"))]


def test_malformed_lines_cost_their_sentences(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("a X\n\nb X Y\nc X\nd\n\ne X\nK\xf6ln X\n\nf Y\n".encode("latin-1"))
    found = read_dataset(path, "tagging")
    assert [(s.id, s.words) for s in found.examples] == [("0", ("a",)), ("3", ("f",))]
    assert len(found.notes) == 1 and found.notes[0].startswith(
        f"{path}: left out 2 malformed lines (3; 8), the first of which: {path}, line 3 has 3 columns and 2 are wanted;"
    )
    with pytest.raises(
        ValueError, match="has more than 1 malformed line, the first of which: .*line 3 has .*--max-bad"
    ):
        read_dataset(path, "tagging", max_bad_lines=1)
