"""What Florence2Processor of Transformers does with text, as data: prompts by name, and the tokenizer of a folder.

It knows text alone, and no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from tokenizers import Tokenizer

from xattn_export.families.base import SourceTokenizer
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import show

__all__ = ["PROMPTS", "tokenizer_with_prompts"]

_CAPTION = "<CAPTION>"
PROMPTS: Mapping[str, str] = MappingProxyType(
    {
        _CAPTION: "What does the image describe?",
        "<DETAILED_CAPTION>": "Describe in detail what is shown in the image.",
        "<MORE_DETAILED_CAPTION>": "Describe with a paragraph what is shown in the image.",
        "<OCR>": "What is the text in the image?",
        "<OCR_WITH_REGION>": "What is the text in the image, with regions?",
        "<OD>": "Locate the objects with category name in the image.",
        "<DENSE_REGION_CAPTION>": "Locate the objects in the image, with their descriptions.",
        "<REGION_PROPOSAL>": "Locate the region proposals in the image.",
        "<CAPTION_TO_PHRASE_GROUNDING>": "Locate the phrases in the caption: {input}",
        "<REFERRING_EXPRESSION_SEGMENTATION>": "Locate {input} in the image with mask",
        "<REGION_TO_SEGMENTATION>": "What is the polygon mask of region {input}",
        "<OPEN_VOCABULARY_DETECTION>": "Locate {input} in the image.",
        "<REGION_TO_CATEGORY>": "What is the region {input}?",
        "<REGION_TO_DESCRIPTION>": "What does the region {input} describe?",
        "<REGION_TO_OCR>": "What text is in the region {input}?",
    }
)
"""What the model is given for each of these words; `{input}` is what else the text says."""

# Tokens that are not part of any text. All other added tokens, places in the image above all, are part of an answer.
_WITHOUT_TEXT: Mapping[str, str] = MappingProxyType(
    {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
        "image_token": "<image>",
    }
)


def tokenizer_with_prompts(folder: Path, tokenizer: SourceTokenizer) -> SourceTokenizer:
    """The tokenizer in `folder` with what the processor writes around every text and in the place of its prompts.

    It puts nothing around a text by itself, and keeps places in the image when it decodes.

    Raises:
        CheckpointError: it does not write one token before a text and one after it, as the processor needs.
    """
    around = Tokenizer.from_str(tokenizer.json).encode("").tokens
    if len(around) != 2:
        raise CheckpointError(
            f"{folder}: expected a tokenizer that writes a token before a text and one after it, found {show(around)}"
        )
    content = json.loads(tokenizer.json)
    content["post_processor"] = None
    words = {place: tokenizer.special.get(place, word) for place, word in _WITHOUT_TEXT.items()}
    words |= dict(zip(("bos_token", "eos_token"), around, strict=True))
    silent = set(words.values())
    for token in content["added_tokens"]:
        token["special"] = token["content"] in silent
    spec = replace(
        tokenizer.spec,
        prompts=PROMPTS,
        question_template=_text_around(words, "{question}"),
        prompt_template=_text_around(words, "{prompt}"),
        caption_template=_text_around(words, PROMPTS[_CAPTION]),
    )
    # What the original leaves out of a text includes places, so its texts are not those that are wanted.
    return replace(tokenizer, json=json.dumps(content, ensure_ascii=False), spec=spec, decode=None)


def _text_around(words: Mapping[str, str], text: str) -> str:
    """`text` with the tokens that the processor writes before and after every one."""
    return f"{words['bos_token']}{text}{words['eos_token']}"
