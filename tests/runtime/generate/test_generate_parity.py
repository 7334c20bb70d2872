"""Token ids and scores equal those of Transformers' `generate()`, for tiny models of random weights.

The decoder behind the runtime is the torch model itself, so that only the decoding is compared. Models compute in
float64: what differs between one row alone and many beams together stays below the rounding of the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

from xattn_runtime.bundle.contract import layers_of
from xattn_runtime.bundle.decoding import Decoding
from xattn_runtime.execution.session import GraphSession, Shape, Tensor
from xattn_runtime.generate.decoder import DecoderStep
from xattn_runtime.generate.search import generate

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY, WIDTH, HEADS, LAYERS, SIDE_PX = 40, 16, 2, 2, 16
IMAGES, MOST_NEW = 5, 12
PAD, START, END = 0, 1, 2
SEED = 2
BASE = Decoding((START,), (END,), PAD, MOST_NEW, max_positions=48)


@dataclass(frozen=True)
class TorchGraph:
    """A torch model behind the names of a decoder graph: what `DecoderStep` needs of a `GraphSession`."""

    step: Callable[[Any, list[tuple[Any, Any]], Mapping[str, Tensor]], tuple[Any, list[tuple[Any, Any]]]]
    crosses: bool
    path: Path = Path("decoder.onnx")

    @property
    def input_shapes(self) -> dict[str, Shape]:
        names = ["past", "cross"] if self.crosses else ["past"]
        cache = ("batch", HEADS, "past", WIDTH // HEADS)
        return {f"{n}_{kind}_{i}": cache for n in names for i in range(LAYERS) for kind in ("key", "value")}

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
        past = [
            tuple(torch.from_numpy(inputs[f"past_{kind}_{i}"]).double() for kind in ("key", "value"))
            for i in range(LAYERS)
        ]
        with torch.inference_mode():
            logits, present = self.step(torch.from_numpy(inputs["input_ids"]), past, inputs)
        logits = logits[:, -1].float()
        best = logits.log_softmax(-1).max(-1)
        found = {"logits": logits, "next_token": best.indices, "next_log_prob": best.values}
        for i, pair in enumerate(present):
            found |= {f"present_{kind}_{i}": tensor for kind, tensor in zip(("key", "value"), pair, strict=True)}
        return [found[name].numpy() for name in outputs]


@dataclass(frozen=True)
class Pair:
    """A model as Transformers generates with it, and as the runtime does."""

    theirs: Callable[..., Any]
    ours: DecoderStep
    image: dict[str, Tensor]


def _randomize(model: Any, seed: int) -> Any:
    """Weights that make distributions peaked and varied, and the end come soon or late; in float64."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 1.0 if "position" in name or "wpe" in name else 0.4, generator=generator)
        if (head := model.get_output_embeddings()) is not None:
            head.weight[END] *= 1.6
    return model.double().eval()


def _cache(past: list[tuple[Any, Any]]) -> Any:
    cache = transformers.DynamicCache()
    for layer, (key, value) in enumerate(past):
        if key.shape[2]:
            cache.update(key, value, layer)
    return cache


def _layers(cache: Any) -> list[tuple[Any, Any]]:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _pixels(seed: int) -> Any:
    return torch.randn(IMAGES, 3, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(seed)).double() * 2


def _cross_attending(decoder: Any, seed: int) -> Pair:
    """A `VisionEncoderDecoderModel`; the encoder's hidden states stand in the place of the cross keys."""
    vision = transformers.ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=HEADS, intermediate_size=32,
        image_size=SIDE_PX, patch_size=8,
    )  # fmt: skip
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, decoder)
    model = transformers.VisionEncoderDecoderModel(config).eval().double()
    _randomize(model.decoder, seed)
    _randomize(model.encoder, seed)
    pixels = _pixels(seed)
    with torch.inference_mode():
        states = model.encoder(pixels).last_hidden_state

    def step(input_ids: Any, past: list[Any], inputs: Mapping[str, Tensor]) -> tuple[Any, list[Any]]:
        cache = transformers.EncoderDecoderCache(_cache(past), transformers.DynamicCache())
        length = past[0][0].shape[2] + input_ids.shape[1]
        found = model.decoder(
            input_ids,
            attention_mask=torch.ones(len(input_ids), length, dtype=torch.long),
            encoder_hidden_states=torch.from_numpy(inputs["cross_key_0"][:, 0]),
            past_key_values=cache,
            use_cache=True,
        )
        return found.logits, _layers(found.past_key_values.self_attention_cache)

    def theirs(prompt: Sequence[int], **options: Any) -> Any:
        prompts = torch.tensor([prompt] * IMAGES)
        return model.generate(pixels, decoder_input_ids=prompts, decoder_start_token_id=START, **options)

    image = {f"cross_{kind}_{i}": states[:, None].numpy() for i in range(LAYERS) for kind in ("key", "value")}
    return Pair(theirs, DecoderStep(cast(GraphSession, TorchGraph(step, crosses=True))), image)


