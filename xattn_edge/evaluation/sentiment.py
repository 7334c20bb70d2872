"""Parts of the test half of the rated sentences, by domain and by what a sample has, and the scores of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xattn_edge.data.rated_sentences import DOMAINS, LABELS, RatedSentences, Sentence

__all__ = ["PARTS", "Part", "label_scores", "part_sentences"]


@dataclass(frozen=True)
class Part:
    """Test sentences of a domain, as certain modalities. spoken: those alone that are spoken."""

    name: str
    domain: str
    modalities: tuple[str, ...]
    spoken: bool = False


PARTS = (
    *(Part(f"{domain}/text", domain, ("text",)) for domain in DOMAINS),
    Part("films/frames", "films", ("frames",)),
    Part("films/text+frames", "films", ("text", "frames")),
    Part("spoken films/text", "films", ("text",), spoken=True),
    Part("spoken films/speech", "films", ("speech",), spoken=True),
    Part("spoken films/text+speech", "films", ("text", "speech"), spoken=True),
    Part("spoken films/text+speech+frames", "films", ("text", "speech", "frames"), spoken=True),
)


def part_sentences(data: RatedSentences, part: Part) -> list[Sentence]:
    """The test sentences of a part."""
    return [each for each in data.split("test", part.domain) if not part.spoken or each.spoken is not None]


def label_scores(predicted: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """From 0 to 1: accuracy, F1 weighted by the labels' counts and their plain mean, and the commonest label's share.

    Of three labels of which each sample has one, accuracy is the F1 of all decisions together.
    """
    pairs = list(zip(predicted, expected, strict=True))
    counts = {label: expected.count(label) for label in LABELS}
    f1 = {label: _f1(pairs, label) for label in LABELS}
    return {
        "n": len(pairs),
        "accuracy": sum(one == other for one, other in pairs) / len(pairs),
        "weighted_f1": sum(f1[label] * count for label, count in counts.items()) / len(pairs),
        "macro_f1": sum(f1.values()) / len(f1),
        "commonest_label": max(counts.values()) / len(pairs),
    }


def _f1(pairs: Sequence[tuple[str, str]], label: str) -> float:
    right = sum(one == other == label for one, other in pairs)
    either = sum((one == label) + (other == label) for one, other in pairs)
    return 2 * right / either if either else 0.0
