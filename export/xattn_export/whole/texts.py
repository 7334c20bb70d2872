"""Decodes token ids inside a graph, where every token has a text of its own, whatever its neighbours are.

Such are the words and pieces of words of WordLevel and WordPiece. Whether a tokenizer decodes like that is not read
from its file but tried: `token_texts` takes the texts from the tokenizer's own decoding, and compares what they add up
to with that decoding for every token, and for many sequences. Strings grow by the operator `StringConcat` of opset 20.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper

from xattn_export.graph.editing import GraphWriter
from xattn_runtime.json_reader import show
from xattn_runtime.preprocess.text import TextCodec

__all__ = ["TokenTexts", "token_texts", "write_labels", "write_texts"]

_SEED = 11
_SEQUENCES = 4000
_LONGEST = 12
_BROKEN = "�"


@dataclass(frozen=True)
class TokenTexts:
    """What each token adds to a text: as its first token, and later. has_text: whether it adds anything."""

    first: tuple[str, ...]
    later: tuple[str, ...]
    has_text: tuple[bool, ...]

    def join(self, token_ids: Sequence[int]) -> str:
        """The text that the graph computes for `token_ids`."""
        ids = [token_id for token_id in token_ids if self.has_text[token_id]]
        return "".join(self.later[token_id] if place else self.first[token_id] for place, token_id in enumerate(ids))


def token_texts(codec: TextCodec, vocabulary: int) -> TokenTexts | str:
    """The texts of all token ids below `vocabulary`; or why texts cannot be put together from them."""
    alone = [codec.decode([token_id]) for token_id in range(vocabulary)]
    if broken := next((number for number, text in enumerate(alone) if _BROKEN in text), None):
        return f"the tokenizer has tokens that are parts of a character, such as {broken}"
    anchor = next((number for number, text in enumerate(alone) if text.isalnum()), None)
    if anchor is None:
        return "the tokenizer has no word"
    behind = [codec.decode([anchor, token_id]) for token_id in range(vocabulary)]
    if strange := next((number for number, text in enumerate(behind) if not text.startswith(alone[anchor])), None):
        return f"the token {strange} changes the text before it"
    later = [text[len(alone[anchor]) :] for text in behind]
    texts = TokenTexts(
        tuple(alone), tuple(later), tuple(bool(one or other) for one, other in zip(alone, later, strict=True))
    )
    return _difference(codec, texts) or texts


def _difference(codec: TextCodec, texts: TokenTexts) -> str | None:
    """A sequence of tokens that `texts` puts together in another way than the tokenizer, in words; None if none."""
    chance = random.Random(_SEED)
    tokens = range(len(texts.first))
    pairs = ((token_id, chance.choice(tokens)) for token_id in tokens)
    many = ([chance.choice(tokens) for _ in range(chance.randint(0, _LONGEST))] for _ in range(_SEQUENCES))
    for token_ids in ((), *((token_id,) for token_id in tokens), *pairs, *many):
        if (joined := texts.join(token_ids)) != (expected := codec.decode(token_ids)):
            return f"the tokenizer writes tokens as their neighbours want it: {show(expected)} is not {show(joined)}"
    return None


def write_texts(writer: GraphWriter, token_ids: str, texts: TokenTexts, shown_ids: Sequence[int] = ()) -> str:
    """Strings `[batch]` of int64 `[batch, steps]`; each begins with the text of `shown_ids`."""
    if begun := [token_id for token_id in shown_ids if texts.has_text[token_id]]:
        batch = writer.op("Shape", token_ids, start=0, end=1)
        size = writer.op("Concat", batch, writer.constants.integers([len(begun)]), axis=0)
        shown = writer.op("Expand", writer.constants.integers(np.array([begun])), size)
        token_ids = writer.op("Concat", shown, token_ids, axis=1)
    first, later = (
        writer.op("Gather", writer.constants.tensor(np.array(table, dtype=object)), token_ids)
        for table in (texts.first, texts.later)
    )
    counts = writer.op("Gather", writer.constants.tensor(np.array(texts.has_text, np.int64)), token_ids)
    before = writer.op("CumSum", counts, writer.constants.integers(1), exclusive=1)
    has_begun = writer.op("Greater", before, writer.constants.integers(0))
    pieces = writer.op("Where", has_begun, later, first)
    nothing = writer.constants.tensor(np.array([""], dtype=object))
    steps = writer.op("Squeeze", writer.op("Shape", token_ids, start=1, end=2))
    beginning = writer.op("Expand", nothing, writer.op("Shape", token_ids, start=0, end=1))
    return write_joined(writer, pieces, steps, beginning)


def write_joined(writer: GraphWriter, pieces: str, count: str, beginning: str) -> str:
    """Strings `[batch]`: `beginning`, and the first `count`, int64 `[]`, of `pieces`, strings `[batch, columns]`."""
    body = helper.make_graph(
        [
            helper.make_node("Gather", [pieces, "text.number"], ["text.piece"], axis=1),
            helper.make_node("StringConcat", ["text.so_far", "text.piece"], ["text.longer"]),
            helper.make_node("Identity", ["text.went_on"], ["text.goes_on"]),
        ],
        "join",
        [
            helper.make_tensor_value_info("text.number", TensorProto.INT64, []),
            helper.make_tensor_value_info("text.went_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("text.so_far", TensorProto.STRING, [None]),
        ],
        [
            helper.make_tensor_value_info("text.goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("text.longer", TensorProto.STRING, [None]),
        ],
    )
    joined = writer.op("Loop", count, "", beginning)
    writer.nodes[-1].attribute.append(helper.make_attribute("body", body))
    return joined


def write_labels(writer: GraphWriter, numbers: str, labels: Sequence[str]) -> str:
    """Strings `[batch]`: the label of each of int64 `[batch]`."""
    return writer.op("Gather", writer.constants.tensor(np.array(labels, dtype=object)), numbers)
