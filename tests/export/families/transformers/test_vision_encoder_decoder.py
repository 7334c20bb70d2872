"""VisionEncoderDecoder as Transformers computes it: logits and captions, from the picture on, for every part."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertTokenizer,
    DeiTConfig,
    GPT2Config,
    GPT2Tokenizer,
    RobertaConfig,
    RobertaTokenizer,
    SwinConfig,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.export.families.conftest import bert_vocabulary, noise_pictures, randomize, save_folder
from tests.support.slow import slow_after
from xattn_export import export_checkpoint
from xattn_export.families.checkpoint_folder.reference import generated
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.bundle.manifest import Attention
from xattn_runtime.errors import CheckpointError
from xattn_runtime.execution.session import open_session
from xattn_runtime.execution.settings import session_settings
from xattn_runtime.generate.decoder import DecoderStep
from xattn_runtime.loader import load
from xattn_runtime.tasks import CaptionTask

TOLERANCE = 1e-4
STEPS = 17
MAX_LENGTH = 12
BERT_WORDS = bert_vocabulary()
BYTES = list(bytes_to_unicode().values())
ROBERTA_WORDS = ["<s>", "<pad>", "</s>", "<unk>", *BYTES, "<mask>"]
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}


@dataclass(frozen=True)
class Pair:
    """An encoder and a decoder, made anew at each call, and how they are exported. tokens: start, end and padding."""

    encoder: Callable[[], Any]
    decoder: Callable[[], Any]
    tokenizer: Callable[[], Any]
    tokens: tuple[int, int, int]
    attention: Attention


def _gpt2_tokenizer() -> Any:
    return GPT2Tokenizer({word: number for number, word in enumerate([*BYTES, "<|endoftext|>"])}, [])


def _bert_tokenizer() -> Any:
    return BertTokenizer({word: number for number, word in enumerate(BERT_WORDS)})


def _roberta_tokenizer() -> Any:
    return RobertaTokenizer({word: number for number, word in enumerate(ROBERTA_WORDS)}, [])


def _trocr(**settings: Any) -> Any:
    sizes = {"d_model": 36, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 40}
    return TrOCRConfig(vocab_size=len(ROBERTA_WORDS), max_position_embeddings=24, **sizes, **settings)


PAIRS = {
    "vit-gpt2": Pair(
        lambda: ViTConfig(hidden_size=32, image_size=(40, 24), patch_size=8, **LAYERS),
        lambda: GPT2Config(
            vocab_size=257, n_embd=32, n_layer=3, n_head=4, n_positions=32, scale_attn_by_inverse_layer_idx=True
        ),
        _gpt2_tokenizer,
        (256, 256, 256),
        "standard",
    ),
    "deit-trocr": Pair(
        lambda: DeiTConfig(hidden_size=32, image_size=33, patch_size=8, **LAYERS),
        lambda: _trocr(
            cross_attention_hidden_size=32,
            use_learned_position_embeddings=False,
            layernorm_embedding=False,
            scale_embedding=True,
        ),
        _roberta_tokenizer,
        (2, 2, 1),
        "standard",
    ),
    "vit-trocr": Pair(
        lambda: ViTConfig(hidden_size=24, image_size=32, patch_size=16, qkv_bias=False, **LAYERS),
        lambda: _trocr(tie_word_embeddings=False),
        _roberta_tokenizer,
        (2, 2, 1),
        "decomposed",
    ),
    "swin-bert": Pair(
        lambda: SwinConfig(embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=3, image_size=36, patch_size=4),
        lambda: BertConfig(
            vocab_size=len(BERT_WORDS), hidden_size=40, max_position_embeddings=30, hidden_act="gelu_new", **LAYERS
        ),
        _bert_tokenizer,
        (2, 3, 0),
        "standard",
    ),
    "swin-roberta": Pair(
        lambda: SwinConfig(
            embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, image_size=(46, 33), patch_size=4
        ),
        lambda: RobertaConfig(
            vocab_size=len(ROBERTA_WORDS), hidden_size=32, max_position_embeddings=32, type_vocab_size=1, **LAYERS
        ),
        _roberta_tokenizer,
        (0, 2, 1),
        "decomposed",
    ),
}

# One in each form; with the others every encoder and decoder has its turn.
QUICK = ("vit-gpt2",)


@dataclass(frozen=True)
class Exported:
    """A model as its user has it, and the bundle that was made of its folder."""

    model: Any
    pictures: Any
    tokenizer: Any
    bundle: Path
    opset: int
    operators: frozenset[str]
    task: CaptionTask


def _model(pair: Pair) -> Any:
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(pair.encoder(), pair.decoder())
    model = VisionEncoderDecoderModel(config).eval()
    randomize(model, gain=1.5)
    settings = model.generation_config
    settings.decoder_start_token_id, settings.eos_token_id, settings.pad_token_id = pair.tokens
    settings.bos_token_id, settings.max_length = pair.tokens[0], MAX_LENGTH
    return model


def _save(folder: Path, pair: Pair, model: Any) -> Any:
    """Write the folder; its image processor."""
    size = model.config.encoder.image_size
    height, width = (size, size) if isinstance(size, int) else size
    pictures = ViTImageProcessor(size={"height": height, "width": width})
    save_folder(folder, model, pictures)
    pair.tokenizer().save_pretrained(folder)
    return pictures


def _age(folder: Path) -> None:
    """Leave out what a decoder needs not, and add what older versions of Transformers saved beside it."""
    path = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("encoder.pooler.")}
    if any(name.startswith("decoder.transformer.") for name in tensors):
        tensors["decoder.transformer.h.0.attn.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.uint8)
        tensors["decoder.transformer.h.0.crossattention.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, path, {"format": "pt"})


@pytest.fixture(scope="module", params=slow_after(1, sorted(PAIRS, key=QUICK.__contains__, reverse=True)))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    pair, folder = PAIRS[request.param], tmp_path_factory.mktemp("models") / request.param
    model, bundle = _model(pair), folder.with_suffix(".xattn")
    pictures = _save(folder, pair, model)
    _age(folder)
    report = export_checkpoint(folder, bundle, attention=pair.attention)
    assert max(parity.largest_error for parity in report.parity.values()) <= TOLERANCE
    task = load(bundle, threads=1, task="caption")
    operators = frozenset(name for facts in report.graphs.values() for name in facts.operators)
    return Exported(model, pictures, pair.tokenizer(), bundle, report.opset, operators, task)


@pytest.mark.parametrize("batch", [1, 3])
def test_every_step_gives_the_logits_of_transformers(exported: Exported, batch: int) -> None:
    pixel_values = exported.pictures(noise_pictures(batch), return_tensors="pt").pixel_values
    generator, vocabulary = torch.Generator().manual_seed(1), exported.model.config.decoder.vocab_size
    ids = torch.randint(5, vocabulary - 1, (batch, STEPS), generator=generator)
    with torch.no_grad():
        expected = exported.model(pixel_values=pixel_values, decoder_input_ids=ids).logits.numpy()
    found = _teacher_forced(exported.bundle, pixel_values.numpy(), ids.numpy())
    assert expected.std() > 0.1
    assert np.abs(found - expected[:, 1:]).max() <= TOLERANCE * np.abs(expected).max()


def _teacher_forced(bundle: Path, pixel_values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Logits `[batch, length - 1, vocabulary]` along `ids`, two tokens first, then one at a time with the cache."""
    opened, settings = open_bundle(bundle), session_settings("cpu", 1)
    encoder = open_session(opened, "image_encoder", settings)
    names = tuple(encoder.output_shapes)
    image = dict(zip(names, encoder.run(names, {"pixel_values": pixel_values}), strict=True))
    step = DecoderStep(open_session(opened, "decoder", settings))
    past, cross, rows = step.first_past(image), step.cross(image), []
    for begin, end in ((0, 2), *((i, i + 1) for i in range(2, ids.shape[1]))):
        logits, past = step.logits(ids[:, begin:end], past, cross)
        rows.append(logits)
    return np.stack(rows, 1)


