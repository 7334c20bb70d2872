"""Opening Transformers folders: every way in which weights may be stored, and every way in which they may be bad."""

import errno
import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval
from typer.testing import CliRunner

from tests.export.families.conftest import bert_vocabulary
from tests.parity.blip import save_blip
from xattn_edge.commands.app import app
from xattn_export import export_checkpoint
from xattn_export.families.checkpoint_folder.folder import license_of, load_model
from xattn_export.families.checkpoint_folder.hub import hub_id, local_folder
from xattn_export.families.table import family_of
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import CheckpointError, OutputError

LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 96, "hidden_size": 64}
SIZES = {
    "text": {**LAYERS, "encoder_hidden_size": 64, "max_position_embeddings": 12},
    "vision": {**LAYERS, "patch_size": 8},
}
NORM = "vision_model.post_layernorm.weight"
WORDS = "text_decoder.bert.embeddings.word_embeddings.weight"

Damage = Callable[[Path], object]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "Tiny BLIP"
    return save_blip(folder, BlipForConditionalGeneration, bert_vocabulary(("[DEC]",)), 24, **SIZES)


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Copies of the stored tensors."""
    return {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}


def put(folder: Path, **changed: Any) -> None:
    """Store the tensors with some of them changed, or taken out where None is given; dots are written `__`."""
    values = tensors(folder) | {name.replace("__", "."): tensor for name, tensor in changed.items()}
    save_file({name: tensor for name, tensor in values.items() if tensor is not None}, folder / "model.safetensors")


def configure(folder: Path, **changed: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    text = changed.pop("text_config", {})
    config["text_config"] |= text
    (folder / "config.json").write_text(json.dumps(config | changed))


def shard(folder: Path, suffix: str = "safetensors") -> list[Path]:
    """Store the weights in two files with an index."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    values, files = tensors(folder), [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    names = sorted(values)
    parts = [names[::2], names[1::2]]
    (folder / "model.safetensors").unlink()
    for file, part in zip(files, parts, strict=True):
        chosen = {name: values[name] for name in part}
        save_file(chosen, folder / file) if suffix == "safetensors" else torch.save(chosen, folder / file)
    index = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return [folder / file for file in files]


def to_pickle(folder: Path, content: object = None, **options: Any) -> None:
    torch.save(tensors(folder) if content is None else content, folder / "pytorch_model.bin", **options)
    (folder / "model.safetensors").unlink()


