"""The whole model as one graph: pixels in, token ids or words out.

The roles `whole` and `whole_text` of docs/bundle-format.md: joined from the graphs of a bundle, whose weight
files they refer to. Where a bundle cannot have one of them, the manifest holds the reason.
"""

from __future__ import annotations

from xattn_export.whole.roles import WHOLE, WHOLE_TEXT, left_out, write_whole_graphs

__all__ = ["WHOLE", "WHOLE_TEXT", "left_out", "write_whole_graphs"]