@pytest.mark.parametrize("beams", [1, 4])
def test_captions_are_those_of_generate(exported: Exported, beams: int) -> None:
    compared, texts = 0, set()
    for picture in noise_pictures(20):
        expected = _generate(exported, picture, beams)
        texts.add(expected.token_ids)
        if expected.steady:
            caption = exported.task.caption(picture, beams=beams)
            assert caption.token_ids == expected.token_ids
            assert caption.text == exported.tokenizer.decode(expected.token_ids, skip_special_tokens=True).strip()
            compared += 1
    assert compared >= 15
    assert len(texts) >= 5


def _generate(exported: Exported, picture: Any, beams: int) -> Any:
    """What `generate()` makes of a picture, and whether noise leaves it as it is."""
    pixel_values = exported.pictures(picture, return_tensors="pt").pixel_values

    def generate(**settings: Any) -> torch.Tensor:
        ids: torch.Tensor = exported.model.generate(pixel_values, num_beams=beams, **settings)
        assert ids.shape[1] <= MAX_LENGTH
        return ids

    def forced_logits(ids: Sequence[int]) -> torch.Tensor:
        return torch.zeros(1, len(ids))

    ends = (exported.model.generation_config.eos_token_id,)
    return generated(generate, forced_logits, prompt_length=1, end_token_ids=ends)


