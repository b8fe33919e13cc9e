"""Schemes by which tags mark spans, such as BIO and BILOU, and the spans that the tags of a sentence mark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# The letters of each scheme's places, and what they mean: B begins a span, I is inside, E ends it, S is a span alone.
PLACES = {
    "BIO": {"B": "B", "I": "I"},
    "IOE": {"I": "I", "E": "E"},
    "BIOES": {"B": "B", "I": "I", "E": "E", "S": "S"},
    "BMES": {"B": "B", "M": "I", "E": "E", "S": "S"},
    "BILOU": {"B": "B", "I": "I", "L": "E", "U": "S"},
}


@dataclass(frozen=True)
class Scheme:
    """How tags mark spans.

    name: a key of PLACES; "BIO" covers IOB1 and IOB2, "IOE" covers IOE1 and IOE2. joint: the character between a
    place and a type, "-" or "_". suffix: whether the place stands behind the type, as in PER-B.
    """

    name: str = "BIOES"
    joint: str = "-"
    suffix: bool = False

    def parts(self, tag: str) -> tuple[str, str]:
        """("B", "I", "E" or "S", the type) of a tag; ("O", "") of a tag outside of spans or of another scheme."""
        places = PLACES[self.name]
        if tag in places:
            return places[tag], ""
        place, joint, kind = tag.partition(self.joint)
        if self.suffix:
            kind, joint, place = tag.rpartition(self.joint)
        return (places[place], kind) if joint and place in places else ("O", "")

    def fits(self, tag: str) -> bool:
        return tag == "O" or self.parts(tag)[0] != "O"


USUAL = Scheme()


def scheme_of(tags: Iterable[str]) -> Scheme | None:
    """The first scheme that has every one of the tags, with places before types first; None where there is none."""
    tags = set(tags)
    for joint, suffix in (("-", False), ("_", False), ("-", True), ("_", True)):
        for name in PLACES:
            scheme = Scheme(name, joint, suffix)
            if all(map(scheme.fits, tags)):
                return scheme
    return None


def described(tags: Iterable[str]) -> str:
    """A sentence on the scheme of the tags, and on the score that it leads to."""
    tags = sorted(set(tags) - {"O"}) or ["O"]
    scheme = scheme_of(tags)
    if scheme is None:
        odd = next(tag for i, tag in enumerate(tags) if scheme_of(tags[: i + 1]) is None)
        return f"tags such as {odd} mark no spans by {', '.join(PLACES)}; the score is the accuracy of the tags"
    return f"the tags mark spans by {scheme.name}, such as {tags[0]}; the score is the F1 of whole spans"


def spans(tags: Sequence[str], scheme: Scheme = USUAL) -> list[tuple[str, int, int]]:
    """(type, index of the first word, index behind the last) of each span that the tags of a sentence mark.

    In BILOU a span is U, or B, any I, and L, all of one type; tags out of this order mark nothing, as in seqeval's
    strict mode, the only one in which it reads BILOU. All other schemes are read by the rules of conlleval and of
    seqeval's default mode: a span begins at B and S, and at I and E where no span of this type is open; it ends at E
    and S, and before O, a beginning or another type.
    """
    parts = [scheme.parts(tag) for tag in tags]
    return _strict(parts) if scheme.name == "BILOU" else _lenient(parts)


def _lenient(parts: Sequence[tuple[str, str]]) -> list[tuple[str, int, int]]:
    found: list[tuple[str, int, int]] = []
    open_type: str | None = None
    start = 0
    for i, (place, kind) in enumerate([*parts, ("O", "")]):
        if open_type is not None and (place in ("O", "B", "S") or kind != open_type):
            found.append((open_type, start, i))
            open_type = None
        if place != "O" and open_type is None:
            open_type, start = kind, i
        if place in ("E", "S") and open_type is not None:
            found.append((open_type, start, i + 1))
            open_type = None
    return found


def _strict(parts: Sequence[tuple[str, str]]) -> list[tuple[str, int, int]]:
    found: list[tuple[str, int, int]] = []
    open_type: str | None = None
    start = 0
    for i, (place, kind) in enumerate(parts):
        if place in ("B", "S"):
            open_type, start = kind, i
        elif place == "O" or kind != open_type:
            open_type = None
        if open_type is not None and place in ("E", "S"):
            found.append((open_type, start, i + 1))
            open_type = None
    return found
