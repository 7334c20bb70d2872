"""Speech samples to the log-mel spectrogram that a speech encoder takes, the same on every device.

Samples come from whoever has a microphone or a decoder, or out of a WAV file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from numbers import Integral
from typing import cast

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.errors import AudioError
from xattn_runtime.json_reader import ObjectReader, show
from xattn_runtime.preprocess.wav import WavInput, open_wav

__all__ = ["AudioInput", "MelSpec", "log_mel", "mel_filters", "read_audio", "read_mel_spec"]

_QUIETEST = 1e-10
_RANGE = 8.0
_SHIFT, _SCALE = 4.0, 4.0
_MEL_BREAK_HZ = 700.0
_MEL_FACTOR = 2595.0
_MEL_INTEGERS = ("rate_hz", "window", "hop", "bands", "longest_frames")
_MEL_EDGES = ("lowest_hz", "highest_hz")


@dataclass(frozen=True)
class MelSpec:
    """How speech is cut into frames and bands.

    rate_hz: samples a second. window: samples of a frame. hop: samples from one frame to the next.
    bands: of the spectrogram. lowest_hz, highest_hz: the edges of the first and the last band.
    longest_frames: of a clip; what is longer is refused.
    """

    rate_hz: int = 16_000
    window: int = 400
    hop: int = 160
    bands: int = 40
    lowest_hz: float = 60.0
    highest_hz: float = 7_600.0
    longest_frames: int = 1_000

    @property
    def longest_samples(self) -> int:
        """Samples of the longest clip."""
        return self.window + (self.longest_frames - 1) * self.hop


def log_mel(samples: NDArray[np.floating], rate_hz: int, spec: MelSpec) -> NDArray[np.float32]:
    """The log-mel spectrogram of one clip, float32 `[frames, bands]`, with `1 + (samples - window) // hop` frames.

    Frames lie inside the clip, under a periodic Hann window. The decimal logarithm of the power in each band is kept to
    8 below the clip's highest, and brought near 0 as Whisper does (Radford et al., 2023): `(log10 + 4) / 4`.

    Args:
        samples: `[samples]` from -1 to 1, one channel.
        rate_hz: of `samples`.
        spec: of the model.

    Raises:
        AudioError: another rate, several channels, a clip shorter than one frame or longer than the longest, samples
            that are not finite floating-point numbers; names what was found.
    """
    _check(samples, rate_hz, spec)
    cut = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), spec.window)[:: spec.hop]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(spec.window) / spec.window)
    power = np.abs(np.fft.rfft(cut * hann, axis=-1)) ** 2
    logarithm = np.log10(np.maximum(power @ mel_filters(spec).T, _QUIETEST))
    clipped = np.maximum(logarithm, logarithm.max() - _RANGE)
    spectrogram: NDArray[np.float32] = ((clipped + _SHIFT) / _SCALE).astype(np.float32)
    return spectrogram


def mel_filters(spec: MelSpec) -> NDArray[np.float64]:
    """Triangles over the frequencies of a frame, `[bands, window // 2 + 1]`, 1 at their peaks, even on the mel scale.

    `mel = 2595 log10(1 + Hz / 700)` (O'Shaughnessy, 1987).
    """
    lowest, highest = (_MEL_FACTOR * np.log10(1 + hz / _MEL_BREAK_HZ) for hz in (spec.lowest_hz, spec.highest_hz))
    mels = np.linspace(lowest, highest, spec.bands + 2)
    corners = _MEL_BREAK_HZ * (10 ** (mels / _MEL_FACTOR) - 1)
    frequencies = np.arange(spec.window // 2 + 1) * spec.rate_hz / spec.window
    low, peak, high = (corners[first : first + spec.bands, None] for first in range(3))
    rising, falling = (frequencies - low) / (peak - low), (high - frequencies) / (high - peak)
    return np.maximum(0.0, np.minimum(rising, falling))


def _check_clip(name: str, rate_hz: int, samples: int, spec: MelSpec) -> None:
    if rate_hz != spec.rate_hz:
        raise AudioError(f"{name}: expected {spec.rate_hz} samples a second, found {rate_hz}; resample it")
    if not spec.window <= samples <= spec.longest_samples:
        raise AudioError(
            f"{name}: expected {spec.window / rate_hz:g} to {spec.longest_samples / rate_hz:g} s "
            f"({spec.window} to {spec.longest_samples} samples), found {samples} samples; cut it"
        )


def _check(samples: NDArray[np.floating], rate_hz: int, spec: MelSpec) -> None:
    if samples.ndim != 1:
        raise AudioError(f"audio: expected one channel [samples], found {list(samples.shape)}; mix the channels")
    if not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(
            f"audio: expected floating-point samples from -1 to 1, found {samples.dtype}; divide int16 by 32768"
        )
    _check_clip("audio", rate_hz, len(samples), spec)
    if not np.isfinite(samples).all():
        raise AudioError("audio: expected finite samples, found some that are not numbers or infinite")


AudioInput = WavInput | tuple[NDArray[np.floating], int]
"""A WAV file, or samples `[samples]` from -1 to 1 and how many of them make a second."""


def read_audio(audio: AudioInput, spec: MelSpec) -> tuple[NDArray[np.floating], int]:
    """Samples and rate of a clip: as they are, or out of a WAV file, whose length is checked before they are read.

    Raises:
        AudioError: no such file, another kind of file or more channels; something else in place of samples and a rate;
            names what was found.
    """
    if isinstance(audio, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(audio, "read"):
        with open_wav(cast(WavInput, audio)) as file:
            if file.channels != 1:
                raise AudioError(f"{file.name}: expected one channel, found {file.channels}; mix the channels into one")
            _check_clip(file.name, file.rate_hz, file.samples, spec)
            return file.read()[:, 0], file.rate_hz
    if not isinstance(audio, tuple) or len(audio) != 2:
        found = f"a tuple of {len(audio)}" if isinstance(audio, tuple) else f"a value of type {type(audio).__name__}"
        raise AudioError(f"audio: expected a WAV file, its bytes, or (samples, samples a second), found {found}")
    samples, rate_hz = audio
    if isinstance(rate_hz, np.ndarray) and not isinstance(samples, np.ndarray):
        raise AudioError("audio: expected (samples, samples a second), found the two the other way round; swap them")
    if not isinstance(samples, np.ndarray):
        raise AudioError(f"audio: expected samples in a numpy array, found a value of type {type(samples).__name__}")
    if isinstance(rate_hz, bool | np.bool) or not isinstance(rate_hz, Integral):
        raise AudioError(f"audio: expected a whole number of samples a second, found {show(rate_hz)}")
    return samples, int(rate_hz)


def read_mel_spec(reader: ObjectReader) -> MelSpec:
    """The `speech` of a manifest's preprocessing; BundleError where a key is missing, unknown or of a wrong value."""
    numbers = {name: reader.integer(name, minimum=1) for name in _MEL_INTEGERS}
    edges = {name: reader.positive(name) for name in _MEL_EDGES}
    if not edges["lowest_hz"] < edges["highest_hz"] <= numbers["rate_hz"] / 2:
        reader.fail("highest_hz", f"more than lowest_hz and at most {numbers['rate_hz'] / 2:g}", edges["highest_hz"])
    reader.finish()
    return MelSpec(
        rate_hz=numbers["rate_hz"],
        window=numbers["window"],
        hop=numbers["hop"],
        bands=numbers["bands"],
        lowest_hz=edges["lowest_hz"],
        highest_hz=edges["highest_hz"],
        longest_frames=numbers["longest_frames"],
    )
