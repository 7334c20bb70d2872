"""BUTD's caption decoder and Pythia's answer head out of MMF checkpoints (facebookresearch/mmf).

Both ask regions of an image from the top down (Anderson et al., 2018), by the equations of `mmf/models/butd.py`,
`mmf/models/pythia.py` and the layers under them. With `v_k` the features of region k and q what asks:

```
BUTD     s_k = w · relu(W v_k + U q)             q the state of a first LSTM
Pythia   s_k = w · (relu(W v_k) ∘ relu(U q))     q the question
both     α = softmax_k(s),  read = Σ_k α_k v_k
```

Layers that MMF keeps under weight normalisation (Salimans and Kingma, 2016) become plain ones: `W = g V / ‖V‖`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from xattn_edge.attention.checks import check_mask, check_tokens
from xattn_edge.attention.weighting import masked_softmax
from xattn_edge.models.mmf import bare_state
from xattn_runtime.errors import CheckpointError

__all__ = ["ButdDecoder", "PythiaHead", "RegionAttention", "load_mmf_butd", "load_mmf_pythia"]

State = Mapping[str, Tensor]

_ATTENTION = "image_feature_embeddings_list.{}.0.image_attention_model.module"
_PARTS = re.compile(
    r"^(image_feature_embeddings_list|image_text_multi_modal_combine_layer|classifier|word_embedding)\."
)
_COMBINE = "image_text_multi_modal_combine_layer.module"
_LSTM = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class RegionAttention(nn.Module):
    """Reads regions in the light of one vector, by the equations above.

    Args:
        region_width, asking_width: of the regions and of the vector. inner: width in which both meet.
        meet: `sum` as in BUTD, or `product` as in Pythia.
    """

    def __init__(self, region_width: int, asking_width: int, inner: int, meet: Literal["sum", "product"]) -> None:
        super().__init__()
        self.meet = meet
        self.region_linear = nn.Linear(region_width, inner)
        self.asking_linear = nn.Linear(asking_width, inner)
        self.score_linear = nn.Linear(inner, 1)

    def forward(self, regions: Tensor, asking: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What is read, `[batch, region_width]`, and the weights `[batch, regions]`.

        Args:
            regions: `[batch, regions, region_width]`.
            asking: `[batch, asking_width]`.
            mask: bool `[batch, regions]`, false for padding.

        Raises:
            ValueError: no region, or a shape that does not fit; names what was found and expected.
        """
        check_tokens("regions", regions, "batch", "regions", width=self.region_linear.in_features)
        if mask is not None:
            check_mask("mask", mask, {"batch": regions.shape[0], "regions": regions.shape[1]})
        key, query = self.region_linear(regions), self.asking_linear(asking)[:, None]
        met = (key + query).relu() if self.meet == "sum" else key.relu() * query.relu()
        weights = masked_softmax(self.score_linear(met).squeeze(-1), mask)
        return (weights[:, None] @ regions).squeeze(1), weights