class Trap:
    """What a hostile pickle holds: it would write a file beside the weights."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "run")


STORED: dict[str, Damage] = {
    "shards": shard,
    "pickled shards": lambda folder: shard(folder, "bin"),
    "a pickle": to_pickle,
    "a pickle of old": lambda folder: to_pickle(folder, _use_new_zipfile_serialization=False),
    "a trainer's pickle": lambda folder: to_pickle(folder, {"state_dict": tensors(folder), "epoch": 3}),
    "names that training wrapped": lambda folder: save_file(
        {f"module._orig_mod.{name}": tensor for name, tensor in tensors(folder).items()}, folder / "model.safetensors"
    ),
    "what export does not need": lambda folder: put(
        folder, text_decoder__bert__embeddings__position_ids=torch.arange(12)[None]
    ),
}


@pytest.mark.parametrize("store", STORED)
def test_weights_may_be_stored_in(copy, saved, store):
    expected, _ = load_model(saved, BlipForConditionalGeneration)
    STORED[store](copy)
    model, files = load_model(copy, BlipForConditionalGeneration)
    assert all(path.is_file() for path in files)
    assert len(files) == (2 if "shards" in store else 1)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_what_is_taken_off_is_said(copy, caplog):
    STORED["names that training wrapped"](copy)
    with caplog.at_level(logging.INFO, "xattn_export"):
        load_model(copy, BlipForConditionalGeneration)
    assert [record.getMessage() for record in caplog.records] == [
        f"{copy}: the weights are of a model that training wrapped: module._orig_mod. is taken off their names"
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(copy, dtype):
    save_file({name: tensor.to(dtype) for name, tensor in tensors(copy).items()}, copy / "model.safetensors")
    model, _ = load_model(copy, BlipForConditionalGeneration)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.state_dict()[NORM], tensors(copy)[NORM].float())


def test_weights_are_mapped_and_tied(saved):
    """The model costs no memory that its file does not, and its head is its embedding."""
    model, _ = load_model(saved, BlipForConditionalGeneration)
    head, words = model.text_decoder.cls.predictions.decoder.weight, model.state_dict()[WORDS]
    assert head.data_ptr() == words.data_ptr()
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def missing_shard(folder: Path) -> None:
    shard(folder)[1].unlink()


def bad_index(folder: Path, text: str) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(text)


def broken_promise(folder: Path) -> None:
    path = shard(folder)[0]
    kept = dict(load_file(path))
    kept.pop(sorted(kept)[0])
    save_file(kept, path)


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def only(folder: Path, *names: str) -> None:
    (folder / "model.safetensors").unlink()
    for name in names:
        (folder / name).write_bytes(b"")


def with_nan(folder: Path, value: float, dtype: torch.dtype = torch.float32) -> None:
    norm = tensors(folder)[NORM].to(dtype)
    norm[3] = value
    put(folder, vision_model__post_layernorm__weight=norm)


# What is done to a folder → what is said of it.
BAD: dict[str, tuple[Damage, str]] = {
    "no weights": (only, r"copy: expected weights \(model.safetensors or pytorch_model.bin, .*\), found none"),
    "TensorFlow": (lambda f: only(f, "tf_model.h5"), "found only tf_model.h5"),
    "an adapter": (
        lambda f: only(f, "adapter_model.safetensors"),
        r"copy: expected a whole model, found an adapter of PEFT \(unknown\); add --base",
    ),
    "a checkpoint of Lightning": (lambda f: only(f, "last.ckpt"), "found only last.ckpt; save the model with"),
    "a training that was interrupted": (
        lambda f: only(f, "optimizer.pt", "trainer_state.json"),
        "found only optimizer.pt; save the model with save_pretrained, or download it again",
    ),
    "an adapter inside": (
        lambda f: put(f, text_decoder__cls__lora_A__default__weight=torch.ones(2, 2)),
        r"found among them text_decoder.cls.lora_A.default.weight, of an adapter that is not merged; call merge_and",
    ),
    "two models": (
        lambda f: save_file(
            {f"{who}.{name}": each.clone() for who in ("student", "teacher") for name, each in tensors(f).items()},
            f / "model.safetensors",
        ),
        "expected the tensor .* more in the weights of a Blip.*, found none, but student.…, teacher.…; weights and",
    ),
    "int8 without a word": (
        lambda f: put(f, vision_model__post_layernorm__weight=torch.ones(64, dtype=torch.int8)),
        f"the tensor {NORM}: expected full-precision weights, found those of int8; export the checkpoint that",
    ),
    "8-bit floats without a word": (
        lambda f: put(f, vision_model__post_layernorm__weight=torch.ones(64).to(torch.float8_e4m3fn)),
        f"the tensor {NORM}: expected full-precision weights, found those of float8_e4m3fn; export the checkpoint that",
    ),
    "weights of another name": (
        lambda f: only(f, "model.fp16.safetensors"),
        "found only model.fp16.safetensors; rename it to model.safetensors, if it is this model's, or download it",
    ),
    "GPTQ without a word": (
        lambda f: put(f, text_decoder__x__qweight=torch.ones(2, dtype=torch.int32)),
        "the tensor text_decoder.x.qweight: expected full-precision weights, found those of GPTQ; export the",
    ),
    "AWQ beside config.json": (
        lambda f: (f / "quant_config.json").write_text("{}"),
        "quant_config.json: quant_method: expected full-precision weights, found those of AWQ; export the checkpoint",
    ),
    "a vocabulary that was resized": (
        lambda f: configure(f, text_config={"vocab_size": 77}),
        r"expected the shape \[77(, 64)?\], as config.json says, found \[\d+.*; weights and "
        r"config.json are not of one model, unless text_config.vocab_size is to be \d+",
    ),
    "no shard": (missing_shard, "expected the 2 shards of .*, found no model-00002-of-00002.safetensors; download"),
    "index of nothing": (lambda f: bad_index(f, "[]"), "index.json: expected an index with a weight_map, found"),
    "index out of the folder": (
        lambda f: bad_index(f, '{"weight_map": {"a": "../model.safetensors"}}'),
        "weight_map: expected names of files beside it, found '../model.safetensors'",
    ),
    "a tensor that is not there": (
        broken_promise,
        r"00001-of-00002.safetensors: expected the tensor \S+, as the index",
    ),
    "half a file": (truncated, "model.safetensors: expected safetensors, found: "),
    "NaN": (lambda f: with_nan(f, float("nan")), f"model.safetensors: the tensor {NORM}: expected finite values"),
    "infinity": (lambda f: with_nan(f, float("-inf"), torch.float16), f"the tensor {NORM}: expected finite values"),
    "a pickle of other things": (lambda f: to_pickle(f, {"a": 1}), "pytorch_model.bin: expected tensors by name"),
    "a damaged pickle": (
        lambda f: (only(f), (f / "pytorch_model.bin").write_bytes(b"\x80\x02no")),
        r"pytorch_model.bin: expected .*; ",
    ),
    "another width": (
        lambda f: put(f, vision_model__post_layernorm__weight=torch.ones(17)),
        rf"copy: the tensor {NORM}: expected the shape \[64\], as config.json says, found \[17\]",
    ),
    "a vocabulary that fits no memory": (
        lambda f: configure(f, text_config={"vocab_size": 10**10}),
        rf"the tensor \S+: expected the shape \[{10**10}(, 64)?\], as config.json says, found \[\d+",
    ),
    "more layers": (
        lambda f: configure(f, text_config={"num_hidden_layers": 2}),
        "expected the tensor text_decoder.bert.encoder.layer.1.* and .* more in the weights of a Blip.*, found none",
    ),
    "a tensor too many": (lambda f: put(f, extra=torch.ones(2)), "expected no tensor extra in the weights of a Blip"),
    "a tensor too few": (
        lambda f: put(f, vision_model__post_layernorm__weight=None),
        f"expected the tensor {NORM} in the weights of a BlipForConditionalGeneration, found none",
    ),
    "heads that do not divide the width": (
        lambda f: configure(f, text_config={"num_attention_heads": 3}),
        "config.json: expected the configuration of a Blip.*, found: ValueError: .*not a multiple",
    ),
    "a width in words": (
        lambda f: configure(f, text_config={"hidden_size": "wide"}),
        "config.json: hidden_size: expected int, found 'wide'; copy the file again from where the weights are from",
    ),
    "images of one channel": (
        lambda f: configure(f, vision_config={"num_channels": 1}),
        "config.json: vision_config.num_channels: expected 3, found 1; models of greyscale or other images cannot be",
    ),
    "half a config.json": (
        lambda f: (f / "config.json").write_text('{"model_type": "bl'),
        "config.json: expected readable JSON, found: .*; copy the file again",
    ),
    "half a generation_config.json": (
        lambda f: (f / "generation_config.json").write_text("{"),
        r"generation_config.json: expected settings of generate\(\), found: .*; mend it, copy it again, or remove it",
    ),
    "no preprocessing": (
        lambda f: (f / "processor_config.json").unlink(),
        "expected preprocessor_config.json, or processor_config.json with an image_processor, found neither; save",
    ),
    "no tokenizer": (
        lambda f: [path.unlink() for path in f.glob("tokenizer*")],
        r"copy: expected a tokenizer \(tokenizer.json, .*\), found none; save",
    ),
    "quantized weights": (
        lambda f: configure(f, quantization_config={"quant_method": "bitsandbytes"}),
        "quantization_config: expected full-precision weights, found those of bitsandbytes; export the checkpoint that",
    ),
    "a quantized part": (
        lambda f: configure(
            f, _name_or_path="org/whole", text_config={"quantization_config": {"quant_method": "awq", "bits": 4}}
        ),
        r"text_config.quantization_config: expected full-precision weights, found those of AWQ of 4 bits; export the "
        r"checkpoint that they were made from \(org/whole\), or save them again after dequantize\(\)",
    ),
    "an unknown architecture": (
        lambda f: configure(f, model_type="poet", architectures=["PoetForRhymes"]),
        r"copy/config.json: architectures: expected a class that can be exported, found 'PoetForRhymes'; "
        "docs/families.md lists what can be exported, docs/adding-a-family.md says",
    ),
}


@pytest.mark.parametrize("damage", BAD)
def test_a_bad_folder_is_told_in_one_line(copy, tmp_path, damage):
    change, message = BAD[damage]
    change(copy)
    with pytest.raises(CheckpointError, match=message) as caught:
        export_checkpoint(copy, tmp_path / "out.xattn")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_hostile_pickle_is_not_run(copy, tmp_path):
    trap = tmp_path / "trap"
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Trap(trap)}))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: expected a pickle of nothing but tensors"):
        export_checkpoint(copy, tmp_path / "out.xattn")
    assert not trap.exists()
    # Opened without care, it does what it is there for.
    pickle.loads((copy / "pytorch_model.bin").read_bytes())  # noqa: S301
    assert trap.exists()


def test_code_that_comes_with_a_model_is_not_run(copy, tmp_path):
    trap = tmp_path / "trap"
    (copy / "evil.py").write_text(f"from pathlib import Path\nPath({str(trap)!r}).touch()\nclass Evil: pass\n")
    names = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoTokenizer"), "evil.Evil")
    configure(copy, auto_map=names)
    assert family_of(copy).open(copy).task == "caption"
    assert not trap.exists()


def test_a_mistake_is_one_line_on_the_command_line(copy, tmp_path):
    with_nan(copy, float("nan"))
    result = CliRunner().invoke(app, ["export", str(copy), "-o", str(tmp_path / "out.xattn")])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {copy / 'model.safetensors'}: the tensor {NORM}: expected finite values")
    assert result.stderr.count("\n") == 1


def test_a_full_disk_leaves_nothing(saved, tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"out\.xattn: cannot be written: No space left on device; free some space"):
        export_checkpoint(saved, tmp_path / "out.xattn", inside_bytes=0)
    assert list(tmp_path.iterdir()) == []


def test_what_a_bundle_says_of_its_source(copy, tmp_path):
    (copy / "README.md").write_text("---\nlanguage: en\nlicense: bsd-3-clause\n---\n# A model\n")
    shards = shard(copy)
    export_checkpoint(copy, tmp_path / "out.xattn", inside_bytes=0)
    manifest = open_bundle(tmp_path / "out.xattn").manifest
    assert (manifest.name, manifest.license) == ("copy", "BSD-3-Clause")
    sums = [f"{hf_digest(path)}  {path.name}\n" for path in shards]
    assert manifest.provenance.source_sha256 == hf_digest("".join(sums).encode())
    assert manifest.provenance.versions["transformers"]
    assert set(manifest.files) > {"graphs/decoder.onnx.data", "graphs/image_encoder.onnx.data"}


def hf_digest(what: Path | bytes) -> str:
    import hashlib

    return hashlib.sha256(what if isinstance(what, bytes) else what.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        (None, "NOASSERTION"),
        ("# No head\nlicense: mit\n", "NOASSERTION"),
        ("---\nlicense: mit\n---\n", "MIT"),
        ('---\nlicense: "apache-2.0"\n---\n', "Apache-2.0"),
        ("---\ntags: [a]\nlicense: cc-by-nc-4.0\n---\n", "CC-BY-NC-4.0"),
        ("---\nlicense: other\n---\n", "NOASSERTION"),
        ("---\nlicense: openrail++\n---\n", "LicenseRef-openrail--"),
        ("---\nlicense:\n- mit\n---\n", "NOASSERTION"),
    ],
)
def test_licences(tmp_path, readme, expected):
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    assert license_of(tmp_path) == expected


def test_hub_ids(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id(Path("Salesforce/blip-vqa-base")) == "Salesforce/blip-vqa-base"
    for path in (saved, Path("checkpoints/caption/deep"), Path("one"), Path("../model"), Path("./-x/y")):
        assert hub_id(path) is None
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert local_folder(Path("org/name")) == Path("org/name")


def test_a_hub_id_is_downloaded_without_what_could_be_run(saved, tmp_path, monkeypatch):
    asked = []

    def download(repository: str, *, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(saved)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    export_checkpoint(Path("someone/tiny-blip"), tmp_path / "out.xattn")
    assert [repository for repository, _ in asked] == ["someone/tiny-blip"]
    assert not [pattern for _, patterns in asked for pattern in patterns if "py" in pattern or "bin" in pattern]
    assert open_bundle(tmp_path / "out.xattn").manifest.provenance.source == "someone/tiny-blip"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionError("[Errno -2] Name or\nservice not known"), "ConnectionError: .* Name or service not known"),
        (LocalEntryNotFoundError("Got: ConnectError"), "the hub is out of reach, and the model is not in its cache"),
    ],
)
def test_a_hub_id_without_network(tmp_path, monkeypatch, error, reason):
    def fail(repository: str, **options: object) -> str:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    message = f"^someone/model: expected a local folder, found none, and as a hub id it cannot be had: {reason}; check"
    with pytest.raises(CheckpointError, match=message) as caught:
        export_checkpoint(Path("someone/model"), tmp_path / "out.xattn")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_a_family_does_not_need(copy):
    """They may be missing, or there for nothing."""
    put(copy, text_encoder__pooler__weight=torch.ones(2), vision_model__post_layernorm__bias=None)
    with pytest.raises(CheckpointError, match="post_layernorm"):
        load_model(copy, BlipForConditionalGeneration)
    load_model(copy, BlipForConditionalGeneration, unused=(r"pooler\.", r"post_layernorm\.bias$"))


def test_weights_of_another_class(copy):
    with pytest.raises(CheckpointError, match="expected the tensor itm_head"):
        load_model(copy, BlipForImageTextRetrieval)


def test_ours_are_opened_without_transformers(monkeypatch, tmp_path):
    """A checkpoint of ours asks for nothing that only Transformers' need."""
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    checkpoint = Path(__file__).resolve().parents[4] / "checkpoints" / "shapes-vqa"
    assert family_of(checkpoint).open(checkpoint).task == "vqa"
