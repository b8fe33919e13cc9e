"""The benchmarks whose files are recognised: their layout, their classes in official order, what ranks them."""

from __future__ import annotations

from dataclasses import dataclass

CHUNKS = ("ADJP", "ADVP", "CONJP", "INTJ", "LST", "NP", "PP", "PRT", "SBAR", "UCP", "VP")  # of CoNLL-2000


@dataclass(frozen=True)
class Benchmark:
    """title: as its owners write it, the name of its folder too. primary: the score that ranks it. labels: classes or
    tags, numbered in this order. header: columns of the published training file; a test file lacks those of `hidden`,
    and counts its rows in "index". texts: the columns that are read."""

    title: str
    kind: str
    primary: str
    labels: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    texts: tuple[str, ...] = ("sentence1", "sentence2")
    label: str = "label"
    hidden: tuple[str, ...] = ()

    @property
    def test_header(self) -> tuple[str, ...]:
        kept = (name for name in self.header if name not in ("index", self.label, *self.hidden))
        return ("index", *kept)


_PAIR = ("index", "sentence1", "sentence2", "label")
_STSB = "index genre filename year old_index source1 source2 sentence1 sentence2 score"
_MRPC = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")

# Wang et al., GLUE (ICLR 2019), as its tsv files are published; CoLA's have no header: these are our names for it.
BENCHMARKS = {
    "cola": Benchmark(
        "CoLA", "classification", "matthews", ("0", "1"),
        ("source", "label", "mark", "sentence"), ("sentence",), hidden=("source", "mark"),
    ),
    "sst2": Benchmark("SST-2", "classification", "accuracy", ("0", "1"), ("sentence", "label"), ("sentence",)),
    "mrpc": Benchmark(
        "MRPC", "classification", "f1", ("0", "1"), _MRPC, ("#1 String", "#2 String"), label="Quality"
    ),
    "rte": Benchmark("RTE", "classification", "accuracy", ("entailment", "not_entailment"), _PAIR),
    "wnli": Benchmark("WNLI", "classification", "accuracy", ("0", "1"), _PAIR),
    "qnli": Benchmark(
        "QNLI", "classification", "accuracy", ("entailment", "not_entailment"),
        ("index", "question", "sentence", "label"), ("question", "sentence"),
    ),
    "stsb": Benchmark("STS-B", "regression", "spearman", header=tuple(_STSB.split()), label="score"),
    "conll2000": Benchmark(
        "CoNLL-2000", "tagging", "f1", (*(f"{place}-{chunk}" for chunk in CHUNKS for place in "BI"), "O")
    ),
    "squad1": Benchmark("SQuAD v1.1", "qa", "f1"),
    "squad2": Benchmark("SQuAD v2.0", "qa", "f1"),
}  # fmt: skip
