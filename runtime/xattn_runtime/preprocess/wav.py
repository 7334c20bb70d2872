"""Sound out of a WAV file, in the forms that programs and recorders write it.

RIFF, with 64-bit sizes too: RF64 (EBU Tech 3306) and BW64 (ITU-R BS.2088); PCM of 8 to 32 bits and floating point, also
in WAVE_FORMAT_EXTENSIBLE. What is no such file is named as what it is. It knows no rate and length that a model wants.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.brought_files import placeholder_of
from xattn_runtime.errors import AudioError, problem
from xattn_runtime.json_reader import show
from xattn_runtime.preprocess.formats import HEAD_BYTES, kind_of, remote_or_inline
from xattn_runtime.preprocess.image import read_open_file

__all__ = ["WavFile", "WavInput", "open_wav"]

WavInput = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
"""A WAV file: its path, its bytes, or the file itself, open in binary."""

_CHUNK = struct.Struct("<4sI")
_FORMAT = struct.Struct("<HHIIHH")
_RIFF = (b"RIFF", b"RF64", b"BW64")
# Of the whole file and of its sound, in RF64 and BW64.
_SIZES = struct.Struct("<QQ")
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
# Where the format of WAVE_FORMAT_EXTENSIBLE stands in its chunk, and what follows it there: the GUID of its kind.
_SUBFORMAT, _OF_A_TAG = 24, bytes.fromhex("000000001000800000aa00389b71")
_IN_DS64 = 0xFFFFFFFF
# Programs that write into a pipe state a size near the largest that there is, and never come back to correct it.
_LEAST_UNKNOWN = 0x7FFF0000
_MOST_SHOWN = 1000
_MOST_CHUNKS = 10_000
_PIPE_LIMIT_BYTES = 64 * 2**20
_CODES = {
    2: "ADPCM", 6: "A-law", 7: "mu-law", 0x11: "ADPCM", 0x31: "GSM", 0x50: "MPEG", 0x55: "MP3", 0x92: "AC-3",
    0xFF: "AAC", 0x160: "WMA", 0x161: "WMA", 0x162: "WMA", 0x163: "WMA", 0x2000: "AC-3",
}  # fmt: skip


@dataclass(frozen=True)
class _Format:
    """bytes: of a sample of one channel."""

    rate_hz: int
    channels: int
    bytes: int
    is_float: bool


@dataclass(frozen=True)
class WavFile:
    """A WAV file whose header has been read. samples: of each channel."""

    name: str
    format: _Format
    samples: int
    _stream: BinaryIO
    _start: int

    @property
    def rate_hz(self) -> int:
        """Samples a second."""
        return self.format.rate_hz

    @property
    def channels(self) -> int:
        """Sounds that were recorded side by side."""
        return self.format.channels

    def read(self) -> NDArray[np.float32]:
        """All samples, float32 `[samples, channels]`; those of PCM from -1 to 1."""
        self._stream.seek(self._start)
        data = self._stream.read(self.samples * self.channels * self.format.bytes)
        return _decoded(data, self.format).reshape(-1, self.channels)


def _decoded(data: bytes, format_: _Format) -> NDArray[np.float32]:
    if format_.is_float:
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            return np.frombuffer(data, f"<f{format_.bytes}").astype(np.float32)
    if format_.bytes == 1:  # the only ones without a sign
        return (np.frombuffer(data, np.uint8).astype(np.float32) - np.float32(128)) / np.float32(128)
    if format_.bytes == 3:  # the highest three bytes of 32 bits
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return np.asarray(wide.view("<i4")[:, 0] / 2.0**31, dtype=np.float32)
    whole = np.frombuffer(data, f"<i{format_.bytes}")
    return np.asarray(whole / 2.0 ** (8 * format_.bytes - 1), dtype=np.float32)


@contextmanager
def open_wav(source: WavInput) -> Iterator[WavFile]:
    """The WAV file at a path, of these bytes, or that is open in binary, from where it stands.

    Raises AudioError, one line, for anything missing, cut short, of another format or coding; it names what was found.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        yield _read("audio", io.BytesIO(source))
        return
    if not isinstance(source, str | os.PathLike):
        yield _read("audio", io.BytesIO(read_open_file(source, "audio", AudioError)))
        return
    name = os.fsdecode(source)
    if not name:
        raise AudioError("audio: expected a path, found an empty text; was a variable not set?")
    try:
        with Path(name).open("rb") as file:
            yield _read(name, _seekable(name, file))
    except (OSError, ValueError) as error:  # a ValueError for a path with NUL in it
        found = remote_or_inline(name)
        found = f": {problem(error)}" if found is None else f" {found}"
        raise AudioError(f"{_shown(name)}: expected a WAV file, found{found}") from error


