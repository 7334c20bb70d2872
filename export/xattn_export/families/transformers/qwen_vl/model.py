"""Qwen2-VL: visual question answering, and captioning, of images of any size and shape.

An image is resized to about its own size and cut into patches; a tower merges squares of them to image tokens, as many
as the image has, which stand in the text. Positions follow the image's rows and columns (M-RoPE).
https://arxiv.org/abs/2409.12191
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from xattn_export.families.base import Family, Generated, Generates, Source
from xattn_export.families.checkpoint_folder.classes import class_of, transformers_family
from xattn_export.families.checkpoint_folder.decoding import decoding_of, settings_without_sampling
from xattn_export.families.checkpoint_folder.folder import generation_file, license_of, load_model, name_of
from xattn_export.families.checkpoint_folder.images import image_steps_of
from xattn_export.families.checkpoint_folder.json_files import read_json
from xattn_export.families.checkpoint_folder.reference import generated
from xattn_export.families.checkpoint_folder.tokenizer import source_tokenizer
from xattn_export.families.drawings import row_images
from xattn_export.families.layers.language.table import check_language_model
from xattn_export.families.transformers.qwen_vl.prompt import tokenizer_with_patches
from xattn_export.families.transformers.qwen_vl.roles import decoder_of, image_encoder_of, image_outputs
from xattn_runtime.bundle.manifest import TaskName
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import show
from xattn_runtime.preprocess.steps import Patches

__all__ = ["QWEN_VL"]

_CLASSES = {
    "Qwen2VLForConditionalGeneration": "qwen2_vl",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
}
# Beside the image a question has at least a token of its own.
_FEWEST_IMAGE_TOKENS = 1


def _open(task: TaskName, folder: Path) -> Source:
    import transformers

    config = read_json(folder / "config.json")
    model_class = getattr(transformers, cast(str, class_of(config, _CLASSES)))
    model: Any
    model, weights = load_model(folder, model_class, unused=(r"\.rotary_(pos_)?emb\.inv_freq$",))
    check_language_model(folder / "config.json", model.config.text_config, only=(f"{model.config.model_type}_text",))
    steps = image_steps_of(folder)
    patches = _patches(folder, steps[-1], model.config.vision_config)
    text = model.config.text_config
    positions = text.max_position_embeddings
    tokenizer = tokenizer_with_patches(
        folder, source_tokenizer(folder, positions - _FEWEST_IMAGE_TOKENS - 1), patches.merge, model.config
    )
    settings = generation_file(folder)
    decoding = decoding_of(
        settings,
        settings_without_sampling(settings, model),
        vocabulary=text.vocab_size,
        max_positions=positions,
        prompt_token_ids=(),
    )

    def generate(pixels: Tensor, prompt_ids: tuple[int, ...]) -> Generated:
        prompt = torch.tensor([prompt_ids])
        grid = torch.tensor([[1, pixels.shape[1] * patches.merge, pixels.shape[2] * patches.merge]])
        features = model.get_image_features(pixels.reshape(-1, pixels.shape[-1]), grid)

        def inputs(ids: Tensor) -> dict[str, Any]:
            # An object of its own for each call: beam search repeats the rows of what it is given in place.
            kinds = (ids == model.config.image_token_id).int()
            image = image_outputs([features.pooler_output[0]], getattr(features, "deepstack_features", None))
            return {"mm_encoder_outputs": {"image": image}, "image_grid_thw": grid, "mm_token_type_ids": kinds}

        def forced_logits(token_ids: tuple[int, ...]) -> Tensor:
            ids = torch.cat((prompt, torch.tensor([token_ids], dtype=torch.int64)), 1)
            count = len(token_ids) + 1
            return cast(Tensor, model(ids, use_cache=False, logits_to_keep=count, **inputs(ids)).logits[0])

        def generate(**settings: Any) -> Any:
            return model.generate(prompt, attention_mask=torch.ones_like(prompt), **inputs(prompt), **settings)

        return generated(generate, forced_logits, prompt_length=prompt.shape[1], end_token_ids=decoding.end_token_ids)

    return Source(
        name=name_of(folder),
        task=task,
        license=license_of(folder),
        weights=weights,
        roles=(image_encoder_of(model, patches.width), decoder_of(model)),
        tokenizer=tokenizer,
        reference=Generates(steps, decoding, generate),
        golden_inputs=row_images(task),
    )


def _patches(folder: Path, step: object, vision: Any) -> Patches:
    """The step that cuts patches; CheckpointError unless they are those that the model takes."""
    expected = {
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    found = (
        {"patch_size": step.side_px, "merge_size": step.merge, "temporal_patch_size": step.frames}
        if isinstance(step, Patches)
        else {}
    )
    for key, value in expected.items():
        if found.get(key) != value:
            raise CheckpointError(
                f"{folder}: preprocessor_config.json: {key}: expected {show(value)}, as config.json says of the model, "
                f"found {show(found.get(key))}; the two must agree"
            )
    return cast(Patches, step)


QWEN_VL: tuple[Family, ...] = (
    transformers_family("Qwen2-VL", partial(_open, "vqa"), _CLASSES, also={"caption": partial(_open, "caption")}),
)