def _gpt2(seed: int) -> Pair:
    return _cross_attending(
        transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=48, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
            add_cross_attention=True, is_decoder=True, tie_word_embeddings=False, bos_token_id=START, eos_token_id=END,
        ),
        seed,
    )  # fmt: skip


def _bert(seed: int) -> Pair:
    return _cross_attending(
        transformers.BertConfig(
            vocab_size=VOCABULARY, max_position_embeddings=48, hidden_size=WIDTH, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, intermediate_size=32, add_cross_attention=True, is_decoder=True,
            tie_word_embeddings=False,
        ),
        seed,
    )  # fmt: skip


def _git(seed: int) -> Pair:
    """A GIT, whose image tokens stand before the text in the cache."""
    vision = {
        "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": HEADS, "intermediate_size": 32,
        "image_size": SIDE_PX, "patch_size": 8,
    }  # fmt: skip
    config = transformers.GitConfig(
        vision_config=vision, vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, intermediate_size=32, max_position_embeddings=48,
        pad_token_id=PAD, bos_token_id=START, eos_token_id=END, tie_word_embeddings=False,
    )  # fmt: skip
    model = _randomize(transformers.GitForCausalLM(config), seed)
    pixels = _pixels(seed)
    tokens = (SIDE_PX // 8) ** 2 + 1
    with torch.inference_mode():
        filled = model(torch.full((IMAGES, 1), START), pixel_values=pixels, use_cache=True)
    image = {}
    for i, pair in enumerate(_layers(filled.past_key_values)):
        for kind, tensor in zip(("key", "value"), pair, strict=True):
            image[f"prefix_{kind}_{i}"] = tensor[:, :, :tokens].numpy()

    def step(input_ids: Any, past: list[Any], inputs: Mapping[str, Tensor]) -> tuple[Any, list[Any]]:
        cache = _cache(past)
        begin = past[0][0].shape[2] - tokens
        positions = torch.arange(begin, begin + input_ids.shape[1])[None].expand(len(input_ids), -1)
        found = model(input_ids, position_ids=positions, past_key_values=cache, use_cache=True)
        return found.logits, _layers(found.past_key_values)

    def theirs(prompt: Sequence[int], **options: Any) -> Any:
        return model.generate(pixel_values=pixels, input_ids=torch.tensor([prompt] * IMAGES), **options)

    return Pair(theirs, DecoderStep(cast(GraphSession, TorchGraph(step, crosses=False))), image)


KINDS: dict[str, Callable[[int], Pair]] = {"gpt2": _gpt2, "bert": _bert, "git": _git}


@pytest.fixture(scope="module")
def pairs() -> dict[str, Pair]:
    return {kind: make(SEED) for kind, make in KINDS.items()}


# What the runtime is told, and the same for `generate()`.
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "several end tokens": ({"end_token_ids": (END, 7, 11)}, {"eos_token_id": [END, 7, 11]}),
    "no token that ends": ({"end_token_ids": (), "min_length": 5}, {"eos_token_id": None, "min_length": 5}),
    "no end": ({"suppressed_token_ids": (END,)}, {"suppress_tokens": [END]}),
    "min_length": ({"min_length": 8}, {"min_length": 8}),
    "min_new_tokens": ({"min_new_tokens": 7}, {"min_new_tokens": 7}),
    "repetition_penalty": ({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
    "repetition_penalty below 1": ({"repetition_penalty": 0.6}, {"repetition_penalty": 0.6}),
    "no_repeat_ngram_size 1": ({"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 1}),
    "no_repeat_ngram_size 2": ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
    "no_repeat_ngram_size 3": ({"no_repeat_ngram_size": 3}, {"no_repeat_ngram_size": 3}),
    "forced first": ({"forced_first_token_id": 9}, {"forced_bos_token_id": 9}),
    "forced last": ({"forced_last_token_id": END}, {"forced_eos_token_id": END}),
    "suppressed": ({"suppressed_token_ids": tuple(range(10, 30))}, {"suppress_tokens": list(range(10, 30))}),
    "begin suppressed": (
        {"begin_suppressed_token_ids": tuple(range(3, 36))},
        {"begin_suppress_tokens": list(range(3, 36))},
    ),
    "first forced, then begin suppressed": (
        {"forced_first_token_id": 9, "begin_suppressed_token_ids": tuple(range(3, 36))},
        {"forced_bos_token_id": 9, "begin_suppress_tokens": list(range(3, 36))},
    ),
    "bad tokens": (
        {"bad_token_ids": (END, *range(10, 30))},
        {"bad_words_ids": [[END], *([i] for i in range(10, 30))]},
    ),
    "all together": (
        {
            "min_length": 5, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "forced_first_token_id": 30,
            "forced_last_token_id": END, "bad_token_ids": (12, 13), "suppressed_token_ids": (5, 6),
            "begin_suppressed_token_ids": (END, 14),
        },
        {
            "min_length": 5, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "forced_bos_token_id": 30,
            "forced_eos_token_id": END, "bad_words_ids": [[12], [13]], "suppress_tokens": [5, 6],
            "begin_suppress_tokens": [END, 14],
        },
    ),
}  # fmt: skip
BEAMS: tuple[dict[str, Any], ...] = ({}, {"beams": 2}, {"beams": 4})
WAYS_TO_END: tuple[dict[str, Any], ...] = (
    {"beams": 3},
    {"beams": 3, "length_penalty": 2.0},
    {"beams": 3, "length_penalty": -1.0},
    {"beams": 3, "length_penalty": 0.0, "early_stopping": "never"},
    {"beams": 3, "length_penalty": 1.5, "early_stopping": "never"},
    {"beams": 4, "early_stopping": True},
)


def _theirs(search: Mapping[str, Any]) -> dict[str, Any]:
    return {"num_beams" if name == "beams" else name: value for name, value in search.items()}


def compare(pair: Pair, decoding: Decoding, theirs: Mapping[str, Any]) -> set[tuple[int, ...]]:
    """What was generated, all of it equal; a row alone as in the batch."""
    options = {"eos_token_id": list(decoding.end_token_ids), "max_new_tokens": decoding.max_new_tokens, **theirs}
    found = pair.theirs(
        decoding.prompt_token_ids, pad_token_id=PAD, do_sample=False, return_dict_in_generate=True, output_scores=True,
        **options,
    )  # fmt: skip
    ours = generate(pair.ours, pair.image, decoding)
    for row, sequence in enumerate(ours):
        expected = found.sequences[row, len(decoding.prompt_token_ids) :].tolist()
        ends = [i for i, token_id in enumerate(expected) if token_id in decoding.end_token_ids]
        expected = expected[: ends[0]] if ends else expected
        assert list(sequence.token_ids) == expected
        assert len(sequence.log_probs) == len(expected) + bool(ends)
        if decoding.beams > 1:
            assert sequence.score == pytest.approx(float(found.sequences_scores[row]), rel=1e-5, abs=1e-5)
    alone = {name: tensor[2:3] for name, tensor in pair.image.items()}
    assert generate(pair.ours, alone, decoding)[0].token_ids == ours[2].token_ids
    return {sequence.token_ids for sequence in ours}


def likely_ends(pair: Pair) -> tuple[int, ...]:
    """End tokens that do come up, early and late."""
    endless = generate(pair.ours, pair.image, replace(BASE, suppressed_token_ids=(END,)))
    return tuple({endless[0].token_ids[2], endless[1].token_ids[5], END})


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", ["gpt2", "git"])
def test_every_setting(pairs: dict[str, Pair], kind: str, setting: str) -> None:
    ours, theirs = SETTINGS[setting]
    sequences: set[tuple[int, ...]] = set()
    for beams in (BEAMS[0], BEAMS[2]):
        sequences |= compare(pairs[kind], replace(BASE, **ours, **beams), {**theirs, **_theirs(beams)})
    assert len(sequences) > 3


@pytest.mark.parametrize("way", WAYS_TO_END, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_end(pairs: dict[str, Pair], kind: str, way: dict[str, Any]) -> None:
    ends = likely_ends(pairs[kind])
    lengths = set()
    for limit in (1, 6, 18):
        decoding = replace(BASE, end_token_ids=ends, max_new_tokens=limit, **way)
        lengths |= {len(ids) for ids in compare(pairs[kind], decoding, _theirs(way))}
    assert len(lengths) > 2


@pytest.mark.parametrize("beams", BEAMS, ids=str)
@pytest.mark.parametrize("setting", ["plain", "all together"])
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_several_tokens(pairs: dict[str, Pair], kind: str, setting: str, beams: dict[str, Any]) -> None:
    ours, theirs = SETTINGS[setting]
    decoding = replace(BASE, **ours, **beams).for_call(prompt_ids=(8, 21, 8, 17, 8))
    assert decoding.prompt_token_ids == (START, 8, 21, 8, 17, 8)
    compare(pairs[kind], decoding, {**theirs, **_theirs(beams)})
