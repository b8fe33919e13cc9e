"""Sentences of a text, and the greedy oracle: which of them together are most like a summary."""

from __future__ import annotations

import re
from functools import cache

from electra_fast.seq2seq.metrics import rouge_scorer

# A sentence ends at . ! or ? (and quotes or brackets after it) before white space and something that is no small
# letter, or at an ideographic full stop. A single capital, as in "J. Smith", and usual abbreviations end none.
END = re.compile(r"(?:[.!?]+[\"'”’)\]]*\s+(?=[^a-z\s])|(?<=[。！？])\s*(?=\S)|\n\s*\n)")
ABBREVIATION = re.compile(r"(?:\b[A-Z]|\b(?:Dr|Mr|Mrs|Ms|Prof|St|vs|cf|al|Fig|Eq|No|Inc|e\.g|i\.e|etc))\.$")
MOST = 5  # sentences that the oracle takes


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences by a simple rule (see END), without white space around them.

    Lists of sentences in .jsonl are taken as they are, so a better splitter may be run before.
    """
    sentences, start = [], 0
    for match in END.finditer(text):
        sentence = text[start : match.end()].strip()
        if sentence and not ABBREVIATION.search(sentence):
            sentences.append(sentence)
            start = match.end()
    rest = text[start:].strip()
    return [*sentences, rest] if rest else sentences


@cache
def oracle(sentences: tuple[str, ...], references: tuple[str, ...]) -> tuple[int, ...]:
    """The sentences that are most like a summary together: the labels of an extractive model.

    Starting from none, the sentence is added that raises the mean of ROUGE-1 and ROUGE-2 (F1, of the best reference)
    most, until none does or MOST are taken. What was found is remembered, since each validation asks again.

    Returns their indices, in the order of the text. Source: Nallapati et al., "SummaRuNNer", AAAI 2017, section 3.2.
    """
    scorer = rouge_scorer(("rouge1", "rouge2"))
    chosen: list[int] = []
    best = 0.0
    while len(chosen) < min(MOST, len(sentences)):
        scores = {}
        for i in range(len(sentences)):
            if i not in chosen:
                text = " ".join(sentences[j] for j in sorted([*chosen, i]))
                figures = scorer.score_multi(list(references), text)
                scores[i] = sum(each.fmeasure for each in figures.values()) / 2
        i = max(scores, key=lambda each: scores[each])
        if scores[i] <= best:
            break
        best = scores[i]
        chosen.append(i)
    return tuple(sorted(chosen))
