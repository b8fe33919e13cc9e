"""How texts that are too long for a model are cut: shortened, or read in windows that overlap."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator


def truncate(pieces: list[list[int]], room: int) -> list[list[int]]:
    """Shortens one text or two to `room` tokens together.

    Tokens are dropped one by one from the end of the longer text, of the second if both are equally long, as Google's
    code does.
    """
    first, *rest = pieces
    most = max((room + 1) // 2, room - len(rest[0])) if rest else room
    first = first[:most]
    return [first, *(piece[: room - len(first)] for piece in rest)]


def word_windows(starts: list[int], room: int, stride: int) -> Iterator[tuple[int, int, int, int]]:
    """Windows of whole words on a sentence; every word is counted in one of them.

    A window begins as many words behind the one before as `stride` tokens hold, but at least one. The words that two
    windows share are split in the middle: the first half counts in the first window, which shows more behind them.

    Args:
        starts: (words + 1) the token at which each word begins, then the number of tokens. No word is longer than room.
        room: tokens in a window, at most.
        stride: tokens.

    Yields: (first word, word behind the last, first word counted, word behind the last counted).
    """
    words, first, begin = len(starts) - 1, 0, 0
    while True:
        last = bisect_right(starts, starts[first] + room) - 1
        if last == words:
            yield first, last, begin, last
            return
        following = max(first + 1, bisect_right(starts, starts[first] + stride) - 1)
        end = (following + last + 1) // 2
        if begin < end:
            yield first, last, begin, end
        first, begin = following, end


def context_windows(tokens: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Windows on a context, a new one every `stride` tokens until one reaches the end.

    Args:
        tokens: of the context.
        room: tokens in a window.
        stride: tokens; at most `room`, else tokens between two windows would lie in none.

    Returns: (first token, token behind the last) of each; one empty window on an empty context.
    """
    starts = [0]
    while starts[-1] + room < tokens:
        starts.append(starts[-1] + stride)
    return [(start, min(tokens, start + room)) for start in starts]


def most_context(bounds: list[tuple[int, int]], tokens: int) -> list[int]:
    """For each token the index of the window that shows the most around it.

    That is the window in which the smaller of the token's two sides is largest, the first of equals.
    """
    best, most = [0] * tokens, [-1] * tokens
    for number, (start, stop) in enumerate(bounds):
        for token in range(start, stop):
            if (sides := min(token - start, stop - 1 - token)) > most[token]:
                best[token], most[token] = number, sides
    return best


def closer_windows(questions: int, which: str, stride: int, max_length: int) -> str:
    """A sentence that tells that the windows of some questions are closer than asked for.

    Args:
        questions: how many.
        which: a word in front of "questions", or "".
        stride: the stride that was asked for.
        max_length: tokens of a sequence, at most.
    """
    return (
        f"the contexts of {questions:,} {f'{which} questions'.strip()} are read in windows that are closer than "
        f"--stride {stride}, so that no answer lies between two: --max-length {max_length} leaves little room"
    )
