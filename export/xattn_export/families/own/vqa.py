"""Visual question answering checkpoints of `xattn-edge train vqa`: an image encoder and a classifier of questions."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from xattn_edge.attention import Tokens
from xattn_edge.encoders import LstmTextEncoder
from xattn_edge.fusion import CrossAttentionLayer
from xattn_edge.models import VqaModel, load_checkpoint
from xattn_export.families.base import Chooses, Family, Role, Source, TensorSpec, cross_specs
from xattn_export.families.drawings import shape_images
from xattn_export.families.own.checkpoint import image_encoder_role, image_steps, is_checkpoint, pairs, source_tokenizer

__all__ = ["XATTN_VQA", "LstmGraph"]

_ONNX_LSTM_OPSET = 14
# torch stacks the gates as input, forget, cell, output; ONNX as input, output, forget, cell.
_ONNX_GATE_ORDER = (0, 3, 1, 2)


class LstmGraph(nn.Module):
    """A bidirectional LSTM text encoder as the ONNX operator `LSTM`, which takes the length of every row.

    Only for export: torch cannot compute it. https://onnx.ai/onnx/operators/onnx__LSTM.html
    """

    def __init__(self, encoder: LstmTextEncoder) -> None:
        super().__init__()
        self.embedding = encoder.embedding
        self.norm = encoder.norm
        self.hidden_size = encoder.lstm.hidden_size
        self.weight = nn.Parameter(_both_directions(encoder.lstm, "weight_ih"), requires_grad=False)
        self.recurrence = nn.Parameter(_both_directions(encoder.lstm, "weight_hh"), requires_grad=False)
        biases = [_both_directions(encoder.lstm, name) for name in ("bias_ih", "bias_hh")]
        self.bias = nn.Parameter(torch.cat(biases, 1), requires_grad=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """Int64 `[batch, length]` both to `[batch, length, width]` and its mask."""
        batch, length = input_ids.shape
        words = self.embedding(input_ids).transpose(0, 1)
        states = torch.onnx.ops.symbolic(
            "LSTM",
            (words, self.weight, self.recurrence, self.bias, attention_mask.sum(1).to(torch.int32)),
            {"direction": "bidirectional", "hidden_size": self.hidden_size},
            dtype=torch.float32,
            shape=(length, 2, batch, self.hidden_size),
            version=_ONNX_LSTM_OPSET,
        )
        return Tokens(self.norm(states.permute(2, 0, 1, 3).flatten(2)), attention_mask.bool())


class ClassifierGraph(nn.Module):
    """Question and cross keys and values to logits and probabilities of the answers."""

    def __init__(self, model: VqaModel) -> None:
        super().__init__()
        self.model = model
        encoder = model.text_encoder
        self.text_encoder = LstmGraph(encoder) if isinstance(encoder, LstmTextEncoder) else encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, *cross: Tensor) -> tuple[Tensor, Tensor]:
        model = self.model
        tokens = self.text_encoder(input_ids, attention_mask).features
        for layer, context in zip(model.cross_layers, pairs(cross), strict=True):
            tokens = layer(tokens, context)
        weights = attention_mask.to(tokens.dtype)[:, :, None]
        pooled = (model.norm(tokens) * weights).sum(1) / weights.sum(1)
        logits = model.classifier(pooled)
        return logits, logits.softmax(-1)


def _open(folder: Path) -> Source:
    checkpoint = load_checkpoint(folder)
    model = cast(VqaModel, checkpoint.model)
    config = model.config
    cross = [cast(CrossAttentionLayer, layer).attention for layer in model.cross_layers]

    def answer_logits(pixel_values: Tensor, question_ids: tuple[int, ...]) -> Tensor:
        input_ids = torch.tensor([question_ids])
        return cast(Tensor, model(pixel_values, input_ids, torch.ones_like(input_ids))[0])

    return Source(
        name=checkpoint.name,
        task="vqa",
        license=checkpoint.license,
        weights=(folder / "model.safetensors",),
        roles=(image_encoder_role(model, cross), _classifier_role(model)),
        tokenizer=source_tokenizer(checkpoint, config.max_tokens),
        reference=Chooses(image_steps(checkpoint), config.answers, answer_logits),
        golden_inputs=shape_images(),
    )


def _classifier_role(model: VqaModel) -> Role:
    config = model.config

    def reference(input_ids: Tensor, attention_mask: Tensor, *cross: Tensor) -> tuple[Tensor, ...]:
        logits = model.answer(input_ids, attention_mask, pairs(cross))
        return logits, logits.softmax(-1)

    return Role(
        name="classifier",
        module=ClassifierGraph(model),
        reference=reference,
        inputs=(
            TensorSpec("input_ids", ("batch", "length"), "token_ids", config.vocabulary),
            TensorSpec("attention_mask", ("batch", "length"), "mask"),
            *cross_specs(config.cross_layers, config.heads, config.image_tokens, config.width // config.heads),
        ),
        outputs=("logits", "probabilities"),
        longest=config.max_tokens,
    )


def _both_directions(lstm: nn.LSTM, name: str) -> Tensor:
    """A parameter of the first layer, forward and backward, gates in ONNX order: `[2, 4 × hidden, …]`."""
    directions = []
    for suffix in ("_l0", "_l0_reverse"):
        gates = getattr(lstm, name + suffix).detach().chunk(4)
        directions.append(torch.cat([gates[i] for i in _ONNX_GATE_ORDER]))
    return torch.stack(directions)


XATTN_VQA = Family(
    name="xattn-edge vqa",
    recognises=lambda config: is_checkpoint(config, "vqa") and "mechanism" not in config.get("model", ()),
    open=_open,
)
