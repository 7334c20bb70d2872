"""`--heatmap`: what the words attended to, drawn into a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from xattn_edge.commands.shared.console import Console

if TYPE_CHECKING:
    from xattn_runtime.tasks.shared.attention_maps import AttentionMap

__all__ = ["draw_heatmap"]


def draw_heatmap(
    console: Console, path: Path, attention: Callable[[], AttentionMap], layer: int | None, head: int | None
) -> None:
    """Write what `attention` gives to `path`, and say so."""
    from xattn_runtime.tasks.shared.heatmap import write_heatmap

    attention_map = attention()
    write_heatmap(path, attention_map, layer, head)
    console.note(f"{path}: {len(attention_map.words)} words")
