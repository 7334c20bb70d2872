"""Text as it grows: what can be told after every token, so that all pieces together are the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xattn_runtime.generate.options import Stop

__all__ = ["StreamedToken", "TextStream", "before_stop", "stop_at"]

# What the next token may join to the word before: the clean-up of some tokenizers takes the blank away.
_MAY_JOIN = ("", ".", "?", "!", ",", "'", "n", "n'")
_HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class StreamedToken:
    """A token as soon as it is known, and the text that became certain with it, which may be none.

    log_prob: the model's own natural log-probability. last: whether the text ends with it.
    """

    token_id: int
    text: str
    log_prob: float
    last: bool


class TextStream:
    """Turns the tokens of one text into pieces of it."""

    def __init__(
        self, decode: Callable[[Sequence[int]], str], end_token_ids: Sequence[int], stop: Sequence[str] = ()
    ) -> None:
        """`decode` gives the text of token ids; the text ends before the first of `stop`."""
        self._decode = decode
        self._end_token_ids = frozenset(end_token_ids)
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._emitted = ""

    def add(self, token_id: int, log_prob: float, *, last: bool) -> StreamedToken:
        """The next token; `last` where nothing follows."""
        if token_id not in self._end_token_ids:
            self._ids.append(token_id)
        text = before_stop(self._decode(self._ids), self._stop)
        certain = text if last else text[: len(text) - self._uncertain(text)]
        new = certain[len(self._emitted) :] if certain.startswith(self._emitted) else ""
        self._emitted += new
        return StreamedToken(token_id, new, log_prob, last)

    def _uncertain(self, text: str) -> int:
        """How many of the last characters the next token may change, or turn out to be a word to stop at."""
        begun = max((_overlap(text, word) for word in self._stop), default=0)
        word = text.rpartition(" ")[2]
        if word in _MAY_JOIN:
            begun = max(begun, min(len(word) + 1, len(text)))
        if text.endswith(_HALF_A_CHARACTER):
            begun = max(begun, len(text) - len(text.rstrip(_HALF_A_CHARACTER)))
        return begun


def before_stop(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first of `stop` in it, blanks before that left out."""
    places = [place for word in stop if (place := text.find(word)) >= 0]
    return text[: min(places)].rstrip() if places else text


def stop_at(decode: Callable[[Sequence[int]], str], words: Sequence[str]) -> Stop | None:
    """Whether the text that `decode` makes of ids has one of `words` in it; None where there are none."""
    if not words:
        return None

    def stop(ids: Sequence[int]) -> bool:
        text = decode(ids)
        return any(word in text for word in words)

    return stop


def _overlap(text: str, word: str) -> int:
    """How many of the last characters of `text` are the first of `word`, with a blank before them."""
    overlap = max((size for size in range(min(len(word), len(text)) + 1) if text.endswith(word[:size])), default=0)
    return len(text) - len(text[: len(text) - overlap].rstrip()) if overlap else 0
