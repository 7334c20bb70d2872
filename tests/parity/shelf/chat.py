"""SmolVLM on the shelf, which answers questions that are put as a chat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.parity.shelf.captioners import HALF
from tests.parity.shelf.published import RESCALED, Found, Origin, Published, put_json
from tests.parity.shelf.truths import Answer, Generates, answer_of, generate
from tests.parity.smolvlm import CHAT_TEMPLATE, inputs_of, model_of, processor_of, save_idefics3

__all__ = ["CHATS"]

_WORDS = 420
_VISION = {
    "hidden_size": 32, "image_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
    "patch_size": 8,
}  # fmt: skip
_TEXT = {
    "head_dim": 16, "hidden_size": 48, "intermediate_size": 64, "max_position_embeddings": 512,
    "num_attention_heads": 3, "num_hidden_layers": 2, "num_key_value_heads": 1, "vocab_size": _WORDS,
}  # fmt: skip
_WRITTEN_TEXT = {
    **_TEXT, "architectures": ["VLlama3ForCausalLM"], "is_llama_config": True, "model_type": "llama",
    "neftune_noise_alpha": 0.0, "pad_token_id": 2, "pixel_shuffle_factor": 2, "qk_layer_norms": False,
    "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_theta": 100000, "torch_dtype": "bfloat16",
    "use_resampler": False,
}  # fmt: skip
_PIXELS = {
    "do_convert_rgb": True, "do_image_splitting": True, "do_normalize": True, "do_pad": True,
    "do_resize": True, **HALF, **RESCALED, "max_image_size": {"longest_edge": 32}, "resample": 1,
    "size": {"longest_edge": 96},
}  # fmt: skip
_END, _AROUND, _IMAGE = "<end_of_utterance>", "<fake_token_around_image>", "<image>"


def _put(folder: Path, *, smolvlm: bool) -> None:
    """The authors' files: an id for padding that no word has, and settings that only their own trainer knows."""
    save_idefics3(folder, smolvlm=smolvlm, scale_factor=2, longest_px=96, tile_px=32, vision=_VISION, text=_TEXT)
    for name in ("chat_template.jinja", "special_tokens_map.json", "preprocessor_config.json"):
        (folder / name).unlink(missing_ok=True)
    ids = json.loads((folder / "config.json").read_text())
    kind = "SmolVLM" if smolvlm else "Idefics3"
    words = {"image": _IMAGE, "fake_image": _AROUND, "global_image": "<global-img>", "end_of_utterance": _END}
    own = {f"{name}_token": word for name, word in words.items()} if smolvlm else {}
    put_json(
        folder,
        config={
            "architectures": [f"{kind}ForConditionalGeneration"], "image_token_id": ids["image_token_id"],
            "model_type": kind.lower(), "pad_token_id": 128002, "scale_factor": 2, "text_config": _WRITTEN_TEXT,
            "tie_word_embeddings": False, "torch_dtype": "float32", "transformers_version": "4.47.1",
            "use_cache": False, "use_reentrant_checkpointing": False,
            "vision_config": {
                **_VISION, "max_image_size": {"longest_edge": 32},
                "model_type": "smolvlm_vision" if smolvlm else "idefics3_vision", "size": {"longest_edge": 96},
                "tie_word_embeddings": False, "use_base_siglip": False,
            },
            "vocab_size": _WORDS,
        },
        generation_config={
            "_from_model_config": True, "bos_token_id": 0, "eos_token_id": ids["eos_token_id"], "pad_token_id": 2,
            "transformers_version": "4.47.1",
        },
        preprocessor_config={
            **_PIXELS, "image_processor_type": f"{kind}ImageProcessor", "processor_class": f"{kind}Processor",
            **({"video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 32}}} if smolvlm else {}),
        },
        processor_config={"image_seq_len": 4, "processor_class": f"{kind}Processor"},
        chat_template={"chat_template": CHAT_TEMPLATE},
        special_tokens_map={
            "additional_special_tokens": [_AROUND, _IMAGE, _END], "bos_token": "<|im_start|>", "eos_token": _END,
            "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>",
        },
        tokenizer_config={
            "add_prefix_space": False, "additional_special_tokens": [_AROUND, _IMAGE, _END],
            "bos_token": "<|im_start|>", "chat_template": CHAT_TEMPLATE, "clean_up_tokenization_spaces": False,
            "eos_token": _END, "extra_special_tokens": own,
            "model_max_length": 8192, "pad_token": "<|im_end|>", "processor_class": f"{kind}Processor",
            "tokenizer_class": "PreTrainedTokenizerFast" if smolvlm else "GPT2Tokenizer", "truncation_side": "left",
            "unk_token": "<|endoftext|>", "vocab_size": 49152, **own,
        },
    )  # fmt: skip


def _truth(folder: Path) -> Generates:
    model, processor = model_of(folder), processor_of(folder)
    ends = [model.generation_config.eos_token_id]

    def answer(picture: Any, text: str | None, beams: int | None) -> Answer:
        inputs = inputs_of(processor, picture, text or "")
        return answer_of(processor.tokenizer, generate(model, beams, **inputs), inputs.input_ids.shape[1], ends)

    return Generates(answer, asks=True)


CHATS = (
    Published(
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "4.47",
        lambda folder: _put(folder, smolvlm=True),
        _truth,
        found=Found(Origin.OWN, Origin.USUAL, Origin.OWN, Origin.OWN),
        places="a test of a public port of SmolVLA, which quotes the files",
        task="vqa",
    ),
    Published(
        "HuggingFaceTB/SmolVLM-256M-Instruct",
        "4.47",
        lambda folder: _put(folder, smolvlm=False),
        _truth,
        found=Found(Origin.TWIN, Origin.TWIN, Origin.OWN, Origin.TWIN),
        places="JohnSnowLabs/spark-nlp; the test of SmolVLM2",
        task="vqa",
    ),
)
