"""Tokenizes questions inside a graph, where the vocabulary of the tokenizer is whole words.

Lower case by `StringNormalizer`, words by `StringSplit` (opset 20), their numbers by comparison with the vocabulary.
Marks of punctuation that the tokenizer takes off a word are set apart one by one; it takes a run of them as one token,
which no vocabulary of ours has. A word that is not known becomes the unknown token.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from xattn_export.graph.editing import GraphWriter
from xattn_export.whole.texts import write_joined
from xattn_runtime.bundle.manifest import TokenizerSpec
from xattn_runtime.errors import QuestionError
from xattn_runtime.preprocess.text import TextCodec

__all__ = ["QuestionWords", "question_words", "write_question"]

# Set apart even where the vocabulary has no token for them, since people type them.
_USUAL_MARKS = ".,!?"
_SEED = 12
_QUESTIONS = 1000
_LONGEST = 8


@dataclass(frozen=True)
class QuestionWords:
    """How questions are read: word → token id, every way of writing it included.

    marks: characters that are separated from words. most: the largest number of tokens of a question.
    """

    ids: dict[str, int]
    unknown_id: int
    lower: bool
    marks: tuple[str, ...]
    most: int

    def read(self, question: str) -> tuple[int, ...]:
        """The token ids that the graph computes for `question`."""
        for mark in self.marks:
            question = question.replace(mark, f" {mark} ")
        words = (question.lower() if self.lower else question).split()
        return tuple(self.ids.get(word, self.unknown_id) for word in words[: self.most])


def question_words(codec: TextCodec, tokenizer_json: str, spec: TokenizerSpec) -> QuestionWords | str:
    """How the questions of a bundle are read; or why they cannot be."""
    parts = json.loads(tokenizer_json)
    model, unknown = parts["model"], spec.unknown_token_id
    if model.get("type") != "WordLevel" or unknown is None:
        return "the tokenizer reads parts of words, which the string operators of ONNX cannot find"
    if parts.get("post_processor") or spec.question_template != "{question}" or spec.prompts or spec.pad_to:
        return "the model reads more in a question than its words"
    normalizers, splitter = _normalizers(parts.get("normalizer")), (parts.get("pre_tokenizer") or {}).get("type")
    if splitter not in ("Whitespace", "WhitespaceSplit") or any(kind not in _KNOWN for kind, _ in normalizers):
        return "the tokenizer changes questions in a way that the string operators of ONNX cannot"
    special = {token["content"] for token in parts.get("added_tokens", ())}
    ids = {word: number for word, number in model["vocab"].items() if word not in special}
    ids |= {other: number for word, number in ids.items() for other in _ways_of_writing(word, normalizers)}
    marks = {word for word in ids if len(word) == 1 and _is_mark(word)} | set(_USUAL_MARKS)
    lower = any(kind == "Lowercase" for kind, _ in normalizers)
    words = QuestionWords(
        ids, unknown, lower, tuple(sorted(marks)) if splitter == "Whitespace" else (), spec.max_tokens
    )
    return _difference(codec, words) or words


_KNOWN = ("Lowercase", "Replace")


def _normalizers(part: dict[str, Any] | None) -> list[tuple[str, dict[str, Any]]]:
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [each for one in part["normalizers"] for each in _normalizers(one)]
    return [(str(part["type"]), part)]


def _ways_of_writing(word: str, normalizers: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    """What else becomes `word` when strings are replaced."""
    for kind, part in normalizers:
        pattern = part.get("pattern", {}).get("String") if kind == "Replace" else None
        if pattern and part["content"] and part["content"] in word:
            yield word.replace(part["content"], pattern)


def _is_mark(character: str) -> bool:
    return not (character.isalnum() or character == "_" or character.isspace())


def _difference(codec: TextCodec, words: QuestionWords) -> str | None:
    """A message with a question that the tokenizer reads in another way; None if there is none."""
    chance = random.Random(_SEED)
    known = [*words.ids, "xyzzy"]
    many = (_question(chance, known, words.marks) for _ in range(_QUESTIONS))
    for question in (*known, *many):
        try:
            expected = codec.encode_question(question).ids
        except QuestionError:
            continue  # nothing in it is known
        if words.read(question) != expected:
            return f"the tokenizer reads {question!r} in another way than the string operators of ONNX can"
    return None


def _question(chance: random.Random, known: list[str], marks: tuple[str, ...]) -> str:
    words = [chance.choice(known) for _ in range(chance.randint(1, _LONGEST))]
    words = [
        word.title() if chance.random() < 0.2 and any(map(str.islower, word)) and marks else word for word in words
    ]
    text = (" " * chance.randint(1, 2)).join(words)
    return text + (chance.choice(["", *marks]) if not _is_mark(words[-1]) else "")


def write_question(writer: GraphWriter, questions: str, words: QuestionWords) -> str:
    """Token ids, int64 `[batch, length]`, of `questions`, strings `[batch]`; 0 where a row is shorter."""
    text = questions
    for mark in words.marks:
        text = _set_apart(writer, text, mark)
    if words.lower:
        # Every system has this locale, and a device often no other; it knows the letters of ASCII.
        text = writer.op("StringNormalizer", text, case_change_action="LOWER", is_case_sensitive=1, locale="C")
    split = writer.op("StringSplit", text)
    writer.nodes[-1].output.append(f"{split}.counts")
    tokens = writer.op(
        "Slice",
        split,
        *(writer.constants.integers([place]) for place in (0, words.most, 1)),
    )
    vocabulary = [*words.ids, ""]
    ids = np.array([*words.ids.values(), 0, words.unknown_id], np.int64)
    column = writer.op("Unsqueeze", tokens, writer.constants.integers([2]))
    same = writer.op("Equal", column, writer.constants.tensor(np.array(vocabulary, dtype=object)))
    # One column more, which every word is like: where it is the first to match, the word is not known.
    matches = writer.op("Pad", writer.op("Cast", same, to=TensorProto.FLOAT), writer.constants.integers([0] * 5 + [1]))
    writer.nodes[-1].input.append(writer.constants.number(0.5, TensorProto.FLOAT))
    return writer.op("Gather", writer.constants.tensor(ids), writer.op("ArgMax", matches, axis=2, keepdims=0))


def _set_apart(writer: GraphWriter, texts: str, mark: str) -> str:
    """`texts`, strings `[batch]`, with a blank on both sides of every `mark`."""
    split = writer.op("StringSplit", texts, delimiter=mark)
    counts = f"{split}.counts"
    writer.nodes[-1].output.append(counts)
    columns = writer.op("Squeeze", writer.op("Shape", split, start=1, end=2))
    one = writer.constants.integers(1)
    # Rows with fewer parts end in empty ones, which no mark stands before.
    places = writer.op("Range", one, columns, one)
    is_part = writer.op("Less", places, writer.op("Unsqueeze", counts, writer.constants.integers([1])))
    marks, none = (writer.constants.tensor(np.array(text, dtype=object)) for text in (f" {mark} ", ""))
    first = writer.op("Gather", split, writer.constants.integers(0), axis=1)
    rest = writer.op("Gather", split, places, axis=1)
    pieces = writer.op("StringConcat", writer.op("Where", is_part, marks, none), rest)
    return write_joined(writer, pieces, writer.op("Sub", columns, one), first)
