"""What is written for a picture and a question: read from the folders of SmolVLM and Idefics3, or refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.parity.smolvlm import CHAT_TEMPLATE, save_idefics3
from xattn_export import export_checkpoint
from xattn_export.families.checkpoint_folder.chat_prompt import question_template_of
from xattn_export.families.transformers.idefics3_prompt import processor_text
from xattn_runtime.errors import CheckpointError
from xattn_runtime.preprocess.prompts.chat import Turn
from xattn_runtime.preprocess.steps import Tile

SIZES: dict[str, Any] = {
    "scale_factor": 2,
    "longest_px": 96,
    "tile_px": 32,
    "vision": {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
    "text": {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 400,
        "max_position_embeddings": 512,
    },
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """The folder of a SmolVLM, or of an Idefics3."""
    folders: dict[bool, Path] = {}
    place = tmp_path_factory.mktemp("prompts")

    def get(smolvlm: bool) -> Path:
        if smolvlm not in folders:
            folders[smolvlm] = save_idefics3(place / str(smolvlm), smolvlm=smolvlm, **SIZES)
        return folders[smolvlm]

    return get


@pytest.fixture(params=[True, False], ids=["SmolVLM", "Idefics3"])
def folder(made, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made(request.param), tmp_path / "model"))


def change(path: Path, **values: Any) -> None:
    """Set keys of a JSON file, at any depth: `text_config__model_type`."""
    content = json.loads(path.read_text())
    for place, value in values.items():
        *parts, key = place.split("__")
        within = content
        for part in parts:
            within = within[part]
        within[key] = value
    path.write_text(json.dumps(content))


def test_the_marks_that_a_tokenizer_names_are_those_of_smolvlm_alone(folder):
    change(folder / "tokenizer_config.json", extra_special_tokens={"global_image_token": "<row_6_col_6>"})
    whole = processor_text(folder, 4, (Tile(32, "lanczos"),), 64).layout.whole
    expected = "<row_6_col_6>" if "smolvlm" in (folder / "config.json").read_text() else "<global-img>"
    assert whole == f"<fake_token_around_image>{expected}{{tokens}}<fake_token_around_image>"


@pytest.mark.parametrize(
    ("file", "template"),
    [
        ("chat_template.json", CHAT_TEMPLATE),
        ("tokenizer_config.json", CHAT_TEMPLATE),
        (
            "tokenizer_config.json",
            [{"name": "rag", "template": "no"}, {"name": "default", "template": CHAT_TEMPLATE}],
        ),
    ],
    ids=["a file of its own", "the tokenizer's", "one of the tokenizer's"],
)
def test_files_as_older_versions_wrote_them(folder, file, template):
    new = processor_text(folder, 4, (Tile(32, "lanczos"),), 64)
    settings = json.loads((folder / "processor_config.json").read_text())
    pictures = settings.pop("image_processor") | {"processor_class": settings.pop("processor_class")}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    (folder / "processor_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").unlink()
    path = folder / file
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | {"chat_template": template}))
    old = processor_text(folder, 4, (Tile(32, "lanczos"),), 64)
    assert (old.template, old.layout) == (new.template, new.layout)
    turns = [Turn("user", "what?")]
    assert old.ids(turns, [(2, 3)]) == new.ids(turns, [(2, 3)])


def _lower(text: str) -> str:
    return text.replace("{{line['text']}}", "{{line['text'] | lower}}")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "chat_template.jinja").unlink(), "expected chat_template.jinja, .* found None"),
        (
            lambda folder: (folder / "chat_template.jinja").write_text(_lower(CHAT_TEMPLATE)),
            "expected one that puts a question in its place, found one that makes '.*what color is",
        ),
        (
            lambda folder: (folder / "chat_template.jinja").write_text("{{ messages[0]['content'][1]['text'] }}"),
            "expected one that writes <image> and the question once, found 'question-in-its-place'",
        ),
        (
            lambda folder: (folder / "chat_template.jinja").write_text("{{ raise_exception('no pictures') }}"),
            "expected a text for one image and one question, found: TemplateError: no pictures",
        ),
        (
            lambda folder: change(folder / "processor_config.json", image_seq_len=64),
            "image_seq_len: expected 4, the image tokens that the model makes of a tile, found 64",
        ),
        (
            lambda folder: change(
                folder / "processor_config.json", image_processor__max_image_size={"longest_edge": 24}
            ),
            "scale_factor: expected a divisor of the 3 patches across an image, found 2",
        ),
        (
            lambda folder: change(folder / "config.json", image_token_id=7),
            "expected tokens below 400 with 7 for an image token, as config.json says, found tokens up to",
        ),
        (
            lambda folder: change(folder / "config.json", text_config__model_type="mistral"),
            "text_config.model_type: expected llama, found 'mistral'",
        ),
        (
            lambda folder: change(
                folder / "config.json",
                text_config__rope_parameters={"rope_type": "proportional", "factor": 2.0, "rope_theta": 10000.0},
            ),
            "rope_type: expected one of default, linear, dynamic, yarn, longrope, llama3, found 'proportional'",
        ),
        (
            lambda folder: change(folder / "generation_config.json", do_sample=True),
            "do_sample: expected false, .* found True",
        ),
    ],
)
def test_what_cannot_be_carried_over_is_refused(made, tmp_path, break_it, message):
    folder = Path(shutil.copytree(made(True), tmp_path / "model"))
    break_it(folder)
    with pytest.raises(CheckpointError, match=message):
        export_checkpoint(folder, tmp_path / "out.xattn")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_tokenizer_that_begins_every_text_is_refused(made, tmp_path):
    """The runtime adds nothing to a prompt: what a tokenizer adds by itself would be missing."""
    folder = Path(shutil.copytree(made(False), tmp_path / "model"))
    begins = {
        "type": "TemplateProcessing",
        "special_tokens": {"<|im_end|>": {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]}},
    }
    begin, text = {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    change(folder / "tokenizer.json", post_processor=begins | {"single": [begin, text], "pair": [begin, text]})
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE.removeprefix("<|im_start|>"))
    with pytest.raises(CheckpointError, match="expected a processor whose prompts are texts beside each other"):
        export_checkpoint(folder, tmp_path / "out.xattn")


def test_a_template_may_put_the_picture_after_the_question():
    def render(messages: Any, **settings: Any) -> str:
        assert settings == {"chat_template": "any", "tokenize": False, "add_generation_prompt": True}
        return f"Q: {messages[0]['content'][1]['text']} <pic> A:"

    assert question_template_of(Path("folder"), "any", render, "<pic>") == "Q: {question} {image} A:"
