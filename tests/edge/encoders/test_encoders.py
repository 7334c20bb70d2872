"""Encoders give tokens and their mask; what padding holds, and how much of it there is, does not matter."""

import pytest
import torch

from xattn_edge.encoders import (
    CnnEncoder,
    LstmTextEncoder,
    PatchEncoder,
    SpeechEncoder,
    TransformerTextEncoder,
    VideoEncoder,
)

WIDTH = 8


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(6)


def image_encoder():
    return CnnEncoder(16, (4, 6), (1,), WIDTH, 1, 2)


def lengths_to_mask(*lengths, longest):
    return torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("make", [image_encoder, lambda: PatchEncoder(16, 4, WIDTH, 1, 2)])
def test_every_position_of_a_picture_is_a_token(make):
    encoder = make().eval()
    tokens = encoder(torch.randn(2, 3, 16, 16))
    assert tokens.features.shape == (2, encoder.side**2, WIDTH)
    assert (encoder.side, tokens.mask.shape, tokens.mask.dtype) == (4, (2, 16), torch.bool)
    assert tokens.mask.all()


def test_patches_are_linear_maps_of_squares():
    encoder = PatchEncoder(6, 3, 4, 0, 1)
    pixels = torch.randn(1, 3, 6, 6)
    weight, bias = encoder.projection.weight.flatten(1), encoder.projection.bias
    for number, (y, x) in enumerate([(0, 0), (0, 3), (3, 0), (3, 3)]):
        expected = encoder.norm(weight @ pixels[0, :, y : y + 3, x : x + 3].flatten() + bias + encoder.position[number])
        torch.testing.assert_close(encoder(pixels).features[0, number], expected)


@pytest.mark.parametrize(
    "make", [lambda: LstmTextEncoder(20, WIDTH), lambda: TransformerTextEncoder(20, WIDTH, 9, 2, 2)]
)
def test_text(make):
    encoder = make().eval()
    ids, mask = torch.randint(1, 20, (3, 5)), lengths_to_mask(5, 2, 0, longest=5)
    tokens = encoder(ids, mask.long())
    assert tokens.features.shape == (3, 5, WIDTH)
    assert torch.isfinite(tokens.features).all()
    assert torch.equal(tokens.mask, mask)
    alone = encoder(ids[1:2, :2], torch.ones(1, 2, dtype=torch.int64))
    torch.testing.assert_close(tokens.features[1:2, :2], alone.features)


def speech_encoder():
    return SpeechEncoder(8, 30, 3, WIDTH, 1, 2)


@pytest.mark.parametrize(("frames", "tokens"), [(1, 1), (4, 1), (5, 2), (8, 2), (30, 8)])
def test_four_columns_of_a_spectrogram_are_a_token(frames, tokens):
    found = speech_encoder()(torch.randn(2, frames, 8), torch.ones(2, frames, dtype=torch.bool))
    assert found.features.shape == (2, tokens, WIDTH)
    assert found.mask.shape == (2, tokens)
    assert found.mask.all()


def test_speech_does_not_depend_on_padding():
    encoder = speech_encoder().eval()
    clip = torch.randn(1, 11, 8)
    alone = encoder(clip, torch.ones(1, 11, dtype=torch.bool))
    padded = torch.cat([clip, torch.full((1, 12, 8), 5.0)], 1)
    found = encoder(padded, lengths_to_mask(11, longest=23))
    assert found.mask.tolist() == [[True] * 3 + [False] * 3]
    torch.testing.assert_close(found.features[:, :3], alone.features)
    assert torch.isfinite(found.features).all()


def test_tokens_of_speech_know_their_order():
    encoder = speech_encoder().eval()
    clip, mask = torch.randn(1, 4, 8).repeat(1, 2, 1), torch.ones(1, 8, dtype=torch.bool)
    tokens = encoder(clip, mask).features[0]
    assert not torch.allclose(tokens[0], tokens[1], atol=1e-3)


def test_video_is_its_frames_in_their_order():
    encoder = VideoEncoder(image_encoder(), 5, WIDTH, 1, 2).eval()
    frames = torch.randn(2, 4, 3, 16, 16)
    mask = lengths_to_mask(4, 2, longest=4)
    tokens = encoder(frames, mask)
    assert tokens.features.shape == (2, 4, WIDTH)
    assert torch.equal(tokens.mask, mask)
    alone = encoder(frames[1:, :2], torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(tokens.features[1:, :2], alone.features)
    backwards = encoder(frames.flip(1), torch.ones(2, 4, dtype=torch.bool)).features.flip(1)
    assert not torch.allclose(tokens.features[0], backwards[0], atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PatchEncoder(16, 5, WIDTH, 1, 2), "patch_px: expected a divisor of 16 px, found 5"),
        (lambda: SpeechEncoder(10, 30, 3, WIDTH, 1, 2), "bands: expected a positive multiple of 4 .*, found 10"),
        (
            lambda: speech_encoder()(torch.randn(2, 0, 8), torch.ones(2, 0, dtype=torch.bool)),
            r"log_mel: .* at least one of frames, found \[2, 0, 8\]",
        ),
        (
            lambda: speech_encoder()(torch.randn(2, 4, 7), torch.ones(2, 4, dtype=torch.bool)),
            r"log_mel: .* \[batch, frames, 8\], found \[2, 4, 7\]",
        ),
        (
            lambda: speech_encoder()(torch.randn(2, 4, 8), torch.ones(2, 5, dtype=torch.bool)),
            r"mask: expected the shape \[2, 4\] \(batch, frames\), found \[2, 5\]",
        ),
        (
            lambda: speech_encoder()(torch.randn(1, 33, 8), torch.ones(1, 33, dtype=torch.bool)),
            "frames: expected at most 8, found 9",
        ),
        (
            lambda: VideoEncoder(image_encoder(), 5, WIDTH, 1, 2)(
                torch.randn(2, 0, 3, 16, 16), torch.ones(2, 0, dtype=torch.bool)
            ),
            r"pixel_values: .*and a frame, found \[2, 0, 3, 16, 16\]",
        ),
        (
            lambda: VideoEncoder(image_encoder(), 5, WIDTH, 1, 2)(
                torch.randn(2, 3, 16, 16), torch.ones(2, 3, dtype=torch.bool)
            ),
            r"pixel_values: .*found \[2, 3, 16, 16\]",
        ),
    ],
)
def test_what_cannot_be_encoded(call, message):
    with pytest.raises(ValueError, match=message):
        call()
