"""The whole model as one graph: pixels in, token ids or words out.

The roles `whole` and `whole_text` of docs/bundle-format.md: made of the graphs that a bundle has, whose weights they
name. Where a bundle cannot have one of them, it says why.
"""

from __future__ import annotations

from xattn_export.whole.roles import WHOLE, WHOLE_TEXT, left_out, write_whole_graphs

__all__ = ["WHOLE", "WHOLE_TEXT", "left_out", "write_whole_graphs"]
