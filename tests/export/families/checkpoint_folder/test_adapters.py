"""Adapters of PEFT, merged with their base: the truth is the layer `x Wᵀ + s x Aᵀ Bᵀ` in Transformers' own model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import VisionEncoderDecoderModel

from tests.parity.vision_encoder_decoder import save_vit_gpt2
from xattn_export import export_checkpoint
from xattn_export.families.checkpoint_folder.folder import load_model
from xattn_export.families.checkpoint_folder.weights.base import whole_folder
from xattn_export.families.table import family_of
from xattn_runtime import verify_bundle
from xattn_runtime.errors import CheckpointError, UserError

WIDTH, WORDS = 32, 300
SIZES = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "hidden_size": WIDTH}
CONFIG = {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 3, "lora_alpha": 8, "bias": "none"}
# A linear layer, a square layer that GPT-2 keeps transposed, and a convolution, by the names of today's Transformers.
LINEAR = "encoder.layers.0.attention.q_proj"
SQUARE = "decoder.transformer.h.0.attn.c_proj"
PATCHES = "encoder.embeddings.patch_embeddings.projection"
WORD_TABLE = "decoder.transformer.wte"
HEAD = "decoder.lm_head"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = {"n_embd": WIDTH, "n_layer": 1, "n_head": 2, "n_positions": 24, "vocab_size": WORDS}
    ends = {"bos_token_id": WORDS - 1, "eos_token_id": WORDS - 1}
    vision = {**SIZES, "image_size": 32, "patch_size": 16}
    return save_vit_gpt2(tmp_path_factory.mktemp("base") / "base", text=text | ends, vision=vision)


def _model(folder: Path) -> VisionEncoderDecoderModel:
    return VisionEncoderDecoderModel.from_pretrained(folder, local_files_only=True).eval()


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _factors(model: VisionEncoderDecoderModel, module: str, rank: int) -> dict[str, Tensor]:
    """The two factors as PEFT names and shapes them."""
    layer: Any = model.get_submodule(module)
    if module == WORD_TABLE:
        return {"lora_embedding_A": _noise(rank, WORDS), "lora_embedding_B": _noise(WIDTH, rank, seed=1)}
    if module == PATCHES:
        a, b = _noise(rank, 3, 16, 16), _noise(WIDTH, rank, 1, 1, seed=1)
    else:
        outputs, inputs = layer.weight.shape[:: -1 if type(layer).__name__ == "Conv1D" else 1]
        a, b = _noise(rank, inputs), _noise(outputs, rank, seed=1)
    return {"lora_A.weight": a, "lora_B.weight": b}


def _adapter(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir()
    save_file(
        {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config), encoding="utf-8")
    return folder


@contextmanager
def _layers_with(
    model: VisionEncoderDecoderModel, module: str, factors: dict[str, Tensor], scale: float
) -> Iterator[None]:
    """The model, whose layer `module` computes what LoRA's layer computes."""
    a, b = factors.values()

    def forward(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (values,) = inputs
        if module == WORD_TABLE:
            return output + scale * a.T[values] @ b.T
        if module == PATCHES:
            return output + scale * torch.conv2d(torch.conv2d(values, a, stride=16), b)
        return output + scale * (values @ a.T) @ b.T

    hook = model.get_submodule(module).register_forward_hook(forward)
    yield
    hook.remove()


def _logits(model: VisionEncoderDecoderModel) -> Tensor:
    ids = torch.tensor([[WORDS - 1, 5, 17, 2]])
    with torch.no_grad():
        logits: Tensor = model(pixel_values=_noise(1, 3, 32, 32), decoder_input_ids=ids).logits
    return logits


def _merged(adapter: Path, base: Path) -> VisionEncoderDecoderModel:
    with whole_folder(adapter, base, "merged") as whole:
        model, files = load_model(whole, VisionEncoderDecoderModel, unused=(r"pooler\.",))
    assert [file.name for file in files] == ["model.safetensors", "adapter_model.safetensors"]
    return model


def _old_name(name: str) -> str:
    """As Transformers before 5 called the layers of ViT."""
    return name.replace("encoder.layers.", "encoder.encoder.layer.").replace(
        "attention.q_proj", "attention.attention.query"
    )


# Settings, and the scale that they mean for an adapter of rank 3.
SCALES: list[tuple[dict[str, Any], float]] = [
    ({}, 8 / 3),
    ({"use_rslora": True, "init_lora_weights": "gaussian"}, 8 / math.sqrt(3)),
    ({"r": 5, "rank_pattern": {r"^.*proj|projection$": 3, "wte": 3, "lm_head": 3}, "alpha_pattern": {".*": 6}}, 2.0),
]


@pytest.mark.parametrize(("config", "scale"), SCALES, ids=["plain", "rank-stabilised", "patterns"])
@pytest.mark.parametrize("module", [LINEAR, SQUARE, PATCHES, WORD_TABLE, HEAD])
def test_a_merged_layer_computes_what_loras_layer_computes(
    base: Path, tmp_path: Path, module: str, config: dict[str, Any], scale: float
) -> None:
    """Of the table of words and the head, which share their weight, only the one that is named changes."""
    original = _model(base)
    factors = _factors(original, module, 3)
    with _layers_with(original, module, factors, scale):
        expected = _logits(original)
    assert (expected - _logits(original)).abs().max() > 1e-2
    tensors = {f"{module}.{name}": tensor for name, tensor in factors.items()}
    merged = _merged(_adapter(tmp_path / "adapter", tensors, **config), base)
    torch.testing.assert_close(_logits(merged), expected, atol=2e-5, rtol=1e-5)


def test_an_adapter_of_older_names_is_merged_where_the_files_have_them(base: Path, tmp_path: Path) -> None:
    original = _model(base)
    factors = _factors(original, LINEAR, 3)
    with _layers_with(original, LINEAR, factors, 8 / 3):
        expected = _logits(original)
    tensors = {f"{_old_name(LINEAR)}.{name}": tensor for name, tensor in factors.items()}
    merged = _merged(_adapter(tmp_path / "adapter", tensors), base)
    torch.testing.assert_close(_logits(merged), expected, atol=2e-5, rtol=1e-5)


def test_what_is_saved_as_a_whole_takes_the_place_of_the_bases(base: Path, tmp_path: Path) -> None:
    """A module beside the adapter, the bias of a layer with one, and a head that is no longer the table of words."""
    original = _model(base)
    saved = {
        "decoder.transformer.ln_f.weight": _noise(WIDTH),
        "decoder.transformer.h.0.attn.c_proj.base_layer.bias": _noise(WIDTH),
        f"{HEAD}.weight": _noise(WORDS, WIDTH),
    }
    adapter = _adapter(tmp_path / "adapter", saved, bias="all", modules_to_save=["ln_f", "lm_head"])
    with torch.no_grad():
        original.decoder.transformer.ln_f.weight.copy_(_noise(WIDTH))
        original.decoder.transformer.h[0].attn.c_proj.bias.copy_(_noise(WIDTH))
        original.decoder.lm_head.weight = torch.nn.Parameter(_noise(WORDS, WIDTH))
    torch.testing.assert_close(_logits(_merged(adapter, base)), _logits(original), atol=2e-5, rtol=1e-5)


def _plain(base: Path, folder: Path, **config: Any) -> Path:
    tensors = {f"{SQUARE}.{name}": tensor for name, tensor in _factors(_model(base), SQUARE, 3).items()}
    return _adapter(folder, tensors, **config)


def test_an_adapter_alone_is_told_its_base(base: Path, tmp_path: Path) -> None:
    adapter = _plain(base, tmp_path / "adapter")
    for call in (family_of, lambda folder: export_checkpoint(folder, tmp_path / "out.xattn")):
        with pytest.raises(CheckpointError) as caught:
            call(adapter)
        assert str(caught.value) == (
            f"{adapter}: expected a whole model, found an adapter of PEFT (LORA) of org/base; add --base with the "
            "folder of that model, or merge it with merge_and_unload() of peft, and export what save_pretrained then "
            "writes"
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def _edited(name: str, value: object) -> Callable[[Path, Path], Path]:
    return lambda base, folder: _plain(base, folder, **{name: value})


def _of_tensors(**tensors: Tensor) -> Callable[[Path, Path], Path]:
    return lambda base, folder: _adapter(folder, {name.replace("__", "."): each for name, each in tensors.items()})


REFUSED: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "another method": (_edited("peft_type", "IA3"), "peft_type: expected LORA, found 'IA3'; merge it with"),
    "DoRA": (_edited("use_dora", True), "use_dora: expected none, found True; merge it with merge_and_unload"),
    "PiSSA": (_edited("init_lora_weights", "pissa"), "init_lora_weights: expected one that leaves the model's weights"),
    "another rank": (_edited("r", 4), f"r: expected 3 for {SQUARE}, as its tensors have it, found 4"),
    "no number": (_edited("lora_alpha", "8"), f"alpha_pattern: expected a number above 0 for {SQUARE}, found '8'"),
    "an endless pattern": (_edited("rank_pattern", {"(a+)+": 3}), "expected a name, found a repeated group"),
    "magnitudes": (
        _of_tensors(decoder__lm_head__lora_magnitude_vector=torch.ones(3)),
        "the tensor base_model.model.decoder.lm_head.lora_magnitude_vector: expected those of plain LoRA, found others",
    ),
    "half a layer": (
        _of_tensors(decoder__lm_head__lora_A__weight=torch.ones(3, WIDTH)),
        "expected two factors, lora_A",
    ),
    "another model": (
        _of_tensors(decoder__other__lora_A__weight=torch.ones(3, 4), decoder__other__lora_B__weight=torch.ones(4, 3)),
        "expected an adapter of modules that the base has, found decoder.other, which it does not have; name the model",
    ),
    "another width": (
        _of_tensors(
            decoder__lm_head__lora_A__weight=torch.ones(3, 4), decoder__lm_head__lora_B__weight=torch.ones(4, 3)
        ),
        rf"decoder.lm_head: expected the shape [{WORDS}, {WIDTH}] that the base has, found another; name the model",
    ),
    "another vocabulary": (
        _of_tensors(decoder__lm_head__weight=torch.ones(WORDS + 2, WIDTH)),
        f"expected the shape [{WORDS}, {WIDTH}] that the base has, found [{WORDS + 2}, {WIDTH}]; name the model that",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_adapter_of_another_kind_is_refused_by_name(base: Path, tmp_path: Path, kind: str) -> None:
    make, message = REFUSED[kind]
    adapter = make(base, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        _merged(adapter, base)
    assert str(caught.value).startswith(str(adapter))
    assert "\n" not in str(caught.value)


def test_what_is_said_of_the_base_names_its_own_file(base: Path, tmp_path: Path) -> None:
    adapter = _plain(base, tmp_path / "adapter")
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in base.iterdir():
        (broken / path.name).write_bytes(b"{" if path.name == "preprocessor_config.json" else path.read_bytes())
    (broken / "processor_config.json").unlink(missing_ok=True)
    (broken / "preprocessor_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        export_checkpoint(adapter, tmp_path / "out.xattn", base=broken)
    assert str(caught.value).startswith(f"{broken / 'preprocessor_config.json'}: expected readable JSON")


def test_a_base_that_is_none_and_a_base_too_many(base: Path, tmp_path: Path) -> None:
    adapter = _plain(base, tmp_path / "adapter")
    with pytest.raises(
        CheckpointError, match="expected the whole model that the adapter was trained on, found an adap"
    ):
        export_checkpoint(adapter, tmp_path / "out.xattn", base=adapter)
    with pytest.raises(UserError, match="--base: expected an adapter of PEFT to add to it, found a whole model in"):
        export_checkpoint(base, tmp_path / "out.xattn", base=base)


@pytest.mark.slow
def test_an_exported_adapter_is_verified_and_named_after_itself(base: Path, tmp_path: Path) -> None:
    adapter = _plain(base, tmp_path / "My LoRA")
    (adapter / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    export_checkpoint(adapter, tmp_path / "out.xattn", base=base, whole=False)
    verify_bundle(tmp_path / "out.xattn").raise_if_failed()
    manifest = json.loads((tmp_path / "out.xattn" / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["name"], manifest["license"]) == ("my-lora", "MIT")
