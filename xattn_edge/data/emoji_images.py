"""The emoji set: the same images drawn by four artists, fetched once, rendered once, split once.

| artist | licence | used for |
|---|---|---|
| Noto, Twemoji, Fluent | Apache-2.0, CC-BY-4.0, MIT | training and test |
| OpenMoji | CC-BY-SA-4.0 | test only: the artist that the model has never seen |

The drawings come from the npm packages `@iconify-json/*`, of exactly the versions and checksums below.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xattn_edge.data.cache import cache_folder, checked_archive, damaged, download, is_cached, mapped_array
from xattn_edge.data.emoji_names import TONES, caption_of_name
from xattn_runtime.errors import DataError, DependencyError
from xattn_runtime.files import atomic_folder, scratch_folder
from xattn_runtime.progress import Progress, silent

__all__ = ["ARTISTS", "IMAGE_SIZE_PX", "Artist", "Emoji", "EmojiImages", "fetch_emoji", "is_fetched"]

IMAGE_SIZE_PX = 80
_VERSION = "v1"
_INDEX = "index.json"
_VARIATION_SELECTOR = 0xFE0F
# The objects that follow a person in Unicode's professions: staff of Aesculapius, scales, aeroplane, ear of rice, …
# fmt: off
_PROFESSIONS = frozenset({
    0x2695, 0x2696, 0x2708, 0x1F33E, 0x1F373, 0x1F393, 0x1F3A4, 0x1F3A8, 0x1F3EB, 0x1F3ED,
    0x1F4BB, 0x1F4BC, 0x1F527, 0x1F52C, 0x1F680, 0x1F692,
})
# fmt: on
_PEOPLE = frozenset((0x1F468, 0x1F469, 0x1F9D1))
_HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Artist:
    """One of the four sets of drawings."""

    name: str
    package: str
    version: str
    sha256: str
    license: str
    trained: bool


ARTISTS = (
    Artist(
        "noto",
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0",
        True,
    ),
    Artist(
        "twemoji",
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0",
        True,
    ),
    Artist(
        "fluent",
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT",
        True,
    ),
    Artist(
        "openmoji",
        "@iconify-json/openmoji",
        "1.2.29",
        "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
        "CC-BY-SA-4.0",
        False,
    ),
)


@dataclass(frozen=True)
class Emoji:
    """What one emoji shows, whoever drew it."""

    code_points: str
    caption: str
    concept: str
    """Code points without the skin tone: all tones of one emoji are one concept."""
    tone: str | None
    split: str
    """`train`, `held-out-concepts` or `held-out-tones`."""


class EmojiImages:
    """The fetched set. `images[i]` is drawn by every artist at `drawings(artist)[i]`.

    Raises:
        DataError: it has not been fetched, or is damaged.
    """

    def __init__(self) -> None:
        self.folder = _folder()
        index = self.folder / _INDEX
        if not index.is_file():
            raise DataError(f"the emoji images are not in {self.folder}; run `xattn-edge data fetch emoji`")
        try:
            self.images = tuple(Emoji(**entry) for entry in json.loads(index.read_bytes()))
        except (ValueError, TypeError) as error:
            raise damaged(index, error) from error

    def drawings(self, artist: str) -> NDArray[np.uint8]:
        """`[images, 80, 80, 4]` uint8 RGBA, mapped from disk."""
        path = self.folder / f"{artist}.npy"
        drawings: NDArray[np.uint8] = mapped_array(path)
        expected = (len(self.images), IMAGE_SIZE_PX, IMAGE_SIZE_PX, 4)
        if drawings.shape != expected or drawings.dtype != np.uint8:
            raise DataError(f"{path}: expected uint8 {expected}, found {drawings.dtype} {drawings.shape}; fetch again")
        return drawings


def is_fetched() -> bool:
    """Whether the set lies in the cache."""
    return is_cached("emoji", _VERSION, _INDEX)


def fetch_emoji(progress: Progress = silent) -> Path:
    """Fetch and render the set, unless it is there; returns its folder.

    Args:
        progress: called with what is done and the share of the whole, 0 to 1.

    Raises:
        DependencyError: `npm`, `emoji` or `resvg-py` is not installed.
        DataError: a package cannot be fetched or has another checksum.
    """
    folder = _folder()
    if is_fetched():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder) as downloads, atomic_folder(folder) as work:
        sets = [_fetch_artist(artist, downloads) for artist in ARTISTS]
        images = _list_emoji(set.intersection(*(set(icons) for icons in sets)))
        for number, (artist, icons) in enumerate(zip(ARTISTS, sets, strict=True)):
            drawings = np.empty((len(images), IMAGE_SIZE_PX, IMAGE_SIZE_PX, 4), np.uint8)
            for row, image in enumerate(images):
                drawings[row] = _render(icons[image.code_points])
                if row % 50 == 0:
                    progress(f"render {artist.name}", (number + row / len(images)) / len(ARTISTS))
            np.save(work / f"{artist.name}.npy", drawings)
        index = json.dumps([asdict(image) for image in images], ensure_ascii=False, indent=0)
        (work / _INDEX).write_text(index, encoding="utf-8")
    return folder


def _folder() -> Path:
    return cache_folder() / "emoji" / _VERSION


def _fetch_artist(artist: Artist, folder: Path) -> dict[str, str]:
    """SVG text of every icon of `artist`, by code points."""
    npm = shutil.which("npm")
    if npm is None:
        raise DependencyError("`npm` is not installed: the emoji drawings come from npm packages; install Node.js")
    package = f"{artist.package} {artist.version}"
    printed = download([npm, "pack", "--silent", f"{artist.package}@{artist.version}"], folder, package)
    archive = checked_archive(folder / printed.strip().splitlines()[-1], artist.sha256, package)
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        icons, characters = (_read_member(tar, f"package/{name}.json") for name in ("icons", "chars"))
    return {_without_selector(code): _svg(icons, name) for code, name in characters.items()}


def _read_member(tar: tarfile.TarFile, name: str) -> Any:
    member = tar.extractfile(name)
    if member is None:
        raise DataError(f"{name} is missing in the package")
    return json.load(member)


def _without_selector(code_points: str) -> str:
    return "-".join(point for point in code_points.split("-") if int(point, 16) != _VARIATION_SELECTOR)


def _svg(icons: Mapping[str, Any], name: str) -> str:
    """A whole SVG document from the Iconify form, in which icons share defaults and may be aliases."""
    entry = dict(icons["icons"].get(name) or icons["aliases"][name])
    flips = [key for key in ("hFlip", "vFlip", "rotate") if entry.get(key)]
    if flips:
        raise DataError(f"icon {name}: {', '.join(flips)} is not supported")
    if "parent" in entry:
        return _svg(icons, entry["parent"])
    box = [entry.get(key, icons.get(key, default)) for key, default in _BOX.items()]
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{" ".join(map(str, box))}">{entry["body"]}</svg>'


_BOX = {"left": 0, "top": 0, "width": 16, "height": 16}


def _render(svg: str) -> NDArray[np.uint8]:
    try:
        import resvg_py
    except ModuleNotFoundError as error:
        raise DependencyError('`resvg-py` is not installed; run `pip install "xattn-edge[data]"`') from error
    png = resvg_py.svg_to_bytes(svg_string=svg, width=IMAGE_SIZE_PX, height=IMAGE_SIZE_PX, skip_system_fonts=True)
    canvas = Image.new("RGBA", (IMAGE_SIZE_PX, IMAGE_SIZE_PX))
    with Image.open(io.BytesIO(bytes(png)), formats=("PNG",)) as drawing:
        canvas.paste(
            drawing.convert("RGBA"), ((IMAGE_SIZE_PX - drawing.width) // 2, (IMAGE_SIZE_PX - drawing.height) // 2)
        )
    return np.asarray(canvas)


def _list_emoji(drawn: set[str]) -> list[Emoji]:
    """Every emoji that all artists drew and that has a name, with its split."""
    names = {code: name for code, name in _cldr_names() if code in drawn}
    return [_emoji(code, names[code]) for code in sorted(names)]


def _cldr_names() -> Iterator[tuple[str, str]]:
    try:
        import emoji
    except ModuleNotFoundError as error:
        raise DependencyError('`emoji` is not installed; run `pip install "xattn-edge[data]"`') from error
    for text, entry in emoji.EMOJI_DATA.items():
        if entry["status"] <= emoji.STATUS["fully_qualified"]:
            yield _without_selector("-".join(f"{ord(char):x}" for char in text)), entry["en"].strip(":")


def _emoji(code_points: str, name: str) -> Emoji:
    points = [int(point, 16) for point in code_points.split("-")]
    tones = [TONES[point] for point in points if point in TONES]
    concept = "-".join(f"{point:x}" for point in points if point not in TONES)
    tone = tones[0] if tones else None
    return Emoji(code_points, caption_of_name(name), concept, tone, _split_of(points, concept, tone))


def _split_of(points: list[int], concept: str, tone: str | None) -> str:
    """By concept; of each profession, one tone is held out for man, woman and person alike."""
    profession = _PROFESSIONS.intersection(points) if points[0] in _PEOPLE else frozenset()
    if profession:
        held_out_tone = list(TONES.values())[min(profession) % len(TONES)]
        return "held-out-tones" if tone == held_out_tone else "train"
    digest = hashlib.sha256(concept.encode()).digest()
    share = int.from_bytes(digest[:4], "big") / 2**32
    return "held-out-concepts" if share < _HELD_OUT_SHARE else "train"
