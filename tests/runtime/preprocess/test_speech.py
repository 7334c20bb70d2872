"""The log-mel spectrogram against its definition in loops, on sounds whose spectrum is known, and its errors."""

import cmath
import math

import numpy as np
import pytest

from xattn_runtime.errors import AudioError
from xattn_runtime.preprocess.speech import MelSpec, log_mel, mel_filters

SMALL = MelSpec(rate_hz=800, window=16, hop=5, bands=4, lowest_hz=20, highest_hz=390, longest_frames=9)


def written_out(samples, spec):
    """A frame, a frequency and a band at a time."""

    def hz(mel):
        return 700 * (10 ** (mel / 2595) - 1)

    lowest, highest = (2595 * math.log10(1 + edge / 700) for edge in (spec.lowest_hz, spec.highest_hz))
    corners = [hz(lowest + (highest - lowest) * i / (spec.bands + 1)) for i in range(spec.bands + 2)]
    rows = []
    for start in range(0, len(samples) - spec.window + 1, spec.hop):
        row = []
        for band in range(spec.bands):
            low, peak, high = corners[band : band + 3]
            energy = 0.0
            for k in range(spec.window // 2 + 1):
                frequency = k * spec.rate_hz / spec.window
                if low < frequency <= peak:
                    share = (frequency - low) / (peak - low)
                elif peak < frequency < high:
                    share = (high - frequency) / (high - peak)
                else:
                    continue
                total = sum(
                    samples[start + n]
                    * (0.5 - 0.5 * math.cos(2 * math.pi * n / spec.window))
                    * cmath.exp(-2j * math.pi * k * n / spec.window)
                    for n in range(spec.window)
                )
                energy += share * abs(total) ** 2
            row.append(math.log10(max(energy, 1e-10)))
        rows.append(row)
    highest = max(max(row) for row in rows)
    return np.array([[(max(value, highest - 8) + 4) / 4 for value in row] for row in rows])


@pytest.mark.parametrize("count", [16, 20, 21, 56])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_definition(count, dtype):
    samples = np.random.default_rng(count).uniform(-1, 1, count).astype(dtype)
    found = log_mel(samples, 800, SMALL)
    assert found.dtype == np.float32
    assert found.shape == (1 + (count - 16) // 5, 4)
    np.testing.assert_allclose(found, written_out(samples.tolist(), SMALL), atol=1e-6)


def test_a_tone_is_loudest_in_its_band():
    spec = MelSpec()
    for hz in (200.0, 1000.0, 4000.0):
        tone = 0.5 * np.sin(2 * np.pi * hz * np.arange(8000) / spec.rate_hz)
        loudest = log_mel(tone, spec.rate_hz, spec).argmax(1)
        peaks = mel_filters(spec).argmax(1) * spec.rate_hz / spec.window
        assert set(loudest) == {int(np.abs(peaks - hz).argmin())}


def test_silence_is_finite_and_flat():
    found = log_mel(np.zeros(4000), 16_000, MelSpec())
    assert set(found.ravel().tolist()) == {-1.5}


def test_every_band_hears_something():
    filters = mel_filters(MelSpec())
    assert filters.shape == (40, 201)
    assert (filters.max(1) > 0.2).all()
    assert ((filters >= 0) & (filters <= 1)).all()


@pytest.mark.parametrize(
    ("samples", "rate_hz", "message"),
    [
        (np.zeros(20), 44_100, "expected 800 samples a second, found 44100; resample it"),
        (np.zeros((2, 20)), 800, r"expected one channel \[samples\], found \[2, 20\]"),
        (np.zeros(20, np.int16), 800, "expected floating-point samples from -1 to 1, found int16"),
        (np.zeros(15), 800, r"expected 0.02 to 0.07 s \(16 to 56 samples\), found 15 samples"),
        (np.zeros(57), 800, "found 57 samples"),
        (np.full(20, np.nan), 800, "expected finite samples"),
    ],
)
def test_what_cannot_be_used(samples, rate_hz, message):
    with pytest.raises(AudioError, match=message):
        log_mel(samples, rate_hz, SMALL)
