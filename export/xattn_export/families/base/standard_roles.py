"""The roles that most families need: names, axes and order of the tensors as the bundle format has them.

A family supplies the module that is exported and the original model behind the same flat tensors. It knows no
architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor, nn

from xattn_export.families.base.roles import Role, Symbol, TensorSpec, key_value_specs
from xattn_runtime.bundle.contract import past_names, present_names, state_names

__all__ = [
    "classifier_role",
    "decoder_role",
    "image_encoder_role",
    "image_token_specs",
    "patch_encoder_role",
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


def patch_encoder_role(module: nn.Module, reference: Reference, width: int) -> Role:
    """Patches `[batch, patches, width]` of images of one grid, and its rows and columns, to `image_tokens`."""
    patches = TensorSpec("patches", ("batch", "patches", width), "normal")
    grid = TensorSpec("grid", (2,), "grid")
    return Role("image_encoder", module, reference, (patches, grid), ("image_tokens",))


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
    has_grids: bool = False,
    states: Sequence[tuple[int, int]] = (),
) -> Role:
    """A decoding step: new tokens after a cache, and the cross keys and values of every layer if `cross_heads`.

    Args:
        longest: positions that the decoder has, prompt and prefix included.
        cross_tokens: image tokens; `context` where they are those of another text.
        prefix: image tokens that every cache begins with.
        image_width: of the image tokens that are an input of the step, if they are; `placeholder` is the token that
            stands for one in the text.
        has_grids: whether positions follow the images' rows and columns, which are then an input of the step too.
        states: of every layer that convolves, beside `layers` that attend, the width of its state and of how many
            tokens it is.
    """
    cross = key_value_specs("cross", layers, cross_heads, cross_tokens, head_width) if cross_heads else ()
    image = (TensorSpec("image_tokens", ("batch", "context", image_width), "normal"),) if image_width else ()
    grids = (TensorSpec("image_grids", ("batch", "images", 2), "grids"),) if has_grids else ()
    ids = TensorSpec("input_ids", ("batch", "length"), "token_ids", vocabulary)
    inputs = (
        replace(ids, placeholder=placeholder, in_runs=has_grids),
        *image,
        *grids,
        *(TensorSpec(name, ("batch", kv_heads, "past", head_width), "normal") for name in past_names(layers)),
        *(
            TensorSpec(name, ("batch", *shape), "normal")
            for name, shape in zip(state_names("past", len(states)), states, strict=True)
        ),
        *cross,
    )
    outputs = ("logits", "next_token", "next_log_prob", *present_names(layers), *state_names("present", len(states)))
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
