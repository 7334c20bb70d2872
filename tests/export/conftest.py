"""Small models with random but sane weights, as checkpoints and as bundles that were really exported."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import ModelProto
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from xattn_edge.attention import MechanismConfig, transformer_options
from xattn_edge.encoders import ImageEncoderConfig, TextEncoderConfig
from xattn_edge.models import CaptionConfig, CaptionModel, Checkpoint, VqaConfig, build_model, save_checkpoint
from xattn_export import export_checkpoint, exporter
from xattn_export.families.base import Role, Source
from xattn_export.families.table import family_of
from xattn_export.to_onnx import export_role
from xattn_runtime.bundle.manifest import Attention

SPECIAL = ("[PAD]", "[UNK]", "[START]", "[END]")
QUESTION_WORDS = ("what", "color", "is", "the", "shape", "?", "in", "image", "there", "a", "red", "circle")
ANSWERS = ("circle", "green", "red", "yes", "no")
IMAGE: dict[str, Any] = {"image_size_px": 32, "channels": (16, 32, 64), "blocks": (1, 1), "heads": 4}
PLAIN: dict[str, Any] = {
    "mechanism": MechanismConfig(name="text_to_image", options=transformer_options(4)),
    "fusion": None,
    "layers": 2,
    "width": 64,
    "dropout": 0.1,
}
"""What the default models have."""
CAPTION_WORDS = 300
SENTENCE = (2, 5, 9, 7, 20, 3)  # start, four words, end


def tokenizer(words: tuple[str, ...]) -> Tokenizer:
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *words))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[1]))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(list(SPECIAL))
    return made


def preprocessing(side: int) -> tuple[dict[str, object], ...]:
    return (
        {"op": "flatten", "background": [255, 255, 255]},
        {"op": "pad_to_square", "background": [255, 255, 255]},
        {"op": "resize", "height_px": side, "width_px": side, "filter": "bicubic"},
        {"op": "rescale", "factor": 1 / 255},
        {"op": "normalize", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    )


def randomize(model: torch.nn.Module) -> None:
    """Weights under which every layer passes on values of about the size it gets; batch statistics that matter."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.1, generator=generator)
            elif tensor.dim() > 1:
                tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)


def say(model: CaptionModel, sentence: tuple[int, ...]) -> None:
    """Make the model surest of the words of `sentence`, so that rounding does not change what it says."""
    with torch.no_grad():
        for name, tensor in model.layers.named_parameters():
            if name.endswith(("out_linear.weight", "after.0.1.3.weight")):
                tensor.mul_(0.2)
        model.embedding.weight.mul_(8)
        model.position.mul_(0.1)
        for word, following in pairwise(sentence):
            model.head.weight[following] = model.embedding.weight[word] * 0.5  # type: ignore[operator]


def write_checkpoint(path: Path, kind: str) -> Path:
    """`kind` is `caption`, `lstm` or `transformer`: the latter two answer questions with that text encoder."""
    config: CaptionConfig | VqaConfig
    if kind == "caption":
        made = tokenizer(tuple(f"word{i}" for i in range(CAPTION_WORDS)))
        special: Any = {"pad_token_id": 0, "start_token_id": 2, "end_token_id": 3}
        config = CaptionConfig(
            **PLAIN,
            **special,
            image=ImageEncoderConfig(name="cnn", **IMAGE, layers=1),
            vocabulary=made.get_vocab_size(),
            max_tokens=12,
        )
    else:
        made = tokenizer(QUESTION_WORDS)
        config = VqaConfig(
            **PLAIN,
            image=ImageEncoderConfig(name="cnn", **IMAGE, layers=int(kind == "transformer")),
            text=TextEncoderConfig(
                name=kind,
                vocabulary=made.get_vocab_size(),
                max_tokens=10,
                layers=int(kind == "transformer"),
                heads=4,
            ),
            image_norm=False,
            answers=ANSWERS,
        )
    torch.manual_seed(4)  # for what `randomize` leaves as it is
    model = build_model(config).eval()
    randomize(model)
    if isinstance(model, CaptionModel):
        say(model, SENTENCE)
    task = "caption" if isinstance(model, CaptionModel) else "vqa"
    steps = preprocessing(IMAGE["image_size_px"])
    save_checkpoint(Checkpoint(path, task, f"tiny-{kind}", "Apache-2.0", config, model, made.to_str(), steps, {}))
    return path


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`caption`, `lstm` and `transformer`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: write_checkpoint(folder / f"tiny-{kind}", kind) for kind in ("caption", "lstm", "transformer")}


@pytest.fixture(scope="session")
def sources(checkpoints: dict[str, Path]) -> dict[str, Source]:
    return {kind: family_of(path).open(path) for kind, path in checkpoints.items()}


@pytest.fixture(scope="session")
def role(sources: dict[str, Source]) -> Callable[[str, str], Role]:
    """A role of one of the models."""
    return lambda kind, name: next(role for role in sources[kind].roles if role.name == name)


@pytest.fixture(scope="session")
def graph(role: Callable[[str, str], Role]) -> Callable[[str, str, str, int], ModelProto]:
    """A role of one of the models as ONNX, exported once; a copy that a test may damage."""
    made: dict[tuple[str, str, str, int], bytes] = {}

    def get(*key: Any) -> ModelProto:
        if key not in made:
            kind, name, attention, opset = key
            made[key] = export_role(role(kind, name), attention, opset).SerializeToString()
        return ModelProto.FromString(made[key])

    return get


@pytest.fixture
def export_lstm_once(graph: Callable[..., ModelProto], monkeypatch: pytest.MonkeyPatch) -> None:
    """`export_checkpoint` takes the graphs of the model `lstm` from before: for tests of what comes after."""
    monkeypatch.setattr(exporter, "export_role", lambda role, *form: graph("lstm", role.name, *form[:2]))


@pytest.fixture(scope="session")
def exported(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles: `caption` standard, `lstm` decomposed."""
    folder = tmp_path_factory.mktemp("exported")
    forms: tuple[tuple[str, Attention], ...] = (("caption", "standard"), ("lstm", "decomposed"))
    for kind, attention in forms:
        export_checkpoint(checkpoints[kind], folder / f"{kind}.xattn", attention=attention, command="pytest")
    return {kind: folder / f"{kind}.xattn" for kind in ("caption", "lstm")}