def _seekable(name: str, file: BinaryIO) -> BinaryIO:
    """The file; the bytes of one that comes through a pipe."""
    if file.seekable():
        return file
    data = file.read(_PIPE_LIMIT_BYTES + 1)
    if len(data) > _PIPE_LIMIT_BYTES:
        raise AudioError(f"{name}: expected at most {_PIPE_LIMIT_BYTES} bytes through a pipe, found more; cut it")
    return io.BytesIO(data)


def _read(name: str, stream: BinaryIO) -> WavFile:
    end = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    if len(head) < 12 or head[:4] not in _RIFF or head[8:12] != b"WAVE":
        raise AudioError(f"{_shown(name)}: expected a WAV file, found {_what(head, end)}")
    stated_end = int.from_bytes(head[4:8], "little") + 8
    stream.seek(12)
    format_: _Format | None = None
    data_bytes: int | None = None
    for kind, size, start in _chunks(stream, end):
        if kind == b"ds64" and size >= _SIZES.size:
            riff_bytes, data_bytes = _SIZES.unpack(stream.read(_SIZES.size))
            stated_end = riff_bytes + 8
        elif kind == b"fmt ":
            format_ = _read_format(name, stream.read(min(size, 64)))
        elif kind == b"data":
            if format_ is None:
                break
            known = size if size != _IN_DS64 or data_bytes is None else data_bytes
            sound = _sound_bytes(name, known, start, end, stated_end)
            samples = sound // (format_.channels * format_.bytes)
            return WavFile(name, format_, samples, stream, start)
    missing = "format before its sound (no chunk 'fmt ')" if format_ is None else "sound (no chunk 'data')"
    raise AudioError(f"{_shown(name)}: expected a WAV file with its {missing}, found none; save it again")


def _chunks(stream: BinaryIO, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, size and place of each chunk; the stream stands at its content. One of an odd size has a byte after it."""
    place = stream.tell()
    for _ in range(_MOST_CHUNKS):
        stream.seek(place)
        header = stream.read(_CHUNK.size)
        if len(header) < _CHUNK.size or place >= end:
            return
        kind, size = _CHUNK.unpack(header)
        yield kind, size, place + _CHUNK.size
        place += _CHUNK.size + size + size % 2


def _sound_bytes(name: str, stated: int, start: int, end: int, stated_end: int) -> int:
    """How many bytes of sound there are: as stated, or to the end of the file where the writer never said."""
    there = end - start
    never_ended = stated == 0 and (stated_end <= start or stated_end >= _LEAST_UNKNOWN)
    if (stated > there and stated >= _LEAST_UNKNOWN) or never_ended:
        return there
    if stated > there:
        raise AudioError(
            f"{_shown(name)}: expected {stated} bytes of sound, as it says itself, found {there}: it was cut short; "
            "copy or record it again"
        )
    return stated


def _read_format(name: str, chunk: bytes) -> _Format:
    if len(chunk) < _FORMAT.size:
        raise AudioError(f"{_shown(name)}: expected 16 bytes of format or more, found {len(chunk)}; save it again")
    tag, channels, rate, _, block, bits = _FORMAT.unpack(chunk[: _FORMAT.size])
    if tag == _EXTENSIBLE and chunk[_SUBFORMAT + 2 : _SUBFORMAT + 16] == _OF_A_TAG:
        tag = int.from_bytes(chunk[_SUBFORMAT : _SUBFORMAT + 2], "little")
    if tag not in (_PCM, _FLOAT):
        coding = _CODES.get(tag, f"coding 0x{tag:04x}")
        raise AudioError(f"{_shown(name)}: expected PCM or floating-point samples, found {coding}; convert it to PCM")
    stored = -(-bits // 8)
    if stored not in ((1, 2, 3, 4) if tag == _PCM else (4, 8)) or channels < 1 or block != channels * stored:
        raise AudioError(
            f"{_shown(name)}: expected samples of 8, 16, 24 or 32 bits, or floating-point ones of 32 or 64, found "
            f"{bits} bits in {block} bytes for {channels} channels; convert it to 16-bit PCM"
        )
    return _Format(rate, channels, stored, tag == _FLOAT)


def _what(head: bytes, size: int) -> str:
    """What a file is that is no WAV file, by its first bytes, and what to do."""
    if not size:
        return "an empty file; copy or record it again"
    if (placeholder := placeholder_of(head)) is not None:
        return placeholder
    if head[:4] == _RIFF[0] and len(head) >= 12 and (kind := kind_of(head)) is None:
        return f"a RIFF file of another kind ({_printable(head[8:12])}); convert it to WAV"
    kind = kind_of(head) or f"a file of another kind, which begins with {_printable(head[:8])}"
    return f"{kind}; convert it to WAV"


def _printable(text: bytes) -> str:
    return show(text.decode("latin-1"))


def _shown(name: str) -> str:
    return name if name.isprintable() and len(name) <= _MOST_SHOWN else show(name)
