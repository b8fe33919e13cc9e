"""The benchmarks whose files are recognised: their layout, their classes in official order, what ranks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CHUNKS = ("ADJP", "ADVP", "CONJP", "INTJ", "LST", "NP", "PP", "PRT", "SBAR", "UCP", "VP")  # of CoNLL-2000


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    title: as its owners write it, the name of its folder too. kind: of task. primary: the score that ranks it. labels:
    classes or tags, numbered in this order. headers: the columns of its published files, with labels and without; a
    name that ends in "?" is not in all of them. texts, label, id: the columns that are read; without the last, rows
    are counted from 0. no_label: what stands for a label where the annotators did not agree on one; such rows are left
    out.
    """

    title: str
    kind: str
    primary: str
    labels: tuple[str, ...] = ()
    headers: tuple[tuple[str, ...], ...] = ()
    texts: tuple[str, ...] = ("sentence1", "sentence2")
    label: str = "label"
    id: str = "index"
    no_label: str | None = None

    def has(self, header: Sequence[str]) -> bool:
        """Whether a file with such columns, in any order, is one of this benchmark."""
        return any(
            {name for name in names if not name.endswith("?")} <= set(header) <= {name.rstrip("?") for name in names}
            for names in self.headers
        )


_PAIR = (("index", "sentence1", "sentence2", "label"), ("index", "sentence1", "sentence2"))
_STSB = tuple("index genre filename year old_index source1 source2 sentence1 sentence2".split())
_STRINGS = ("#1 ID", "#2 ID", "#1 String", "#2 String")
_NLI = ("contradiction", "entailment", "neutral")
_PARSES = tuple("sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse".split())
_VOTES = (*(f"label{i}?" for i in range(1, 6)), "annotator_labels?")


def _inference(*more: str) -> tuple[tuple[str, ...], ...]:
    test = ("index?", *more, *_PARSES, "sentence1", "sentence2")
    return (*test, *_VOTES, "gold_label"), test


# Wang et al., GLUE (ICLR 2019), as its tsv files are published; CoLA's have no header: these are our names for it.
# MNLI and SNLI also as their owners publish them, .txt and .jsonl.
BENCHMARKS = {
    "cola": Benchmark(
        "CoLA", "classification", "matthews", ("0", "1"),
        (("source", "label", "mark", "sentence"), ("index", "sentence")), ("sentence",),
    ),
    "sst2": Benchmark(
        "SST-2", "classification", "accuracy", ("0", "1"), (("sentence", "label"), ("index", "sentence")), ("sentence",)
    ),
    "mrpc": Benchmark(
        "MRPC", "classification", "f1", ("0", "1"), (("Quality", *_STRINGS), ("index", *_STRINGS)), _STRINGS[2:],
        label="Quality",
    ),
    "qqp": Benchmark(
        "QQP", "classification", "f1", ("0", "1"),
        (("id", "qid1", "qid2", "question1", "question2", "is_duplicate"), ("id", "question1", "question2")),
        ("question1", "question2"), label="is_duplicate", id="id",
    ),
    "mnli": Benchmark(
        "MNLI", "classification", "accuracy", _NLI, _inference("promptID", "pairID", "genre"), label="gold_label",
        no_label="-",
    ),
    "snli": Benchmark(
        "SNLI", "classification", "accuracy", _NLI, _inference("captionID", "pairID"), label="gold_label", no_label="-"
    ),
    "rte": Benchmark("RTE", "classification", "accuracy", ("entailment", "not_entailment"), _PAIR),
    "wnli": Benchmark("WNLI", "classification", "accuracy", ("0", "1"), _PAIR),
    "qnli": Benchmark(
        "QNLI", "classification", "accuracy", ("entailment", "not_entailment"),
        (("index", "question", "sentence", "label"), ("index", "question", "sentence")), ("question", "sentence"),
    ),
    "stsb": Benchmark("STS-B", "regression", "spearman", headers=((*_STSB, "score"), _STSB), label="score"),
    "conll2000": Benchmark(
        "CoNLL-2000", "tagging", "f1", (*(f"{place}-{chunk}" for chunk in CHUNKS for place in "BI"), "O")
    ),
    "squad1": Benchmark("SQuAD v1.1", "qa", "f1"),
    "squad2": Benchmark("SQuAD v2.0", "qa", "f1"),
}  # fmt: skip
