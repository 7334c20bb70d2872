"""WAV files as programs and recorders write them, chunk by chunk, and what is none by its name."""

from __future__ import annotations

import io
import os
import struct
import threading
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xattn_runtime.errors import AudioError
from xattn_runtime.preprocess.speech import MelSpec, read_audio
from xattn_runtime.preprocess.wav import open_wav

RATE = 16_000
COUNT = 801
WAVE_16 = (np.sin(np.arange(COUNT) / 9) * 20_000).astype("<i2")
DATA = WAVE_16.tobytes()
RIGHT = WAVE_16 / 32_768
_GUID = bytes.fromhex("0000000000001000800000aa00389b71")


def fmt(tag: int = 1, bits: int = 16, channels: int = 1, rate: int = RATE, more: bytes = b"") -> bytes:
    block = channels * -(-bits // 8)
    return struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits) + more


def extensible(tag: int, bits: int, valid: int) -> bytes:
    return fmt(0xFFFE, bits, more=struct.pack("<HHIH", 22, valid, 4, tag) + _GUID[2:])


def chunk(name: bytes, content: bytes, size: int | None = None) -> bytes:
    size = len(content) if size is None else size
    return name + struct.pack("<I", size) + content + b"\0" * (len(content) % 2)


def riff(*chunks: bytes, size: int | None = None, kind: bytes = b"RIFF") -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return kind + struct.pack("<I", len(body) if size is None else size) + body


def ds64(riff_bytes: int, data_bytes: int) -> bytes:
    return chunk(b"ds64", struct.pack("<QQQI", riff_bytes, data_bytes, 0, 0))


