"""Small models with random weights, and a small emoji set of coloured squares."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from xattn_edge.attention import AttentionOptions, MechanismConfig, transformer_options
from xattn_edge.data.emoji_images import ARTISTS, IMAGE_SIZE_PX, Emoji
from xattn_edge.encoders import ImageEncoderConfig, SpeechEncoderConfig, TextEncoderConfig, VideoEncoderConfig
from xattn_edge.fusion import FusionConfig
from xattn_edge.models import (
    CaptionConfig,
    CaptionModel,
    RetrievalConfig,
    SentimentConfig,
    VqaConfig,
    VqaModel,
)

_CONCEPTS = 60
IMAGE = ImageEncoderConfig(name="cnn", image_size_px=32, channels=(8, 12), blocks=(1,), layers=1, heads=2)
PLAIN = {
    "image": IMAGE,
    "mechanism": MechanismConfig(name="text_to_image", options=transformer_options(2)),
    "fusion": None,
    "layers": 2,
    "width": 16,
    "dropout": 0.0,
}
"""What the default models have, small."""


@pytest.fixture
def caption_config():
    return CaptionConfig(
        **PLAIN,
        vocabulary=30,
        max_tokens=9,
        pad_token_id=0,
        start_token_id=2,
        end_token_id=3,
    )


@pytest.fixture
def caption_model(caption_config):
    torch.manual_seed(5)
    return CaptionModel(caption_config).eval()


@pytest.fixture(params=["lstm", "transformer"])
def vqa_config(request):
    return VqaConfig(
        **PLAIN,
        text=TextEncoderConfig(
            name=request.param, vocabulary=30, max_tokens=9, layers=int(request.param == "transformer"), heads=2
        ),
        image_norm=False,
        answers=("yes", "no", "red"),
    )


@pytest.fixture
def vqa_model(vqa_config):
    torch.manual_seed(5)
    return VqaModel(vqa_config).eval()


@pytest.fixture
def fake_emoji(tmp_path, monkeypatch):
    """The cache folder, with the small emoji set in it."""
    write_fake_emoji(tmp_path)
    monkeypatch.setenv("XATTN_EDGE_CACHE", str(tmp_path))
    return tmp_path


def write_fake_emoji(cache: Path) -> None:
    """60 concepts, of which every tenth is held out; every fifth has two tones, one of the last five held out."""
    folder = cache / "emoji" / "v1"
    folder.mkdir(parents=True)
    pictures = []
    for number in range(_CONCEPTS):
        concept, name = f"{0x2600 + number:x}", f"thing{number}"
        split = "held-out-concepts" if number % 10 == 0 else "train"
        pictures.append(Emoji(concept, name, concept, None, split))
        if number % 5 == 1:
            for tone in ("light", "dark"):
                held_out = "held-out-tones" if (number, tone) == (_CONCEPTS - 4, "dark") else split
                pictures.append(Emoji(f"{concept}-{tone}", f"{name} with {tone} skin tone", concept, tone, held_out))
    for artist in ARTISTS:
        rng = np.random.default_rng(len(artist.name))
        drawings = np.zeros((len(pictures), IMAGE_SIZE_PX, IMAGE_SIZE_PX, 4), np.uint8)
        drawings[:, 20:60, 20:60] = rng.integers(0, 256, (len(pictures), 1, 1, 4))
        drawings[:, 20:60, 20:60, 3] = 255
        np.save(folder / f"{artist.name}.npy", drawings)
    (folder / "index.json").write_text(json.dumps([asdict(picture) for picture in pictures]))


def small_retrieval() -> RetrievalConfig:
    """Retrieval with re-ranking, of pictures of 16 px."""
    return RetrievalConfig(
        image=ImageEncoderConfig(name="cnn", image_size_px=16, channels=(4, 8), blocks=(1,), layers=1, heads=2),
        text=TextEncoderConfig(name="transformer", vocabulary=20, max_tokens=12, layers=1, heads=2),
        mechanism=MechanismConfig(name="text_to_image", options=AttentionOptions(heads=2)),
        rerank_layers=1,
        width=8,
        embedding=6,
        dropout=0.0,
    )


def small_sentiment() -> SentimentConfig:
    """Sentiment from texts of 12 tokens, 40 frames of speech in 8 bands, and 4 pictures of 16 px."""
    frame = ImageEncoderConfig(name="cnn", image_size_px=16, channels=(4, 8), blocks=(1,))
    return SentimentConfig(
        text=TextEncoderConfig(name="transformer", vocabulary=20, max_tokens=12, layers=1, heads=2),
        speech=SpeechEncoderConfig(bands=8, longest=40, channels=4, heads=2),
        frames=VideoEncoderConfig(image=frame, longest=4, heads=2),
        mechanism=MechanismConfig(name="text_to_image", options=AttentionOptions(heads=2)),
        fusion=FusionConfig(name="adaptive"),
        layers=1,
        width=8,
        dropout=0.0,
        labels=("negative", "neutral", "positive"),
    )
