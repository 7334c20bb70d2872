"""What the manifest's `tokenizer` says, typed: the file, and how text is put to the model and read from it.

It reads and writes plain JSON values; `text.py` does what it says.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from xattn_runtime._reading import ObjectReader

__all__ = ["TokenizerSpec", "read_tokenizer"]


@dataclass(frozen=True)
class TokenizerSpec:
    """The tokenizer's file, and how it is used.

    unknown_token_id: what stands for a word that the tokenizer does not know; None where it can spell every word.
    max_tokens: the most tokens that a question or prompt may have.
    clean_up_spaces: take the blank before punctuation and contractions off decoded text.
    question_template, prompt_template: what the model is given for a question or a caption's prompt, with
        `{question}` or `{prompt}` in its place.
    pad_to: how long every question is made with `pad_token_id`, which the model then sees as it sees all tokens; None
        where it is left as long as it is.
    """

    file: str
    unknown_token_id: int | None
    max_tokens: int
    clean_up_spaces: bool = False
    question_template: str = "{question}"
    prompt_template: str = "{prompt}"
    pad_to: int | None = None
    pad_token_id: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without those that are neutral; `read_tokenizer` takes them back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        neutral = {"unknown_token_id": None, **{field.name: field.default for field in fields(self)[3:]}}
        return {name: value for name, value in values.items() if name not in neutral or value != neutral[name]}


def read_tokenizer(reader: ObjectReader) -> TokenizerSpec:
    """The manifest's `tokenizer`; BundleError for a key that is missing, unknown or of a wrong value."""
    spec = TokenizerSpec(
        file=reader.path("file"),
        unknown_token_id=reader.integer("unknown_token_id") if "unknown_token_id" in reader else None,
        max_tokens=reader.integer("max_tokens", minimum=1),
        clean_up_spaces=reader.boolean("clean_up_spaces") if "clean_up_spaces" in reader else False,
        question_template=_template(reader, "question_template", "{question}"),
        prompt_template=_template(reader, "prompt_template", "{prompt}"),
        pad_to=reader.integer("pad_to", minimum=1) if "pad_to" in reader else None,
        pad_token_id=reader.integer("pad_token_id") if "pad_token_id" in reader else 0,
    )
    reader.finish()
    if spec.pad_to is not None and spec.pad_to < spec.max_tokens:
        reader.fail("pad_to", f"at least max_tokens, which is {spec.max_tokens}", spec.pad_to)
    return spec


def _template(reader: ObjectReader, key: str, place: str) -> str:
    if key not in reader:
        return place
    template = reader.text(key)
    if template.count(place) != 1:
        reader.fail(key, f"a text with {place} in it once", template)
    return template