def pcm(bits: int) -> bytes:
    """The same wave in `bits`; 8 bits have no sign."""
    if bits == 8:
        return ((WAVE_16 >> 8) + 128).astype(np.uint8).tobytes()
    wide = WAVE_16.astype("<i4") << 16
    return b"".join(int(value).to_bytes(4, "little", signed=True)[4 - bits // 8 :] for value in wide)


FMT, SOUND = chunk(b"fmt ", fmt()), chunk(b"data", DATA)
NEVER, HEAD = 0xFFFFFFFF, 44
FILES = {
    "plain": riff(FMT, SOUND),
    "ffmpeg into a pipe": riff(
        FMT, chunk(b"LIST", b"INFOISFT\x0e\0\0\0Lavf60.16.100\0"), chunk(b"data", DATA, NEVER), size=NEVER
    ),
    "sox into a pipe": riff(FMT, chunk(b"data", DATA, 0x7FFFFFFF - 36), size=0x7FFFFFFF),
    "arecord into a pipe": riff(FMT, chunk(b"data", DATA, 2**31), size=2**31 + 36),
    "a recorder that was ended": riff(FMT, chunk(b"data", DATA, 0), size=36),
    "a recorder that was ended, no size at all": riff(FMT, chunk(b"data", DATA, 0), size=0),
    "a recorder that was ended in the midst of a sample": riff(FMT, chunk(b"data", DATA, 0) + b"\1", size=36),
    "extensible": riff(chunk(b"fmt ", extensible(1, 16, 16)), SOUND),
    "extensible, 20 of 24 bits": riff(chunk(b"fmt ", extensible(1, 24, 20)), chunk(b"data", pcm(24))),
    "extensible floating point": riff(
        chunk(b"fmt ", extensible(3, 32, 32)), chunk(b"data", RIGHT.astype("<f4").tobytes())
    ),
    "chunks before and after": riff(
        chunk(b"JUNK", b"\0" * 27), chunk(b"bext", b"x" * 603), FMT, chunk(b"fact", struct.pack("<I", COUNT)),
        chunk(b"LIST", b"INFOICMT\5\0\0\0data\0"), SOUND, chunk(b"id3 ", b"ID3"),
    ),
    "24 bits": riff(chunk(b"fmt ", fmt(bits=24)), chunk(b"data", pcm(24))),
    "32 bits": riff(chunk(b"fmt ", fmt(bits=32)), chunk(b"data", pcm(32))),
    "floating point of 32 bits": riff(
        chunk(b"fmt ", fmt(3, 32, more=b"\0\0")), chunk(b"data", RIGHT.astype("<f4").tobytes())
    ),
    "floating point of 64 bits": riff(chunk(b"fmt ", fmt(3, 64)), chunk(b"data", RIGHT.astype("<f8").tobytes())),
    "RF64": riff(
        ds64(1000, len(DATA)), FMT, chunk(b"data", DATA, NEVER), chunk(b"LIST", b"more"), size=NEVER, kind=b"RF64"
    ),
    "BW64": riff(ds64(1000, len(DATA)), FMT, chunk(b"data", DATA, NEVER), size=NEVER, kind=b"BW64"),
    "RF64 into a pipe": riff(ds64(2**64 - 1, 2**64 - 1), FMT, chunk(b"data", DATA, NEVER), size=NEVER, kind=b"RF64"),
    "RF64 of a recorder that was ended": riff(ds64(0, 0), FMT, chunk(b"data", DATA, NEVER), size=NEVER, kind=b"RF64"),
}  # fmt: skip


def read(file: bytes) -> np.ndarray:
    samples, rate = read_audio(file, MelSpec())
    assert rate == RATE
    assert samples.dtype == np.float32
    return samples


@pytest.mark.parametrize("name", FILES)
def test_every_form_has_the_same_samples(name: str) -> None:
    np.testing.assert_array_equal(read(FILES[name]), RIGHT.astype(np.float32))


def test_eight_bits_have_no_sign() -> None:
    found = read(riff(chunk(b"fmt ", fmt(bits=8)), chunk(b"data", pcm(8))))  # of an odd number of bytes
    np.testing.assert_array_equal(found, (WAVE_16 >> 8) / 128)


def test_what_the_standard_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "ü a.wav"
    with wave.open(str(path), "wb") as stream:
        stream.setparams((2, 2, 8_000, 0, "NONE", ""))
        stream.writeframes(np.stack([WAVE_16, WAVE_16[::-1]], axis=1).tobytes())
    with open_wav(path) as file:
        assert (file.rate_hz, file.channels, file.samples) == (8_000, 2, COUNT)
        np.testing.assert_array_equal(file.read(), np.stack([RIGHT, RIGHT[::-1]], axis=1).astype(np.float32))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(FILES["ffmpeg into a pipe"],))
    writer.start()
    samples, _ = read_audio(pipe, MelSpec())
    writer.join()
    np.testing.assert_array_equal(samples, RIGHT.astype(np.float32))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (FILES["plain"][: HEAD + COUNT], rf"expected {2 * COUNT} bytes of sound, .* found {COUNT}: it was cut short"),
        (riff(FMT, chunk(b"data", b""), chunk(b"LIST", b"more")), "found 0 samples"),
        (riff(FMT), r"with its sound \(no chunk 'data'\)"),
        (riff(SOUND, FMT), "with its format before its sound"),
        (riff(chunk(b"fmt ", b"1234")), "expected 16 bytes of format or more, found 4"),
        (riff(chunk(b"fmt ", fmt(channels=2)), SOUND), "expected one channel, found 2; mix"),
        (riff(chunk(b"fmt ", fmt(rate=44_100)), SOUND), "expected 16000 samples a second, found 44100; resample it"),
        (riff(chunk(b"fmt ", fmt(7, 8)), SOUND), "expected PCM or floating-point samples, found mu-law; convert"),
        (riff(chunk(b"fmt ", fmt(6, 8)), SOUND), "found A-law; convert"),
        (riff(chunk(b"fmt ", extensible(7, 8, 8)), SOUND), "found mu-law; convert"),
        (riff(chunk(b"fmt ", fmt(0x11, 4)), SOUND), "found ADPCM; convert"),
        (riff(chunk(b"fmt ", fmt(0x1234)), SOUND), "found coding 0x1234; convert"),
        (riff(chunk(b"fmt ", fmt(1, 64)), SOUND), "expected samples of 8, 16, 24 or 32 bits"),
        (riff(chunk(b"fmt ", fmt(3, 16)), SOUND), "expected samples of 8, 16, 24 or 32 bits"),
        (riff(chunk(b"fmt ", fmt(channels=0)), SOUND), "expected samples of 8, 16, 24 or 32 bits"),
        (riff(FMT, SOUND, kind=b"RIFX"), r"found sound \(a big-endian WAV, RIFX\); convert it to WAV"),
        (b"RIFF\0\0\0\0AVI LIST", r"found a video \(AVI\); convert it to WAV"),
        (b"RIFF\0\0\0\0ACONanih", r"found a RIFF file of another kind \('ACON'\)"),
        (b"fLaC\0\0\0\x22" + bytes(40), r"found sound \(FLAC\); convert it to WAV"),
        (b"OggS\0\2" + bytes(40), r"found sound \(Ogg, as Vorbis and Opus have it\); convert"),
        (b"ID3\4\0" + bytes(40), r"found sound \(MP3\); convert"),
        (b"\xff\xfb\x90\x64" + bytes(40), r"found sound \(MP3 or AAC\); convert"),
        (b"\0\0\0\x20ftypM4A " + bytes(40), r"found sound \(M4A\); convert"),
        (b"FORM\0\0\0\0AIFF", r"found sound \(AIFF\); convert"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer in place of the file; run `git lfs pull`"),
        (b"<!DOCTYPE html>", r"found a web page \(HTML\) in place of the file"),
        (b"\x89PNG\r\n\x1a\n\0\0", r"found an image \(PNG\); convert"),
        (b"%PDF-1.4", "found PDF; convert"),
        (b"", "found an empty file; copy or record it again"),
        (b"RIFF", "found a file of another kind, which begins with 'RIFF'"),
        (b"no sound\n at all", "found a file of another kind, which begins with 'no sound'"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(tmp_path: Path, file: bytes, message: str) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(file)
    for source, name in ((path, str(path)), (file, "audio")):
        with pytest.raises(AudioError, match=message) as caught:
            read_audio(source, MelSpec())
        assert str(caught.value).startswith(f"{name}: expected ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.wav", "found: .*No such file or directory; check the path"),
        (lambda folder: folder, "found: (Is a directory; name a file|Permission denied)"),
        (lambda folder: "a\0b.wav", r"^'a\\x00b\.wav': expected a WAV file, found: .*null"),
    ],
)
def test_a_path_that_leads_to_no_file(tmp_path: Path, make: Callable[[Path], str | Path], message: str) -> None:
    with pytest.raises(AudioError, match=message):
        read_audio(make(tmp_path), MelSpec())


def test_a_text_that_is_no_path() -> None:
    with pytest.raises(AudioError, match=r"^audio: expected a path, found an empty text; was a variable not set\?$"):
        read_audio("", MelSpec())
    with pytest.raises(AudioError, match=r"^https://a\.b/c\.wav: expected a WAV file, found a URL; download it first"):
        read_audio("https://a.b/c.wav", MelSpec())


@pytest.mark.parametrize("give", [bytearray, memoryview, io.BytesIO])
def test_sound_in_memory(give: Callable[[bytes], Any]) -> None:
    samples, rate = read_audio(give(FILES["plain"]), MelSpec())
    assert rate == RATE
    np.testing.assert_array_equal(samples, RIGHT.astype(np.float32))


def test_an_open_file_is_read_from_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"head" + FILES["plain"])
    with path.open("rb") as stream:
        stream.seek(4)
        for _ in range(2):
            np.testing.assert_array_equal(read_audio(stream, MelSpec())[0], RIGHT.astype(np.float32))
        stream.seek(0, 2)
        with pytest.raises(AudioError, match=r"^audio: expected .*found the end of the file at byte"):
            read_audio(stream, MelSpec())
    with (
        path.open(encoding="latin-1") as text,
        pytest.raises(AudioError, match=r"^audio: expected .*open it with 'rb'"),
    ):
        read_audio(text, MelSpec())  # type: ignore[arg-type]


def test_random_bytes_are_an_error_in_one_line() -> None:
    rng, plain = np.random.default_rng(0), bytearray(FILES["chunks before and after"])
    for _ in range(500):
        damaged = plain.copy()
        for place in rng.integers(0, 900, rng.integers(1, 6)):
            damaged[place] = rng.integers(256)
        try:
            read(bytes(damaged[: rng.integers(len(damaged))]))
        except AudioError as error:
            assert "\n" not in str(error)
        except AssertionError:  # of another rate, which nothing forbids here
            pass
