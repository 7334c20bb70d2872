"""The roles that most families need: names, axes and order of the tensors as the bundle format has them.

A family supplies the module that is exported and the original model behind the same flat tensors. It knows no
architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from xattn_export.families.base.roles import Role, Symbol, TensorSpec, key_value_specs
from xattn_runtime.bundle.contract import past_names, present_names

__all__ = [
    "classifier_role",
    "decoder_role",
    "image_encoder_role",
    "image_token_specs",
    "reranker_role",
    "text_encoder_role",
    "text_specs",
]

Reference = Callable[..., tuple[Tensor, ...]]


def text_specs(vocabulary: int, *, fewest: int = 1, ends_with: int | None = None) -> tuple[TensorSpec, TensorSpec]:
    """Token ids of a text and their mask. `fewest`: tokens of the shortest text. `ends_with`: the last of each."""
    return (
        TensorSpec("input_ids", ("batch", "length"), "token_ids", vocabulary, ends_with=ends_with),
        TensorSpec("attention_mask", ("batch", "length"), "mask", fewest=fewest),
    )


def image_token_specs(tokens: int | Symbol, width: int) -> tuple[TensorSpec, TensorSpec]:
    """Image tokens and their mask."""
    return (
        TensorSpec("image_tokens", ("batch", tokens, width), "normal"),
        TensorSpec("image_mask", ("batch", tokens), "mask"),
    )


def image_encoder_role(
    module: nn.Module,
    reference: Reference,
    size_px: tuple[int, int],
    outputs: Sequence[str],
    *,
    attends: bool = True,
) -> Role:
    """Image `[batch, 3, height, width]` to `outputs`: keys and values, or embeddings, or image tokens."""
    pixel_values = TensorSpec("pixel_values", ("batch", 3, *size_px), "normal")
    return Role("image_encoder", module, reference, (pixel_values,), tuple(outputs), attends=attends)


def text_encoder_role(
    module: nn.Module,
    reference: Reference,
    vocabulary: int,
    longest: int,
    outputs: Sequence[str],
    image: tuple[TensorSpec, ...] = (),
    *,
    attends: bool = True,
) -> Role:
    """Text, and the keys and values or tokens of an image where it attends to one, to `outputs`."""
    return Role(
        "text_encoder", module, reference, (*text_specs(vocabulary), *image), tuple(outputs), longest, attends=attends
    )


def decoder_role(
    module: nn.Module,
    reference: Reference,
    *,
    vocabulary: int,
    layers: int,
    kv_heads: int,
    head_width: int,
    longest: int,
    cross_heads: int = 0,
    cross_tokens: int | Symbol = "context",
    prefix: int = 0,
    image_width: int = 0,
    placeholder: int | None = None,
) -> Role:
    """A decoding step: new tokens after a cache, and the cross keys and values of every layer if `cross_heads`.

    Args:
        longest: positions that the decoder has, prompt and prefix included.
        cross_tokens: image tokens; `context` where they are those of another text.
        prefix: image tokens that every cache begins with.
        image_width: of the image tokens that are an input of the step, if they are; `placeholder` is the token that
            stands for one in the text.
    """
    cross = key_value_specs("cross", layers, cross_heads, cross_tokens, head_width) if cross_heads else ()
    image = (TensorSpec("image_tokens", ("batch", "context", image_width), "normal"),) if image_width else ()
    inputs = (
        TensorSpec("input_ids", ("batch", "length"), "token_ids", vocabulary, placeholder=placeholder),
        *image,
        *(TensorSpec(name, ("batch", kv_heads, "past", head_width), "normal") for name in past_names(layers)),
        *cross,
    )
    outputs = ("logits", "next_token", "next_log_prob", *present_names(layers))
    return Role("decoder", module, reference, inputs, outputs, longest, prefix=prefix)


def classifier_role(
    module: nn.Module,
    reference: Reference,
    inputs: tuple[TensorSpec, ...],
    longest: int,
    *,
    attends: bool = True,
) -> Role:
    """`inputs` to `logits` and `probabilities`, `[batch, labels]`."""
    return Role("classifier", module, reference, inputs, ("logits", "probabilities"), longest, attends=attends)


def reranker_role(
    module: nn.Module,
    reference: Reference,
    text_width: int,
    image: tuple[TensorSpec, TensorSpec],
    longest: int,
    *,
    attends: bool = True,
) -> Role:
    """Text tokens `[batch, length, text_width]`, their mask, and those of an image to `match`, `[batch, 1]`."""
    text = (
        TensorSpec("text_tokens", ("batch", "length", text_width), "normal"),
        TensorSpec("attention_mask", ("batch", "length"), "mask"),
    )
    return Role("reranker", module, reference, (*text, *image), ("match",), longest, attends=attends)
