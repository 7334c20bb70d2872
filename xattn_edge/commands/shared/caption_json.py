"""A caption as the JSON that `caption` prints and writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xattn_runtime.tasks import Caption

__all__ = ["caption_json"]


def caption_json(caption: Caption) -> dict[str, Any]:
    """A caption as JSON; `n_best` where several were asked for."""
    values: dict[str, Any] = {"caption": caption.text, "token_ids": list(caption.token_ids), "score": caption.score}
    if caption.n_best:
        values["n_best"] = [
            {
                "caption": one.text,
                "token_ids": list(one.token_ids),
                "score": one.score,
                "search_score": one.search_score,
            }
            for one in caption.n_best
        ]
    return values
