"""Captioned images of emoji: alone, in scenes of two or three on varied backgrounds, and on sheets of four.

Every training sample is a function of a seed and an index alone, so that training resumes exactly where it stopped.
Two concepts whose pair is held out never stand in one training scene; test scenes are made of such pairs alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from xattn_edge.data.drawing import add_noise, augment, background, place
from xattn_edge.data.emoji_images import ARTISTS, EmojiImages
from xattn_edge.data.emoji_names import TONES, scene_caption
from xattn_runtime.errors import DataError

__all__ = ["SIDE_PX", "SPLITS", "CaptionedImage", "EmojiCaptions", "Thing"]

SIDE_PX = 96
"""Side of every image of this data set."""

SPLITS = {
    "unseen-artist": "seen concepts, drawn by an artist who is not in training",
    "held-out-concepts": "concepts that are not in training in any tone",
    "held-out-tones": "professions in the one skin tone that training leaves out",
    "unseen-pairs": "scenes of images that never stand together in training",
}

_SCENES = 1000
_ALONE_SIZE_PX = 80
_HELD_OUT_PAIRS_OF = 10
_TONED_SHARE = 0.4
_SHEET_SIZES_PX = (26, 50)
_TRIES_PER_SCENE = 5000


@dataclass(frozen=True)
class Thing:
    """One emoji in an image: its number among `EmojiCaptions.concepts`, its tone among `tones`, its middle (x, y)."""

    concept: int
    tone: int
    centre_px: tuple[float, float]


@dataclass(frozen=True)
class CaptionedImage:
    """`pixels` `[96, 96, 3]` uint8 RGB, what it shows in words, and in training the things it shows."""

    pixels: NDArray[np.uint8]
    caption: str
    things: tuple[Thing, ...] = ()


@dataclass(frozen=True)
class _Layout:
    """Name, size and centres of the images of a scene, as shares of the side."""

    name: str
    sizes: tuple[float, float]
    centres: tuple[tuple[float, float], ...]


_LAYOUTS = {
    2: (
        _Layout("row", (0.36, 0.47), ((0.25, 0.5), (0.75, 0.5))),
        _Layout("column", (0.36, 0.47), ((0.5, 0.25), (0.5, 0.75))),
        _Layout("falling", (0.36, 0.46), ((0.26, 0.26), (0.74, 0.74))),
        _Layout("rising", (0.36, 0.46), ((0.74, 0.26), (0.26, 0.74))),
    ),
    3: (
        _Layout("row of three", (0.28, 0.33), ((0.17, 0.5), (0.5, 0.5), (0.83, 0.5))),
        _Layout("column of three", (0.28, 0.33), ((0.5, 0.17), (0.5, 0.5), (0.5, 0.83))),
        _Layout("one over two", (0.34, 0.45), ((0.5, 0.25), (0.25, 0.75), (0.75, 0.75))),
        _Layout("two over one", (0.34, 0.45), ((0.25, 0.25), (0.75, 0.25), (0.5, 0.75))),
    ),
}


class EmojiCaptions:
    """Training samples without end, and the four test splits.

    Raises:
        DataError: the images have not been fetched (`fetch_emoji`).
    """

    def __init__(self) -> None:
        self._set = EmojiImages()
        self._drawings = {artist.name: self._set.drawings(artist.name) for artist in ARTISTS}
        self._artists = [artist.name for artist in ARTISTS if artist.trained]
        train = self._rows("train")
        self._plain = np.array([row for row in train if self._set.images[row].tone is None])
        self._toned = np.array([row for row in train if self._set.images[row].tone is not None])
        self.concepts = sorted({self._set.images[row].concept for row in train})
        self.tones = [None, *TONES.values()]
        self._concept_numbers = {concept: number for number, concept in enumerate(self.concepts)}

    def training_sample(self, seed: int, index: int) -> CaptionedImage:
        """The sample number `index` of the stream that `seed` names: augmented, with a random background.

        Half of the samples show one image, half a scene of two or three.
        """
        rng = np.random.default_rng((seed, index))
        count = int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))
        if count > 1:
            return self._scene(rng, count, held_out=False)
        return self._one(rng, self._any_row(rng))

    def training_pairs(self, seed: int, index: int, count: int) -> tuple[NDArray[np.uint8], list[str]]:
        """`count` different concepts in some tone, each drawn by two artists, and what they are called.

        Returns:
            Images `[2, count, 96, 96, 3]`, augmented, with random backgrounds, and captions.
        """
        rng = np.random.default_rng((seed, index))
        rows: dict[str, int] = {}
        while len(rows) < count:
            row = self._any_row(rng)
            rows.setdefault(self._set.images[row].caption, row)
        images = [
            [self._one(rng, row, artist).pixels for artist in rng.permutation(self._artists)[:2]]
            for row in rows.values()
        ]
        return np.stack(images, axis=1), list(rows)

    def training_sheet(self, seed: int, index: int) -> CaptionedImage:
        """Four small images, one in each quarter, augmented: much to see in little time. It has no caption."""
        rng = np.random.default_rng((seed, index))
        canvas, things = _white() if rng.random() < 0.3 else background(rng, SIDE_PX), []
        for left, top in product((0, SIDE_PX / 2), repeat=2):
            row, size = self._any_row(rng), int(rng.integers(*_SHEET_SIZES_PX))
            x, y = rng.uniform(SIDE_PX * 0.21, SIDE_PX * 0.29, 2) + np.array((left, top))
            drawing = self._drawing(str(rng.choice(self._artists)), row).resize((size, size), Image.Resampling.BILINEAR)
            place(canvas, augment(rng, drawing), (x, y), size)
            things.append(self._thing(row, x, y))
        return CaptionedImage(add_noise(rng, canvas), "", tuple(things))

    def training_captions(self) -> list[str]:
        """Every caption of a training image alone."""
        return [self._set.images[row].caption for row in self._rows("train")]

    def training_images(self) -> Iterator[CaptionedImage]:
        """Every training image alone, by every training artist, on white, not augmented."""
        return self._alone(self._rows("train"), self._artists)

    def training_scenes(self, count: int) -> Iterator[CaptionedImage]:
        """`count` scenes as training has them, not augmented."""
        for index in range(count):
            rng = np.random.default_rng((1, index))
            yield self._scene(rng, 2 + index % 2, held_out=False, augmented=False)

    def split_size(self, split: str) -> int:
        """Number of images of a test split."""
        if split == "unseen-pairs":
            return _SCENES
        rows, artists = self._split_rows(split)
        return len(rows) * len(artists)

    def test_samples(self, split: str) -> Iterator[CaptionedImage]:
        """A test split, in an order that mixes it evenly, so that its beginning is a fair sample of it.

        Raises:
            DataError: an unknown split.
        """
        if split == "unseen-pairs":
            return (
                self._scene(np.random.default_rng((2, index)), 2 + index % 2, held_out=True, augmented=False)
                for index in range(_SCENES)
            )
        rows, artists = self._split_rows(split)
        return self._alone([int(row) for row in np.random.default_rng(0).permutation(rows)], artists)

    def alone_by(self, artist: str, split: str) -> tuple[list[str], NDArray[np.uint8]]:
        """Every concept of `split` (`train`, `held-out-concepts` or `held-out-tones`) alone on white, by one artist.

        Returns:
            Captions, and images `[count, 96, 96, 3]` in the same order.
        """
        samples = list(self._alone(self._rows(split), [artist]))
        return [sample.caption for sample in samples], np.stack([sample.pixels for sample in samples])

    def _split_rows(self, split: str) -> tuple[list[int], list[str]]:
        if split not in SPLITS:
            raise DataError(f"emoji: unknown split {split!r}; expected one of {', '.join(SPLITS)}")
        if split == "unseen-artist":
            return self._rows("train"), [artist.name for artist in ARTISTS if not artist.trained]
        return self._rows(split), self._artists

    def _rows(self, split: str) -> list[int]:
        return [row for row, image in enumerate(self._set.images) if image.split == split]

    def _drawing(self, artist: str, row: int) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self._drawings[artist][row]))

    def _thing(self, row: int, x: float, y: float) -> Thing:
        image = self._set.images[row]
        return Thing(self._concept_numbers[image.concept], self.tones.index(image.tone), (x, y))

    def _any_row(self, rng: Generator) -> int:
        rows = self._toned if rng.random() < _TONED_SHARE else self._plain
        return int(rows[rng.integers(len(rows))])

    def _alone(self, rows: Sequence[int], artists: Sequence[str]) -> Iterator[CaptionedImage]:
        for row in rows:
            for artist in artists:
                canvas = _white()
                place(canvas, self._drawing(artist, row), (SIDE_PX / 2, SIDE_PX / 2), _ALONE_SIZE_PX)
                yield CaptionedImage(np.asarray(canvas), self._set.images[row].caption)

    def _one(self, rng: Generator, row: int, artist: str | None = None) -> CaptionedImage:
        """One image, augmented, on white or another background, by any training artist if not by `artist`."""
        canvas = _white() if rng.random() < 0.5 else background(rng, SIDE_PX)
        size = int(rng.integers(52, 93))
        slack = max(0.0, (SIDE_PX - size) / 2)
        x, y = rng.uniform(-slack, slack, 2) + SIDE_PX / 2
        drawn = self._drawing(artist or str(rng.choice(self._artists)), row)
        drawing = drawn.resize((size, size), Image.Resampling.BILINEAR)
        place(canvas, augment(rng, drawing), (x, y), size)
        return CaptionedImage(add_noise(rng, canvas), self._set.images[row].caption, (self._thing(row, x, y),))

    def _scene(self, rng: Generator, count: int, *, held_out: bool, augmented: bool = True) -> CaptionedImage:
        rows = self._rows_together(rng, count, held_out)
        layout = _LAYOUTS[count][int(rng.integers(len(_LAYOUTS[count])))]
        artist = str(rng.choice(self._artists))
        canvas, things = background(rng, SIDE_PX), []
        for row, (x, y) in zip(rows, layout.centres, strict=True):
            drawing = self._drawing(artist, row)
            jitter = rng.uniform(-0.03, 0.03, 2)
            size = round(rng.uniform(*layout.sizes) * SIDE_PX)
            centre = ((x + jitter[0]) * SIDE_PX, (y + jitter[1]) * SIDE_PX)
            drawing = drawing.resize((size, size), Image.Resampling.BILINEAR)
            place(canvas, augment(rng, drawing) if augmented else drawing, centre, size)
            if augmented:
                things.append(self._thing(row, *centre))
        pixels = add_noise(rng, canvas) if augmented else np.asarray(canvas)
        caption = scene_caption(layout.name, [self._set.images[row].caption for row in rows])
        return CaptionedImage(pixels, caption, tuple(things))

    def _rows_together(self, rng: Generator, count: int, held_out: bool) -> list[int]:
        """Rows of which every pair is held out, or no pair is."""
        rows = [self._any_row(rng)]
        tries = 0
        while len(rows) < count:
            row = self._any_row(rng)
            tries += 1
            if tries % _TRIES_PER_SCENE == 0:
                rows = [row]
                continue
            concepts = [self._set.images[each].concept for each in (*rows, row)]
            if all(_pair_is_held_out(a, b) == held_out for a, b in combinations(concepts, 2)):
                rows.append(row)
        return rows


def _white() -> Image.Image:
    return Image.new("RGB", (SIDE_PX, SIDE_PX), (255, 255, 255))


def _pair_is_held_out(first: str, second: str) -> bool:
    """One unordered pair of different concepts in ten."""
    key = " ".join(sorted((first, second))).encode()
    digest = hashlib.blake2b(key, digest_size=4).digest()
    return first != second and int.from_bytes(digest) % _HELD_OUT_PAIRS_OF == 0
