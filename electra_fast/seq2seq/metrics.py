"""Scores of written texts by the field's own libraries: sacrebleu, rouge-score, and SQuAD's exact match and F1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from electra_fast.tasks.answers import squad_scores
from electra_fast.tasks.examples import Question

ROUGE = ("rouge1", "rouge2", "rougeL")
PRIMARY = {"translation": "bleu", "summarization": "rougeL", "extractive": "rougeL", "answering": "f1"}


def check_libraries(task: str) -> None:
    """Raise ImportError, with the command that installs it, if the library of a task's scores is missing."""
    if task == "translation":
        _sacrebleu()
    elif task != "answering":
        rouge_scorer(ROUGE)


def text_scores(task: str, written: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Scores of written texts.

    task: translation: bleu and chrf, 0 to 100, of the whole corpus, as sacrebleu computes them (BLEU with tokenizer 13a
    and mixed case, chrF2). summarization and extractive: rouge1, rouge2 and rougeL, 0 to 1: the mean of each text's F1
    with the reference that is best for that score, with Porter's stemmer. answering: exact and f1, 0 to 1, as SQuAD's
    script counts them.
    written: a text for each example. references: one or more texts for each.

    Raises ValueError if there are no examples, an example has no reference, or their numbers differ.
    """
    if not written or len(written) != len(references):
        raise ValueError(
            f"{len(written)} written texts and {len(references)} examples are given; one each, of at least 1"
        )
    lacking = next((i for i, each in enumerate(references) if not each), None)
    if lacking is not None:
        raise ValueError(f"example {lacking} has no reference; texts are scored against one at least")
    if task == "translation":
        return {name: metric.corpus_score(*_corpus(written, references)).score for name, metric in _bleu().items()}
    if task == "answering":
        questions = [
            Question(str(i), "", "", tuple((-1, text) for text in each if text), not any(each))
            for i, each in enumerate(references)
        ]
        texts = {str(i): text for i, text in enumerate(written)}
        lacks_answers = any(question.impossible for question in questions)
        scores = squad_scores(texts, questions, "squad2" if lacks_answers else "squad1")
        return {name: scores[name] for name in ("exact", "f1")}
    scorer = rouge_scorer(ROUGE)
    each = [scorer.score_multi(list(right), text) for right, text in zip(references, written, strict=True)]
    return {name: sum(figures[name].fmeasure for figures in each) / len(each) for name in ROUGE}


def signatures(task: str, written: Sequence[str], references: Sequence[Sequence[str]]) -> list[str]:
    """sacrebleu's signatures of the scores of a translation, which say how they were computed; else none."""
    if task != "translation":
        return []
    lines = []
    for metric in _bleu().values():
        metric.corpus_score(*_corpus(written, references))
        lines.append(f"{metric.get_signature()}")
    return lines


def rouge_scorer(names: Sequence[str]) -> Any:
    """rouge-score's scorer, with Porter's stemmer; raises ImportError if the library is missing."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError(
            "ROUGE needs rouge-score, which is not installed; run: pip install 'electra_fast[generation]'"
        ) from error
    return RougeScorer(list(names), use_stemmer=True)


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError as error:
        raise ImportError(
            "BLEU needs sacrebleu, which is not installed; run: pip install 'electra_fast[generation]'"
        ) from error
    return sacrebleu


def _bleu() -> dict[str, Any]:
    metrics = _sacrebleu().metrics
    return {"bleu": metrics.BLEU(tokenize="13a"), "chrf": metrics.CHRF()}


def _corpus(written: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str | None]]]:
    """Texts and streams of references as sacrebleu takes them: stream n has reference n of each text, or None."""
    most = max(map(len, references))
    streams = [[each[n] if n < len(each) else None for each in references] for n in range(most)]
    return list(written), streams
