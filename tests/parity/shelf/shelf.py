"""The shelf: published checkpoints whose folder form is proved, each at a small size with random weights."""

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

__all__ = ["SHELF"]

SHELF: tuple[Published, ...] = (*CAPTIONERS, *READERS, *BLIPS, *GITS, *BLIP2S, *DUALS, *ANSWERERS, *CHATS, *FLORENCES)
