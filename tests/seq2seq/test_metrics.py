"""Scores of written texts: worked by hand, or by sacrebleu's own corpus functions."""

import builtins
from typing import Any

import pytest
import sacrebleu

from electra_fast.seq2seq.metrics import check_libraries, signatures, text_scores
from electra_fast.seq2seq.sentences import oracle, split_sentences


def test_translations_have_the_scores_of_sacrebleu() -> None:
    written = ["the cat sat on the mat .", "a dog"]
    references = [["the cat sat on a mat ."], ["one dog runs"]]
    scores = text_scores("translation", written, references)
    streams = [[each[0] for each in references]]
    assert scores["bleu"] == sacrebleu.corpus_bleu(written, streams).score
    assert scores["chrf"] == sacrebleu.corpus_chrf(written, streams).score
    assert text_scores("translation", ["a b c d e"], [["a b c d e"]])["bleu"] == pytest.approx(100)
    assert "tok:13a" in signatures("translation", written, references)[0]
    assert signatures("summarization", written, references) == []


def test_summaries_have_the_best_reference_of_each_score() -> None:
    """Of "cats see dogs" the first reference has 2 of 3 words of each side right (F1 2/3), no pair; the second 1 of 1
    and 1 of 3: F1 1/2."""
    scores = text_scores("summarization", ["cats see dogs"], [["cats hear dogs", "see"]])
    assert scores == pytest.approx({"rouge1": 2 / 3, "rouge2": 0.0, "rougeL": 2 / 3})
    both = text_scores("summarization", ["cats see dogs", "one"], [["cats hear dogs"], ["two"]])
    assert both["rouge1"] == pytest.approx(1 / 3)


def test_answers_have_the_scores_of_squad() -> None:
    """ "the red cat" and "a red cat" are equal without articles; "red" has F1 2/3 with "red cat"."""
    scores = text_scores("answering", ["The red cat", "red"], [["a red cat"], ["red cat", "dog"]])
    assert scores == pytest.approx({"exact": 0.5, "f1": (1 + 2 / 3) / 2})
    assert text_scores("answering", ["", "x"], [[""], ["y"]])["exact"] == 0.5


def test_texts_without_references_are_not_scored() -> None:
    with pytest.raises(ValueError, match="example 0 has no reference; texts are scored against one at least"):
        text_scores("translation", ["a"], [[]])
    with pytest.raises(ValueError, match="0 written texts and 0 examples are given"):
        text_scores("summarization", [], [])


@pytest.mark.parametrize(
    ("task", "module"), [("translation", "sacrebleu"), ("summarization", "rouge_score.rouge_scorer")]
)
def test_a_missing_library_is_told_with_its_command(task: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def refusing(name: str, *args: Any, **options: Any) -> Any:
        if name == module:
            raise ImportError(name)
        return load(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(ImportError, match=r"not installed; run: pip install 'electra_fast\[generation\]'"):
        check_libraries(task)
    check_libraries("answering")


def test_sentences_end_where_the_rule_says() -> None:
    text = "Dr. Smith saw J. Doe at 3.5 km. It was late! Was it? “Yes.” Fig. 2 shows e.g. this."
    assert split_sentences(text) == [
        "Dr. Smith saw J. Doe at 3.5 km.",
        "It was late!",
        "Was it?",
        "“Yes.”",
        "Fig. 2 shows e.g. this.",
    ]
    assert split_sentences("今日は。明日は。") == ["今日は。", "明日は。"]
    assert split_sentences("  ") == []


def test_the_oracle_takes_the_sentences_that_make_the_summary() -> None:
    sentences = ("a dog runs", "the cat sat", "birds fly south", "on the mat")
    assert oracle(sentences, ("the cat sat on the mat",)) == (1, 3)
    assert oracle(sentences, ("zebras",)) == ()
