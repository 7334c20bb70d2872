"""A decoder with states of fixed size: token ids and scores equal those of Transformers' `generate()`, for a tiny LFM2.

The decoder behind the runtime is the torch model itself, as in `test_generate_parity.py`; the graph of one is compared
with Transformers where it is exported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tests.runtime.generate.test_generate_parity import (
    BASE,
    END,
    IMAGES,
    PAD,
    START,
    VOCABULARY,
    WIDTH,
    Pair,
    _randomize,
    _theirs,
    compare,
    likely_ends,
)
from xattn_runtime.bundle.contract import layers_of, past_names, state_names
from xattn_runtime.errors import BundleError
from xattn_runtime.execution.session import GraphSession, Shape, Tensor
from xattn_runtime.generate.decoder import DecoderStep
from xattn_runtime.generate.greedy import greedy_steps

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

KERNEL = 4
TYPES = ["conv", "full_attention", "conv"]
STATES = TYPES.count("conv")


@dataclass(frozen=True)
class Lfm2Graph:
    """An LFM2 behind the names of a decoder graph; what it is fed as an image is added to the words of the prompt."""

    model: Any
    width: int | str = WIDTH
    path: Path = Path("decoder.onnx")

    @property
    def input_shapes(self) -> dict[str, Shape]:
        keys = dict.fromkeys(past_names(1), ("batch", 1, "past", WIDTH // 2))
        states = dict.fromkeys(state_names("past", STATES), ("batch", self.width, KERNEL - 1))
        return {"input_ids": ("batch", "length"), "image_tokens": ("batch", 1, WIDTH), **keys, **states}

    @property
    def dtypes(self) -> dict[str, str]:
        return dict.fromkeys(self.input_shapes, "tensor(float)")

    @property
    def output_shapes(self) -> dict[str, Shape]:
        return {"logits": ("batch", VOCABULARY)}

    def layers(self, series: str) -> int:
        return layers_of(series, self.input_shapes)

    def on_device(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors)

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Tensor], keep: Sequence[str] = ()) -> list[Tensor]:
        given = {name: torch.from_numpy(tensor) for name, tensor in inputs.items()}
        key, value = (given[name].double() for name in past_names(1))
        cache = transformers.DynamicCache(config=self.model.config)
        states = iter(state_names("past", STATES))
        for layer, layer_type in enumerate(TYPES):
            if layer_type == "conv":
                cache.update_conv_state(torch.nn.functional.pad(given[next(states)].double(), (1, 0)), layer)
            else:
                cache.update(key, value, layer)
        words = self.model.model.embed_tokens(given["input_ids"])
        words = words if key.shape[2] else words + given["image_tokens"]
        with torch.inference_mode():
            logits = self.model(inputs_embeds=words, past_key_values=cache, use_cache=True).logits[:, -1].float()
        best = logits.log_softmax(-1).max(-1)
        found = {"logits": logits, "next_token": best.indices, "next_log_prob": best.values}
        attention = cache.layers[TYPES.index("full_attention")]
        found |= {"present_key_0": attention.keys, "present_value_0": attention.values}
        kept = [cache.layers[i].conv_states[0][..., 1:] for i, kind in enumerate(TYPES) if kind == "conv"]
        found |= dict(zip(state_names("present", STATES), kept, strict=True))
        return [found[name].numpy().copy() for name in outputs]


@pytest.fixture(scope="module")
def pair() -> Pair:
    config = transformers.Lfm2Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=len(TYPES),
        layer_types=TYPES, num_attention_heads=2, num_key_value_heads=1, conv_L_cache=KERNEL,
        max_position_embeddings=48, pad_token_id=PAD, bos_token_id=START, eos_token_id=END, tie_word_embeddings=False,
        block_auto_adjust_ff_dim=False,
    )  # fmt: skip
    model = _randomize(transformers.Lfm2ForCausalLM(config), 5)
    image = torch.randn(IMAGES, 1, WIDTH, generator=torch.Generator().manual_seed(6)).double()

    def theirs(prompt: Sequence[int], **options: Any) -> Any:
        prompts = torch.tensor([prompt] * IMAGES)
        found = model.generate(inputs_embeds=model.model.embed_tokens(prompts) + image, **options)
        rows = len(found.sequences) // IMAGES
        found.sequences = torch.cat((prompts.repeat_interleave(rows, 0), found.sequences), 1)
        return found

    return Pair(theirs, DecoderStep(cast(GraphSession, Lfm2Graph(model))), {"image_tokens": image.numpy()})


def test_the_first_state_is_zeros_and_the_cache_grows_beside_it(pair: Pair) -> None:
    first = pair.ours.first_past(pair.image).tensors
    assert list(first) == [*past_names(1), *state_names("past", STATES)]
    assert all(first[name].shape == (IMAGES, WIDTH, KERNEL - 1) for name in state_names("past", STATES))
    assert not any(tensor.any() for tensor in first.values())
    cross = pair.ours.cross(pair.image)
    _, _, second = pair.ours.next_token(np.full((IMAGES, 2), START), pair.ours.first_past(pair.image), cross)
    assert second.tensors["past_key_0"].shape[2] == 2
    assert second.tensors["past_conv_1"].shape == (IMAGES, WIDTH, KERNEL - 1)
    assert not second.tensors["past_conv_1"][..., 0].any()
    assert second.tensors["past_conv_1"][..., 1:].all()


@pytest.mark.parametrize("way", [{}, {"beams": 3, "length_penalty": 1.5, "early_stopping": "never"}], ids=str)
def test_every_way_to_end(pair: Pair, way: dict[str, Any]) -> None:
    ends = likely_ends(pair)
    lengths = set()
    for limit in (1, 9):
        decoding = replace(BASE, end_token_ids=ends, max_new_tokens=limit, **way)
        lengths |= {len(ids) for ids in compare(pair, decoding, _theirs(way))}
    assert len(lengths) > 1


def test_a_prompt_of_several_tokens_and_rows_that_leave_the_batch(pair: Pair) -> None:
    decoding = replace(BASE, end_token_ids=likely_ends(pair)).for_call(prompt_ids=(8, 21, 8, 17, 8))
    compare(pair, decoding, {})
    steps = list(greedy_steps(pair.ours, pair.image, decoding))
    assert len({sum(step.ended) for step in steps}) > 2


def test_a_state_of_an_unknown_width_is_refused(pair: Pair) -> None:
    graph = Lfm2Graph(None, width="width")
    with pytest.raises(BundleError, match="input past_conv_0: expected a static width and number of tokens, found"):
        DecoderStep(cast(GraphSession, graph))
