"""Recall on the emoji set: whether the right image is among the first, for concepts and an artist not trained on.

It knows no model: whoever asks says how images and texts are embedded. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from xattn_edge.data.emoji_captions import EmojiCaptions
from xattn_edge.data.emoji_images import ARTISTS, Artist
from xattn_runtime.progress import Progress, silent

__all__ = ["RECALLS", "RERANKED", "recall", "retrieval_scores"]

RECALLS = (1, 5, 10)
RERANKED = 10
"""How many of the nearest are reranked."""

_POOL_PX = 3
_GALLERY = "noto"
_RERANKED_ARTISTS = ("noto", "openmoji")

EmbedImages = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
EmbedTexts = Callable[[Sequence[str]], NDArray[np.float32]]
Rerank = Callable[[str, NDArray[np.uint8], NDArray[np.float32]], NDArray[np.float32]]


def recall(ranks: NDArray[np.int64]) -> dict[str, float]:
    """`recall_at_1`, `_5` and `_10`, from 0 to 1, of the place of each right one, counted from 0; and `n`."""
    scores = {f"recall_at_{count}": float((ranks < count).mean()) for count in RECALLS}
    return {"n": len(ranks), **scores}


def ranks_of(cosines: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many of each row of `[queries, candidates]` stand before its own, which is on the diagonal."""
    own = np.diagonal(cosines)[:, None]
    # Of equals, those that come first.
    earlier = np.tril(cosines == own, -1)
    ranks: NDArray[np.int64] = ((cosines > own) | earlier).sum(1)
    return ranks


def retrieval_scores(
    data: EmojiCaptions,
    embed_images: EmbedImages,
    embed_texts: EmbedTexts,
    rerank: Rerank | None = None,
    limit: int | None = None,
    progress: Progress = silent,
) -> dict[str, dict[str, float]]:
    """Recall by split, artist and direction, as `held-out-concepts/noto/text-to-image`.

    Text to image: each name among all images of the split by one artist. Image to image: each image by the unseen
    artist among those of the same split by Noto; `raw-pixels` is that by the pixels, averaged over 3×3, alone.
    `reranked` are those whose first `RERANKED` are put in the order of `rerank`. `limit` images of each.
    """
    scores: dict[str, dict[str, float]] = {}
    for number, (split, artist) in enumerate(parts := list(_parts())):
        progress(f"looking at {split} by {artist.name}", number / len(parts))
        captions, images = data.alone_by(artist.name, split)
        captions, images = captions[:limit], images[:limit]
        name, embedded = f"{split}/{artist.name}", embed_images(images)
        cosines = embed_texts(captions) @ embedded.T
        scores[f"{name}/text-to-image"] = recall(ranks_of(cosines))
        if rerank is not None and split != "train" and artist.name in _RERANKED_ARTISTS:
            scores[f"{name}/text-to-image/reranked"] = recall(_reranked(cosines, captions, images, rerank))
        if not artist.trained:
            gallery = data.alone_by(_GALLERY, split)[1][:limit]
            scores[f"{name}/image-to-image"] = recall(ranks_of(embedded @ embed_images(gallery).T))
            scores[f"{name}/image-to-image/raw-pixels"] = recall(ranks_of(_nearness(_pooled(images), _pooled(gallery))))
    return scores


def _parts() -> Iterator[tuple[str, Artist]]:
    for artist in ARTISTS:
        yield "held-out-concepts", artist
    yield from (("train", artist) for artist in ARTISTS if not artist.trained)


def _reranked(
    cosines: NDArray[np.float32], captions: Sequence[str], images: NDArray[np.uint8], rerank: Rerank
) -> NDArray[np.int64]:
    again = np.array(cosines)
    for row, caption in enumerate(captions):
        first = np.argsort(-cosines[row], kind="stable")[:RERANKED]
        scores = rerank(caption, images[first], cosines[row, first])
        # All of them stay before the others, whose cosines are at most 1.
        again[row, first] = 2 + scores - scores.min()
    return ranks_of(again)


def _pooled(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    count, height, width, channels = images.shape
    blocks = images.reshape(count, height // _POOL_PX, _POOL_PX, width // _POOL_PX, _POOL_PX, channels)
    pooled: NDArray[np.float32] = blocks.mean((2, 4), dtype=np.float32).reshape(count, -1)
    return pooled


def _nearness(queries: NDArray[np.float32], gallery: NDArray[np.float32]) -> NDArray[np.float32]:
    nearness: NDArray[np.float32] = 2 * queries @ gallery.T - np.square(gallery).sum(1)
    return nearness
