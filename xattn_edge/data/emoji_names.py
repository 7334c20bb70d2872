"""The English of emoji: what one is called, and how a scene of several is told.

Names are those of Unicode CLDR, as the `emoji` package carries them. An image's skin tone is told at the end, so that
the words of a toned image are the words of its base and of its tone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["TONES", "caption_of_name", "scene_caption", "scene_words", "with_article"]

TONES = {0x1F3FB: "light", 0x1F3FC: "medium-light", 0x1F3FD: "medium", 0x1F3FE: "medium-dark", 0x1F3FF: "dark"}
"""Unicode skin tone modifiers (Fitzpatrick types 1-2, 3, 4, 5 and 6)."""

_TONE = re.compile(r" (light|medium-light|medium|medium-dark|dark) skin tone")
_HAIR = re.compile(r"^(man|woman|person)\b(.*?) (red hair|white hair|curly hair|blond hair|beard)$")
_BALD = re.compile(r"^(man|woman|person) bald$")
_NO_ARTICLE = re.compile(r"^(men|women|people|kissing people|folded hands|open hands|palms|clapping hands|\d+)\b")
_PLURAL = re.compile(r"(?<![su])s$")
_VOWEL_SOUND = re.compile(
    r"^(?!(?:uni|use|one|euro|ewe|utensil))[aeiou]|^hour|^(?:SOS|NG|ATM|ID|ON|OK|AB|O|A|UP)\b", re.IGNORECASE
)


def caption_of_name(name: str) -> str:
    """The caption of one image, from its CLDR short name.

    >>> caption_of_name("woman_cook_medium-dark_skin_tone")
    'woman cook with medium-dark skin tone'
    >>> caption_of_name("man_light_skin_tone_red_hair")
    'man with light skin tone and red hair'
    """
    words = name.replace("_", " ").replace("’", "'")
    tone = _TONE.search(words)
    base = _TONE.sub("", words)
    features = [f"{tone[1]} skin tone"] if tone else []
    if hair := _HAIR.match(base):
        base = hair[1] + hair[2]
        features.append(hair[3])
    base = _BALD.sub(r"bald \1", base)
    if not features:
        return base
    joiner = " and " if " with " in base else " with "
    return base + joiner + " and ".join(features)


def with_article(caption: str) -> str:
    """The caption after its indefinite article, where it takes one.

    >>> with_article("unicorn"), with_article("apple core"), with_article("grapes")
    ('a unicorn', 'an apple core', 'grapes')
    """
    noun = re.split(r" (?:with|of|in|on|and|facing|holding) ", caption)[0]
    if _NO_ARTICLE.match(caption) or _PLURAL.search(noun):
        return caption
    return f"{'an' if _VOWEL_SOUND.match(caption) else 'a'} {caption}"


_LAYOUTS = {
    "row": "{} to the left of {}",
    "column": "{} above {}",
    "falling": "{} above and to the left of {}",
    "rising": "{} above and to the right of {}",
    "row of three": "{} to the left of {} to the left of {}",
    "column of three": "{} above {} above {}",
    "one over two": "{} above {} to the left of {}",
    "two over one": "{} to the left of {} and both above {}",
}


def scene_caption(layout: str, captions: Sequence[str]) -> str:
    """How a scene is told; `captions` are in reading order, from the top and from the left.

    >>> scene_caption("row", ["red apple", "violin"])
    'red apple to the left of a violin'

    Raises:
        KeyError: an unknown layout.
    """
    first, *rest = captions
    return _LAYOUTS[layout].format(first, *map(with_article, rest))


def scene_words() -> list[str]:
    """The words that scenes need beside the names."""
    return ["a an", *(layout.replace("{}", " ") for layout in _LAYOUTS.values())]
