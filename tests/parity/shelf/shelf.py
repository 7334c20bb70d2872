"""The shelf: published checkpoints whose folder form is proved, each at a small size with random weights.

Run as a module it prints their table for docs/families.md.
"""

from __future__ import annotations

from tests.parity.shelf.answerers import ANSWERERS
from tests.parity.shelf.blip import BLIPS
from tests.parity.shelf.blip2 import BLIP2S
from tests.parity.shelf.captioners import CAPTIONERS
from tests.parity.shelf.chat import CHATS
from tests.parity.shelf.dual import DUALS
from tests.parity.shelf.florence import FLORENCES
from tests.parity.shelf.git import GITS
from tests.parity.shelf.published import Published
from tests.parity.shelf.readers import READERS

__all__ = ["SHELF", "TABLE", "row_of"]

SHELF: tuple[Published, ...] = (
    *CAPTIONERS,
    *READERS,
    *BLIPS,
    *GITS,
    *BLIP2S,
    *DUALS,
    *ANSWERERS,
    *CHATS,
    *FLORENCES,
)
TABLE = (
    "| checkpoint | saved by Transformers | its settings were found in | not found, and taken as usual |",
    "|---|---|---|---|",
)
"""The head of the table in docs/families.md."""


def row_of(published: Published) -> str:
    """The checkpoint's row in docs/families.md."""
    return f"| {published.name} | {published.saved_by} | {published.found} | {published.assumed or '–'} |"


if __name__ == "__main__":
    print("\n".join((*TABLE, *map(row_of, SHELF))))
