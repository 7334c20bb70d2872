"""From an architecture's row and a folder to a source: the same for every vision-language model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from xattn_export.families.base import Family, Generates, Source, SourceTokenizer
from xattn_export.families.checkpoint_folder.classes import class_of, transformers_family
from xattn_export.families.checkpoint_folder.decoding import decoding_of, settings_without_sampling
from xattn_export.families.checkpoint_folder.folder import generation_file, license_of, load_model, name_of
from xattn_export.families.checkpoint_folder.images import image_steps_of
from xattn_export.families.checkpoint_folder.json_files import read_json
from xattn_export.families.checkpoint_folder.tokenizer import source_tokenizer
from xattn_export.families.drawings import row_images
from xattn_export.families.layers.connectors.table import CONNECTORS
from xattn_export.families.layers.language.table import check_language_model
from xattn_export.families.layers.towers.table import check_tower, patches_across
from xattn_export.families.transformers.vision_language.architecture import Architecture, Opened
from xattn_export.families.transformers.vision_language.roles import decoder_of, generate_of, image_encoder_of
from xattn_runtime.bundle.manifest import TaskName
from xattn_runtime.preprocess.pipeline import Pipeline

__all__ = ["family_of_architecture"]

# Tables that are computed, and that older versions of Transformers stored.
_UNUSED = (r"\.position_ids$", r"\.rotary_emb\.inv_freq$")


def family_of_architecture(architecture: Architecture) -> Family:
    """What answers questions about an image, and captions it."""
    return transformers_family(
        architecture.name,
        partial(_open, architecture, "vqa"),
        architecture.classes,
        also={"caption": partial(_open, architecture, "caption")},
    )


def _open(architecture: Architecture, task: TaskName, folder: Path) -> Source:
    model, weights = _load(architecture, folder)
    opened = _with_images(folder, model)
    text = model.config.text_config
    positions = text.max_position_embeddings
    written = architecture.written(opened, source_tokenizer(folder, positions - opened.tokens - 1))
    settings = generation_file(folder)
    decoding = decoding_of(
        settings,
        settings_without_sampling(settings, model) if architecture.draws else model.generation_config.to_dict(),
        vocabulary=text.vocab_size,
        max_positions=positions,
        prompt_token_ids=(),
    )
    return Source(
        name=name_of(folder),
        task=task,
        license=license_of(folder),
        weights=weights,
        roles=(image_encoder_of(architecture, opened), decoder_of(architecture, opened)),
        tokenizer=_read_at_once(written.tokenizer) if architecture.mask == "prompt" else written.tokenizer,
        reference=Generates(opened.steps, decoding, generate_of(architecture, opened, decoding), written.video_steps),
        golden_inputs=row_images(task),
    )


def _read_at_once(tokenizer: SourceTokenizer) -> SourceTokenizer:
    """The tokenizer of a model whose prompt must be read in one run."""
    layout = tokenizer.spec.image_layout
    whole = None if layout is None else replace(layout, whole_prompt=True)
    return replace(tokenizer, spec=replace(tokenizer.spec, image_layout=whole))


def _load(architecture: Architecture, folder: Path) -> tuple[Any, tuple[Path, ...]]:
    """The model and the files of its weights, with a language model that the architecture is proved with."""
    import transformers

    path = folder / "config.json"
    model_class = getattr(transformers, cast(str, class_of(read_json(path), architecture.classes)))
    model, weights = load_model(folder, model_class, unused=_UNUSED)
    text = cast(Any, model.config).text_config
    check_language_model(path, text, only=architecture.language_models, blocks=architecture.mask == "prompt")
    return model, weights


def _with_images(folder: Path, model: Any) -> Opened:
    """With the preprocessing of images, which must fit the tower, and the number of tokens that they become."""
    path, config = folder / "config.json", model.config
    steps = image_steps_of(folder)
    pipeline = Pipeline(steps)
    check_tower(path, config.vision_config, pipeline.size_px)
    patches = patches_across(config.vision_config, pipeline.size_px[0])
    tokens = CONNECTORS[config.model_type].tokens(path, config, patches)
    return Opened(folder, model, steps, pipeline, tokens)