class ButdDecoder(nn.Module):
    """Bottom-up and top-down captioning: one LSTM looks, another speaks.

    Args:
        vocabulary, word_width: of the embeddings. region_width: of the image's features.
        hidden, inner: widths of both LSTMs, and of the attention.
    """

    def __init__(self, vocabulary: int, word_width: int, region_width: int, hidden: int, inner: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.word_embedding = nn.Embedding(vocabulary, word_width)
        self.looking = nn.LSTMCell(hidden + region_width + word_width, hidden)
        self.attention = RegionAttention(region_width, hidden, inner, "sum")
        self.speaking = nn.LSTMCell(region_width + hidden, hidden)
        self.output = nn.Linear(hidden, vocabulary)

    def start(self, regions: Tensor) -> tuple[Tensor, ...]:
        """The four states `[batch, hidden]` before the first word."""
        return (regions.new_zeros(regions.shape[0], self.hidden),) * 4

    def step(
        self, words: Tensor, regions: Tensor, state: tuple[Tensor, ...], mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits `[batch, vocabulary]` after the words int64 `[batch]`, and the states after them.

        The mean of the regions is over all of them, those that `mask` leaves out too, as in MMF.
        """
        look, look_cell, speak, speak_cell = state
        seen = torch.cat([speak, regions.mean(1), self.word_embedding(words)], 1)
        look, look_cell = self.looking(seen, (look, look_cell))
        read, _ = self.attention(regions, look, mask)
        speak, speak_cell = self.speaking(torch.cat([read, look], 1), (speak, speak_cell))
        return cast(Tensor, self.output(speak)), (look, look_cell, speak, speak_cell)

    def forward(self, words: Tensor, regions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits `[batch, length, vocabulary]` of what follows each of the words int64 `[batch, length]`."""
        state, steps = self.start(regions), []
        for column in words.unbind(1):
            logits, state = self.step(column, regions, state, mask)
            steps.append(logits)
        return torch.stack(steps, 1)


class PythiaHead(nn.Module):
    """What follows Pythia's encoders: attention to each kind of regions, their product with the question, answers.

    Args:
        attentions: one for each kind of regions (of objects, of a grid).
        read_width, question_width, joint: of what is read of all kinds, of the question, and where both meet.
        text_hidden, image_hidden: widths of the two branches of the classifier. answers: how many.
    """

    def __init__(
        self,
        attentions: Sequence[RegionAttention],
        question_width: int,
        joint: int,
        text_hidden: int,
        image_hidden: int,
        answers: int,
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(attentions)
        read_width = sum(each.region_linear.in_features for each in attentions)
        self.image_linear, self.question_linear = nn.Linear(read_width, joint), nn.Linear(question_width, joint)
        self.text_hidden, self.text_output = nn.Linear(joint, text_hidden), nn.Linear(text_hidden, answers)
        self.image_hidden, self.image_output = nn.Linear(joint, image_hidden), nn.Linear(image_hidden, answers)

    def forward(
        self, kinds: Sequence[Tensor], question: Tensor, masks: Sequence[Tensor | None] | None = None
    ) -> Tensor:
        """Logits `[batch, answers]`.

        Args:
            kinds: of regions, each `[batch, regions, width]`. masks: of each kind, as for `RegionAttention`.
            question: `[batch, question_width]`.

        Raises:
            ValueError: another number of kinds than attentions.
        """
        if len(kinds) != len(self.attentions):
            raise ValueError(f"kinds: expected {len(self.attentions)} kinds of regions, found {len(kinds)}")
        masks = masks or [None] * len(kinds)
        read = torch.cat(
            [
                attention(regions, question, mask)[0]
                for attention, regions, mask in zip(self.attentions, kinds, masks, strict=True)
            ],
            1,
        )
        met = self.image_linear(read).relu() * self.question_linear(question).relu()
        by_text = self.text_output(self.text_hidden(met).relu())
        return cast(Tensor, by_text + self.image_output(self.image_hidden(met).relu()))


def load_mmf_butd(state: State) -> ButdDecoder:
    """BUTD's decoder with the weights of an MMF checkpoint, in evaluation mode.

    `state` is of `read_mmf_checkpoint`; the encoder of the regions' features in it is left alone.

    Raises:
        CheckpointError: a tensor is missing, or of another shape.
    """
    state = _bare(state)
    try:
        combination = f"{_ATTENTION.format(0)}.combination_layer.module"
        loaded = {
            "word_embedding.weight": state["word_embedding.weight"],
            **_attention(state, 0, "attention", "fa_image", "fa_hidden"),
            **{f"looking.{part}": state[f"{combination}.top_down_lstm.{part}"] for part in _LSTM},
            **{f"speaking.{part}": state[f"classifier.module.language_lstm.{part}"] for part in _LSTM},
            **_dense(state, "classifier.module.fc", "output"),
        }
        vocabulary, word_width = loaded["word_embedding.weight"].shape
        inner, region_width = loaded["attention.region_linear.weight"].shape
        hidden = loaded["output.weight"].shape[1]
        decoder = ButdDecoder(vocabulary, word_width, region_width, hidden, inner)
        decoder.load_state_dict(loaded)
    except (KeyError, ValueError, RuntimeError) as error:
        raise _misfit("butd", error) from error
    return decoder.eval()


def load_mmf_pythia(state: State) -> PythiaHead:
    """Pythia's head with the weights of an MMF checkpoint, in evaluation mode.

    `state` is of `read_mmf_checkpoint`; the encoders of the question and of the regions in it are left alone.

    Raises:
        CheckpointError: a tensor is missing, or of another shape.
    """
    state = _bare(state)
    kinds = sorted({name.split(".")[1] for name in state if name.startswith("image_feature_embeddings_list.")}, key=int)
    try:
        loaded = {
            **_dense(state, f"{_COMBINE}.fa_image.layers.0", "image_linear"),
            **_dense(state, f"{_COMBINE}.fa_txt.layers.0", "question_linear"),
            **_dense(state, "classifier.module.f_o_text.layers.0", "text_hidden"),
            **_dense(state, "classifier.module.f_o_image.layers.0", "image_hidden"),
            **_dense(state, "classifier.module.linear_text", "text_output"),
            **_dense(state, "classifier.module.linear_image", "image_output"),
        }
        attentions = []
        for number in map(int, kinds):
            name = f"attentions.{number}"
            loaded |= _attention(state, number, name, "fa_image.layers.0", "fa_txt.layers.0")
            inner, region_width = loaded[f"{name}.region_linear.weight"].shape
            asking = loaded[f"{name}.asking_linear.weight"].shape[1]
            attentions.append(RegionAttention(region_width, asking, inner, "product"))
        joint, question_width = loaded["question_linear.weight"].shape
        text_hidden, image_hidden = (len(loaded[f"{branch}_hidden.weight"]) for branch in ("text", "image"))
        answers = len(loaded["text_output.weight"])
        head = PythiaHead(attentions, question_width, joint, text_hidden, image_hidden, answers)
        head.load_state_dict(loaded)
    except (KeyError, ValueError, RuntimeError) as error:
        raise _misfit("pythia", error) from error
    return head.eval()


def _bare(state: State) -> State:
    """Without the `model.` that some checkpoints of MMF put before every name, and what else wrapped the model."""
    return bare_state(state, _PARTS)


def _attention(state: State, number: int, ours: str, regions: str, asking: str) -> dict[str, Tensor]:
    prefix = _ATTENTION.format(number)
    return {
        **_dense(state, f"{prefix}.combination_layer.module.{regions}", f"{ours}.region_linear"),
        **_dense(state, f"{prefix}.combination_layer.module.{asking}", f"{ours}.asking_linear"),
        **_dense(state, f"{prefix}.transform.module.lc", f"{ours}.score_linear"),
    }


def _dense(state: State, theirs: str, ours: str) -> dict[str, Tensor]:
    """Weight and bias of a layer; under weight normalisation `g` is one number, or one for each row of `V`."""
    if f"{theirs}.weight_v" not in state:
        weight = state[f"{theirs}.weight"]
    else:
        direction, size = state[f"{theirs}.weight_v"], state[f"{theirs}.weight_g"]
        norm = direction.norm() if size.numel() == 1 else direction.norm(dim=1, keepdim=True)
        weight = direction * (size.reshape(-1, 1) if size.numel() > 1 else size.reshape(())) / norm
    return {f"{ours}.weight": weight, f"{ours}.bias": state[f"{theirs}.bias"]}


def _misfit(model: str, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:300]
    return CheckpointError(f"{model}: a tensor is missing, or of another shape: {reason}")
