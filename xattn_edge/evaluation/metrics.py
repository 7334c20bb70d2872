"""Caption metrics, computed by the libraries that define them."""

from __future__ import annotations

from collections.abc import Sequence

from xattn_runtime.errors import DependencyError

__all__ = ["caption_metrics", "caption_scores"]


def caption_metrics(captions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """How near `captions` are to `references`, pairwise.

    Returns:
        `exact_match`: percentage of captions equal to their reference.
        `bleu`: corpus BLEU-4 of sacreBLEU, 0 to 100, words split at spaces (Papineni et al., 2002).
        `cider`: CIDEr of the COCO caption evaluation, 0 to 10, document frequencies of these references
        (Vedantam et al., 2015); a caption of one to three words reaches less than 10, since it has no longer n-grams.

    Raises:
        DependencyError: sacreBLEU or pycocoevalcap is not installed.
        ValueError: nothing to compare, or unequal numbers.
    """
    try:
        import sacrebleu
    except ModuleNotFoundError as error:
        raise DependencyError(f'`{error.name}` is not installed; run `pip install "xattn-edge[data]"`') from error
    if not captions or len(captions) != len(references):
        raise ValueError(f"{len(captions)} captions for {len(references)} references")
    equal = sum(caption == reference for caption, reference in zip(captions, references, strict=True))
    bleu = sacrebleu.corpus_bleu(list(captions), [list(references)], tokenize="none", force=True)
    cider, _ = _cider(captions, references)
    return {"exact_match": 100 * equal / len(captions), "bleu": float(bleu.score), "cider": cider}


def caption_scores(captions: Sequence[str], references: Sequence[str]) -> list[float]:
    """CIDEr of every caption, whose mean is that of `caption_metrics`; DependencyError without pycocoevalcap."""
    return _cider(captions, references)[1]


def _cider(captions: Sequence[str], references: Sequence[str]) -> tuple[float, list[float]]:
    try:
        from pycocoevalcap.cider.cider import Cider
    except ModuleNotFoundError as error:
        raise DependencyError(f'`{error.name}` is not installed; run `pip install "xattn-edge[data]"`') from error
    keyed = {number: [reference] for number, reference in enumerate(references)}
    mean, each = Cider().compute_score(keyed, {number: [caption] for number, caption in enumerate(captions)})
    return float(mean), [float(score) for score in each]
