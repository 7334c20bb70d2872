"""The answer to a question, as a person or a program reads it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Answer", "AnswerTiming"]


@dataclass(frozen=True)
class AnswerTiming:
    """Milliseconds of each stage; 0 for what an `EncodedImage` had behind it."""

    preprocess: float
    encode: float
    answer: float
    total: float


@dataclass(frozen=True)
class Answer:
    """An answer with its probability, the most probable ones in order, and the question's unknown words.

    A bundle that generates its answers knows only the one it generates: `top` then has that alone. `token_ids` are
    what it generated, without prompt and end token.
    """

    answer: str
    confidence: float
    top: tuple[tuple[str, float], ...]
    unknown_words: tuple[str, ...]
    timing_ms: AnswerTiming
    token_ids: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without the tokens."""
        return {
            "answer": self.answer,
            "confidence": self.confidence,
            "top": [{"answer": answer, "confidence": confidence} for answer, confidence in self.top],
            "unknown_words": list(self.unknown_words),
            "timing_ms": asdict(self.timing_ms),
        }
