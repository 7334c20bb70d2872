"""The shelf: published checkpoints whose folder form is proved, each at a small size with random weights.

Run as a module it prints their table, and how many are seen whole, for docs/families.md.
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
from tests.parity.shelf.published import Origin, Published
from tests.parity.shelf.readers import READERS

__all__ = ["SHELF", "TABLE", "row_of", "seen"]

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
    "| checkpoint | saved by Transformers | config.json | generation | images | tokenizer | found in |",
    "|---|---|---|---|---|---|---|",
)
"""The head of the table in docs/families.md."""


def row_of(published: Published) -> str:
    """The checkpoint's row in docs/families.md."""
    found = published.found
    cells = (
        published.name, published.saved_by, found.config, found.generation, found.images, found.tokenizer,
        published.places,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def seen() -> str:
    """What docs/families.md says of the whole table."""
    rows = [published.found for published in SHELF]
    columns = ([getattr(row, name) for row in rows] for name in ("config", "images", "tokenizer"))
    config, images, tokenizer = (sum(origin in (Origin.OWN, Origin.AGAIN) for origin in each) for each in columns)
    return (
        f"Of {len(rows)} folders the settings of config.json were seen for {config}, as published or saved again, "
        f"those of images for {images}, and those of the tokenizer for {tokenizer}."
    )


if __name__ == "__main__":
    print("\n".join((seen(), "", *TABLE, *map(row_of, SHELF))))
