"""Which part of a text is set aside to evaluate on."""

from __future__ import annotations

from electra_fast.data.examples import MASK64, mix64

MOST = 1.5  # times the share that is asked for: whole documents take no more of the text before and with them
LEAST = 0.8  # times that share: the last document makes up what is lacking to this


class HeldOut:
    """Assigns documents to "train" or "heldout", one after the other, as a function of the text and the share alone.

    A hash of a document's number chooses it with the probability `share`. It is held out whole, unless the held-out
    text would then be more than MOST times the share of the text so far; then the choice passes on to the next document
    that is short enough. If too little is held out at the end, the last lines of the last document are: a text of few
    documents is divided within one.

    share: of the characters, from 0 up to, not including, 1.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.documents = 0
        self.divided = 0  # lines of the last document that are held out, where others of it are trained on
        self.characters = {"train": 0, "heldout": 0}
        self._chosen = 0  # documents that are still to be held out

    def split(self, lines: list[str]) -> str:
        """The split of the next document, which is not the last."""
        size = sum(map(len, lines))
        self._chosen += _is_chosen(self.documents, self.share)
        fits = self.characters["heldout"] + size <= MOST * self.share * (self._total + size)
        split = "heldout" if self._chosen and fits else "train"
        self._chosen -= split == "heldout"
        self._count(split, lines)
        self.documents += 1
        return split

    def split_last(self, lines: list[str]) -> list[tuple[str, list[str]]]:
        """The parts of the last document, of one split or two. Neither split stays empty where that can be."""
        self.documents += 1
        sizes = [len(line) for line in lines]
        target, held = self.share * (self._total + sum(sizes)), self.characters["heldout"]
        count = 0  # lines at the end that are held out
        if held < LEAST * target:
            while count < len(lines) and held + sizes[-1 - count] / 2 <= target:  # to the nearest line
                count += 1
                held += sizes[-count]
            if not self.characters["heldout"]:
                count = max(count, 1)
        if not self.characters["train"]:
            count = min(count, len(lines) - 1)
        cut = len(lines) - count
        self.divided = count if cut else 0
        parts = [(split, part) for split, part in (("train", lines[:cut]), ("heldout", lines[cut:])) if part]
        for split, part in parts:
            self._count(split, part)
        return parts

    @property
    def share_found(self) -> float:
        """The share of the characters that is held out."""
        return self.characters["heldout"] / max(1, self._total)

    @property
    def _total(self) -> int:
        return sum(self.characters.values())

    def _count(self, split: str, lines: list[str]) -> None:
        self.characters[split] += sum(map(len, lines))


def _is_chosen(number: int, share: float) -> bool:
    return mix64(number + 0x68656C646F7574 & MASK64) < share * 2.0**64  # "heldout": apart from other uses of mix64
