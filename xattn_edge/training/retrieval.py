"""Training retrieval on the emoji set: pairs of an image and its name are all that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from xattn_edge.attention import AttentionOptions, MechanismConfig, Tokens
from xattn_edge.data.emoji_captions import EmojiCaptions
from xattn_edge.data.vocabulary import PADDING, piece_tokenizer
from xattn_edge.encoders import TextEncoderConfig
from xattn_edge.evaluation.retrieval import retrieval_scores
from xattn_edge.models import CaptionModel, RetrievalConfig, RetrievalModel, load_checkpoint
from xattn_edge.training.pixels import normalized
from xattn_edge.training.recipes import Recipe
from xattn_runtime.errors import CheckpointError

__all__ = ["RetrievalTraining"]

_PIECES = 3000
_EMBEDDING = 128
_TEXT_LAYERS = 2
_BATCH = 64


class RetrievalTraining:
    """Batches of concepts, each drawn by two artists and named once.

    Both images of a concept and its name are pulled together, and pushed away from all others of the batch: the
    symmetric contrastive loss of CLIP (Radford et al., 2021) over the three pairs of the three. The match of a text and
    an image learns from the pairs and from the wrong ones that the cosines find likely, as in ALBEF (Li et al., 2021).

    Args:
        eye: a checkpoint of `train caption`, whose image encoder training begins with; without it, random weights.
    """

    def __init__(self, recipe: Recipe, seed: int, eye: Path | None = None) -> None:
        self._data = EmojiCaptions()
        self._recipe, self._seed = recipe, seed
        self.tokenizer: Tokenizer = piece_tokenizer(self._data.training_captions(), _PIECES)
        self.config = RetrievalConfig(
            image=recipe.image_encoder(),
            text=TextEncoderConfig(
                name="transformer",
                vocabulary=self.tokenizer.get_vocab_size(),
                max_tokens=recipe.max_tokens,
                layers=_TEXT_LAYERS,
                heads=recipe.heads,
            ),
            mechanism=MechanismConfig(name="text_to_image", options=AttentionOptions(heads=recipe.heads)),
            rerank_layers=recipe.layers,
            width=recipe.width,
            embedding=_EMBEDDING,
            dropout=recipe.dropout,
        )
        self.trained_model = RetrievalModel(self.config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = self.trained_model
        if eye is not None:
            self._begin_with(eye)

    @property
    def recorded(self) -> dict[str, Any]:
        """What the checkpoint says of its preprocessing beside that of the images: nothing."""
        return {}

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Pixels `[2 batch, 3, side, side]`, the second half the same concepts again, and ids `[batch, length]`."""
        images, captions = self._data.training_pairs(self._seed, step, self._recipe.batch)
        pixels = normalized(images.reshape(-1, *images.shape[2:]))
        return pixels.contiguous(memory_format=torch.channels_last), self._ids(captions)

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Contrastive losses of both drawings and the text, and the loss of the match."""
        pixels, ids = batch
        model = self.trained_model
        # The fused kernel takes three times as long on a CPU in bfloat16, most of it backwards.
        with sdpa_kernel(SDPBackend.MATH):
            image, text = model.encode_image(pixels), model.encode_text(ids, (ids != PADDING).long())
            first, second = model.embed_image(image).float().chunk(2)
            texts = model.embed_text(text).float()
            cosines = model.scale * torch.stack([first @ texts.T, second @ texts.T, first @ second.T])
            targets = torch.arange(len(ids)).repeat(3)
            contrast = F.cross_entropy(cosines.flatten(0, 1), targets) + F.cross_entropy(
                cosines.mT.flatten(0, 1), targets
            )
            return contrast + self._match_loss(text, Tokens(*(each[: len(ids)] for each in image)), cosines[0].detach())

    def _match_loss(self, text: Tokens, image: Tokens, cosines: Tensor) -> Tensor:
        """Binary cross-entropy of pairs, and of likely wrong texts for each image and images for each text."""
        if self.trained_model.matcher is None:
            return cosines.new_zeros(())
        others = cosines.masked_fill(torch.eye(len(cosines), dtype=torch.bool), -torch.inf)
        wrong_text = others.softmax(1).multinomial(1)[:, 0]
        wrong_image = others.softmax(0).T.multinomial(1)[:, 0]
        own = torch.arange(len(cosines))
        texts, images = torch.cat([own, wrong_text, own]), torch.cat([own, own, wrong_image])
        logits = self.trained_model.match(
            Tokens(*(each[texts] for each in text)), Tokens(*(each[images] for each in image))
        )
        return F.binary_cross_entropy_with_logits(logits[:, 0].float(), (torch.arange(len(texts)) < len(own)).float())

    def report(self) -> dict[str, Any]:
        """Recall on concepts and an artist that training does not see, beside that of raw pixels."""
        splits = retrieval_scores(self._data, self._embed_images, self._embed_texts, self._rerank)
        held_out = splits["held-out-concepts/noto/text-to-image"]
        return {
            "metric": "recall_at_1",
            "value": held_out["recall_at_1"],
            "n": held_out["n"],
            "split": "held-out-concepts/noto/text-to-image",
            "splits": splits,
        }

    @torch.inference_mode()
    def _embed_images(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        model = self.trained_model
        parts = [
            model.embed_image(model.encode_image(normalized(images[start : start + _BATCH])))
            for start in range(0, len(images), _BATCH)
        ]
        embeddings: NDArray[np.float32] = torch.cat(parts).numpy()
        return embeddings

    @torch.inference_mode()
    def _embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        ids = self._ids(texts)
        model = self.trained_model
        embeddings: NDArray[np.float32] = model.embed_text(model.encode_text(ids, (ids != PADDING).long())).numpy()
        return embeddings

    @torch.inference_mode()
    def _rerank(self, text: str, images: NDArray[np.uint8], cosines: NDArray[np.float32]) -> NDArray[np.float32]:
        model = self.trained_model
        ids = self._ids([text])
        tokens = model.encode_text(ids, torch.ones_like(ids))
        repeated = Tokens(*(each.expand(len(images), *each.shape[1:]) for each in tokens))
        logits = model.match(repeated, model.encode_image(normalized(images)))[:, 0].numpy()
        scores: NDArray[np.float32] = logits + float(model.scale) * cosines
        return scores

    def _ids(self, texts: Sequence[str]) -> Tensor:
        ids = [self.tokenizer.encode(text).ids for text in texts]
        length = max(map(len, ids))
        return torch.tensor([row + [PADDING] * (length - len(row)) for row in ids])

    def _begin_with(self, eye: Path) -> None:
        model = load_checkpoint(eye, CaptionModel).model
        try:
            self.trained_model.image_encoder.load_state_dict(model.image_encoder.state_dict())
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{eye}: expected the image encoder of this recipe, found: {reason}") from error
