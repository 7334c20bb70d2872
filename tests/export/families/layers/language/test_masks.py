"""Tokens that see those after them, beside the models of Transformers that let them: PaliGemma, Gemma 3."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    Gemma2Config,
    Gemma3Config,
    Gemma3Model,
    Gemma3TextConfig,
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaModel,
    SiglipVisionConfig,
)

from tests.export.families.conftest import randomize
from tests.export.families.layers.language.language_models import SIZES, VOCABULARY, first_cache
from xattn_export.families.base import Role, TensorSpec
from xattn_export.families.layers.language.masks import Blocks, blocks_of_prompt, blocks_of_runs, mask_of
from xattn_export.families.layers.language.table import language_decoder
from xattn_export.parity import check_parity
from xattn_export.to_onnx import export_graph

VISION = SiglipVisionConfig(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
)
WINDOW = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 20}
PROMPT, AFTER = 19, 3
IMAGE = 1


def _model(model_class: Any, config_class: Any, text_class: Any, **settings: Any) -> Any:
    text = text_class(**{**SIZES, "head_dim": 8, **settings})
    config = config_class(text_config=text, vision_config=VISION, image_token_index=VOCABULARY - 1)
    config._attn_implementation = config.text_config._attn_implementation = "eager"
    model = model_class(config).eval().requires_grad_(False)
    randomize(model)
    return model


def _compare(model: Any, ids: Tensor, types: Tensor, blocks: Blocks, after: Blocks) -> None:
    """A prompt with these types of tokens, and what follows it, token by token like the text it is."""
    cache, text = DynamicCache(), model.language_model
    decoder = language_decoder(text)
    past: Sequence[Tensor] = first_cache(decoder, text.config, ids.shape[0])
    for part, part_types, part_blocks in (
        (ids[:, :PROMPT], types, blocks),
        (ids[:, PROMPT:], torch.full_like(ids[:, PROMPT:], 0 if after.in_window else 1), after),
    ):
        expected = model(part, token_type_ids=part_types, past_key_values=cache, use_cache=True).last_hidden_state
        found, past = decoder.step(text.embed_tokens(part), past, blocks=part_blocks)
        assert expected.std() > 0.5
        assert torch.allclose(found, expected, atol=5e-5)


class MaskGraph(nn.Module):
    """Both kinds of blocks, and the masks of a layer with a window and of one without."""

    def forward(self, ids: Tensor, past: Tensor) -> tuple[Tensor, ...]:
        before = past.shape[1]
        kinds = blocks_of_prompt(ids, before), blocks_of_runs(ids, IMAGE)
        return tuple(mask_of(before, ids, window, blocks).float() for blocks in kinds for window in (None, 4))


@pytest.mark.slow
def test_masks_of_a_graph_are_those_of_torch_at_every_length() -> None:
    ids, past = TensorSpec("ids", ("batch", "length"), "token_ids", 3), TensorSpec("past", ("batch", "past"), "normal")
    graph, outputs = MaskGraph(), ("prompt", "prompt_window", "runs", "runs_window")
    role = Role("masks", graph, graph, (ids, past), outputs, longest=20, attends=False)
    assert check_parity(export_graph(role, "standard", 23), role).largest_error == 0.0


def _ids() -> Tensor:
    return torch.randint(2, VOCABULARY - 1, (2, PROMPT + AFTER), generator=torch.Generator().manual_seed(8))


@pytest.mark.usefixtures("standard_attention")
@pytest.mark.parametrize(("text_class", "settings"), [(GemmaConfig, {}), (Gemma2Config, WINDOW)])
def test_a_prompt_sees_itself_whole_and_what_follows_does_not(text_class: Any, settings: dict[str, Any]) -> None:
    model, ids = _model(PaliGemmaModel, PaliGemmaConfig, text_class, **settings), _ids()
    blocks = blocks_of_prompt(ids[:, :PROMPT], 0)
    after = blocks_of_prompt(ids[:, PROMPT:], PROMPT)
    _compare(model, ids, torch.zeros_like(ids[:, :PROMPT]), blocks, after)


@pytest.mark.usefixtures("standard_attention")
def test_the_tokens_of_an_image_see_each_other_within_the_window() -> None:
    model, ids = _model(Gemma3Model, Gemma3Config, Gemma3TextConfig, **WINDOW), _ids()
    types = torch.zeros_like(ids[:, :PROMPT])
    types[0, 2:9] = types[0, 11:13] = types[1, :6] = types[1, 16:] = IMAGE
    blocks, after = blocks_of_runs(types, IMAGE), blocks_of_runs(ids[:, PROMPT:], IMAGE)
    assert blocks.numbers[0, 2:13].tolist() == [0] * 7 + [-1] * 2 + [1] * 2
    _compare(model, ids, types, blocks, after)
