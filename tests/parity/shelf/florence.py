"""Florence-2 on the shelf, in the layout that Transformers itself has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, Florence2ForConditionalGeneration

from tests.parity.florence2 import DECODING, save_florence2
from tests.parity.shelf.published import RESCALED, Found, Origin, Published, put_json
from tests.parity.shelf.truths import Answer, Generates, answer_of, generate

__all__ = ["FLORENCES"]

_TEXT = {
    "d_model": 32, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "decoder_layers": 1,
    "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "encoder_layers": 1, "max_position_embeddings": 160,
}  # fmt: skip
_VISION = {
    "depths": (1, 1), "embed_dim": (16, 32), "max_position_embeddings": 12, "num_groups": (2, 4), "num_heads": (2, 4),
    "patch_padding": (3, 1), "patch_prenorm": (False, True), "patch_size": (7, 3), "patch_stride": (4, 2),
    "projection_dim": 32, "window_size": 4,
}  # fmt: skip
_SIDE_PX = 64


def _put(folder: Path) -> None:
    """Beams, and words that are forced, in generation_config.json; a number of places in processor_config.json."""
    save_florence2(folder, _SIDE_PX, words=300, places=20, text=_TEXT, vision=_VISION)
    (folder / "processor_config.json").unlink()
    side = {"height": _SIDE_PX, "width": _SIDE_PX}
    put_json(
        folder,
        generation_config={**DECODING, "_from_model_config": True, "transformers_version": "4.56.0.dev0"},
        preprocessor_config={
            "crop_size": side, "do_center_crop": False, "do_convert_rgb": None, "do_normalize": True,
            "do_resize": True, "image_mean": [0.485, 0.456, 0.406],
            "image_processor_type": "CLIPImageProcessor", "image_seq_length": 65, "image_std": [0.229, 0.224, 0.225],
            "processor_class": "Florence2Processor", "resample": 3, "size": side, **RESCALED,
        },
        processor_config={
            "image_seq_length": 65, "num_additional_image_tokens": 0,
            "post_processor_config": {"pure_text": {}}, "processor_class": "Florence2Processor",
        },
    )  # fmt: skip


def _truth(folder: Path) -> Generates:
    model = Florence2ForConditionalGeneration.from_pretrained(folder, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")

    def answer(picture: Any, text: str | None, beams: int | None) -> Answer:
        ids = generate(model, beams, **processor(images=picture, text=text, return_tensors="pt"))
        new = answer_of(processor, ids, 1, [DECODING["eos_token_id"]]).token_ids
        kept = processor.decode(list(new), skip_special_tokens=False)  # places are words of their own
        return Answer(new, re.sub("<s>|</s>|<pad>|<unk>|<mask>", "", kept).strip())

    return Generates(answer, prompts=("<CAPTION>", "<OCR>", "what color is the circle?"), beams=(None, 1))


FLORENCES = (
    Published(
        "florence-community/Florence-2-base",
        "4.56",
        _put,
        _truth,
        found=Found(Origin.AGAIN, Origin.USUAL, Origin.AGAIN, Origin.USUAL),
        places="muhammadwaqas476074/Florence2-Changes, in the layout of the model's authors",
        task="caption",
    ),
)
