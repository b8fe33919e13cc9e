"""Every index and offset in the core is a 64-bit integer, read from its source: rows times a stride pass 2**31 long
before memory ends."""

import re
from pathlib import Path

import pytest

SOURCES = sorted(path for path in (Path(__file__).parents[2] / "csrc").rglob("*.*") if path.suffix in (".h", ".cpp"))
# Narrow integers that stay small whatever the size of the tensors: places within a vector, a block or a word, ...
SMALL = {
    "byte": "of 256",
    "chain": "of kChains",
    "counts": "of tokens of one sequence, whose offsets are int32",
    "done": "a vector's lanes",
    "half": "of a panel",
    "i": "a vector's lanes, or words of a Philox call",
    "k": "of four tensors",
    "limit": "of a byte",
    "place": "a function of a 64-bit index",
    "round": "of Philox's ten",
    "shift": "of 64 bits",
    "threshold": "of a byte",
    "attention_threshold": "of a byte",
    "ROWS": "of a sliver",
    "g": "of kBlockGroups",
    "kLanes": "of a vector",
    "kPanel": "of two vectors",
    "kSliver": "of a product",
    "kChains": "of a sum",
    "kBlockGroups": "of Philox",
    "kBlockColumns": "of a block of dropout",
    "close": "a function",
}
DECLARED = re.compile(r"\b(?:unsigned|int|short|int32_t|auto)\s+(\w+)\s*(?=[=;,(){\[])")


def code(path: Path) -> str:
    return re.sub(r"//[^\n]*", "", path.read_text())


def narrow(source: str) -> list[str]:
    """Narrow integers that a declaration names and SMALL does not, and what a cast makes narrow in an index."""
    found = [name for name in DECLARED.findall(source) if name not in SMALL]
    return found + re.findall(r"\[[^\]]*\b(?:int|int32_t|unsigned)\([^\]]*\]", source)


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.stem not in ("bindings", "threads")], ids=lambda path: path.name
)
def test_no_index_is_narrow(path: Path) -> None:
    assert narrow(code(path)) == []


@pytest.mark.parametrize(
    "line",
    [
        "int first = in.sequences.queries[n];",
        "const int32_t first(in.sequences.queries[n]);",
        "for (int t = first; t < end; ++t) x.data[t * x.token] = 0;",
        "static float* at(const Heads<float>& x, int t, int64_t h) { return x.data + t * x.token; }",
        "struct Heads { float* data; int token, head; };",
        "x.data[int(t * x.token)] = 0;",
        "const auto at = first * D;",
    ],
)
def test_a_narrow_index_is_found(line: str) -> None:
    assert narrow(line)