def test_from_a_file_on_the_disk(exported: Exported, tmp_path: Path) -> None:
    picture = noise_pictures(2, seed=9)[1]
    picture.save(tmp_path / "picture.png")
    expected = _generate(exported, picture, 1)
    assert exported.task.caption(tmp_path / "picture.png").token_ids == expected.token_ids


def test_a_picture_is_projected_once_and_attended_to_at_every_step(exported: Exported) -> None:
    decoder = onnx.load(exported.bundle / "graphs/decoder.onnx", load_external_data=False).graph
    series = {value.name.rpartition("_")[0] for value in decoder.input}
    assert series == {"input", "past_key", "past_value", "cross_key", "cross_value"}
    readers = [(node, name) for node in decoder.node for name in node.input if name.startswith("cross_")]
    layers = exported.model.config.decoder.num_hidden_layers
    assert len({name for _, name in readers}) == 2 * layers
    if exported.opset >= 23:
        assert {node.op_type for node, _ in readers} == {"Attention"}
    else:
        assert "Attention" not in exported.operators
        initializers = {tensor.name for tensor in decoder.initializer}
        products = [node for node, _ in readers if node.op_type in ("MatMul", "Gemm")]
        assert products
        assert all(not initializers & set(node.input) for node in products)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder": {"model_type": "donut-swin"}},
            r"encoder\.model_type: expected one of vit, deit, swin \(the nearest: swin\), found 'donut-swin'",
        ),
        (
            {"decoder": {"model_type": "mbart"}},
            r"decoder\.model_type: expected one of gpt2, bert, roberta, trocr \(the nearest: bert\), found 'mbart'",
        ),
        ({"decoder": {}}, r"decoder\.model_type: expected one of gpt2, .*, found"),
        ({"decoder": {"model_type": "bert"}}, r"decoder\.add_cross_attention: expected true, found"),
    ],
)
def test_parts_that_there_is_no_graph_for(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    config = {"architectures": ["VisionEncoderDecoderModel"], "encoder": {"model_type": "vit"}, **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message) as raised:
        export_checkpoint(tmp_path, tmp_path / "out.xattn")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out.xattn").exists()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("swin-bert", {"window_size": 7}, r"encoder\.window_size: expected at most 5, .*, found 7"),
        (
            "vit-gpt2",
            {"num_channels": 1},
            r"encoder\.num_channels: expected 3, found 1; models of greyscale",
        ),
    ],
)
def test_encoders_that_no_graph_can_be_made_of(
    tmp_path: Path, name: str, settings: dict[str, Any], message: str
) -> None:
    pair = PAIRS[name]
    encoder = pair.encoder()
    for key, value in settings.items():
        setattr(encoder, key, value)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, pair.decoder())
    _save(tmp_path / "model", pair, VisionEncoderDecoderModel(config))
    with pytest.raises(CheckpointError, match=message):
        export_checkpoint(tmp_path / "model", tmp_path / "out.xattn")
