"""Names, dtypes and ranks of the tensors of every role: the contract between exporter and runtime.

A role comes in one or several forms: a captioner's image encoder outputs cross-attention keys and values, or a prefix
of the decoder's cache, and a retriever's outputs embeddings. Which form a graph has, and of how many layers, is read
from the names of its tensors. How a graph is run is in `session.py`, what for in `generate/` and `tasks/`.
docs/bundle-format.md describes the same for people.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

__all__ = [
    "ROLES",
    "RoleContract",
    "TensorContract",
    "attention_names",
    "cross_names",
    "frozen_names",
    "image_names",
    "key_value_names",
    "layers_of",
    "past_names",
    "prefix_names",
    "present_names",
    "role_contract",
    "state_names",
    "states_of",
]


@dataclass(frozen=True)
class TensorContract:
    """A tensor: ONNX Runtime's word for its dtype, and its rank; and the dtypes that quantizing may give it."""

    dtype: str
    rank: int
    quantized: tuple[str, ...] = ()


@dataclass(frozen=True)
class RoleContract:
    """All inputs and outputs of a graph, by name."""

    inputs: Mapping[str, TensorContract]
    outputs: Mapping[str, TensorContract]


@dataclass(frozen=True)
class _Form:
    """One form of a role: single tensors, and the series of keys and values, a pair a layer, consumed and produced.

    produces_weights: whether it outputs the attention weights of every layer too.
    """

    inputs: Mapping[str, TensorContract]
    outputs: Mapping[str, TensorContract] = field(default_factory=dict)
    consumes: tuple[str, ...] = ()
    produces: tuple[str, ...] = ()
    produces_weights: bool = False


_KEY_VALUE = TensorContract("tensor(float)", 4, ("tensor(float16)", "tensor(int8)"))
_STATE = TensorContract("tensor(float)", 3)
_MATRIX = TensorContract("tensor(float)", 2)
_IDS = TensorContract("tensor(int64)", 2)

_PIXELS = {"pixel_values": TensorContract("tensor(float)", 4)}
_FEATURES = {"visual_features": TensorContract("tensor(float)", 3)}
_BOXES = {"visual_boxes": TensorContract("tensor(float)", 3)}
_TEXT = {"input_ids": _IDS, "attention_mask": _IDS}
_IMAGE = {"image_tokens": TensorContract("tensor(float)", 3)}
_PATCHES = {"patches": TensorContract("tensor(float)", 3), "grid": TensorContract("tensor(int64)", 1)}
_GRIDS = {"image_grids": TensorContract("tensor(int64)", 3)}
_IMAGE_TOKENS = {**_IMAGE, "image_mask": _IDS}
_SPEECH = {"log_mel": TensorContract("tensor(float)", 3), "log_mel_mask": _IDS}
_FRAMES = {"frame_values": TensorContract("tensor(float)", 5), "frame_mask": _IDS}
_TEXT_TOKENS = {"text_tokens": TensorContract("tensor(float)", 3)}
_ANSWERS = {"logits": _MATRIX, "probabilities": _MATRIX}
_NEXT = {
    "logits": _MATRIX,
    "next_token": TensorContract("tensor(int64)", 1),
    "next_log_prob": TensorContract("tensor(float)", 1),
}
_LOGITS = {"logits": _MATRIX}
_SCALAR = TensorContract("tensor(int64)", 0)
_LOOP = {
    "input_ids": _IDS,
    "max_new_tokens": _SCALAR,
    "end_token_ids": TensorContract("tensor(int64)", 1),
    "pad_token_id": _SCALAR,
}
_GENERATED = {"token_ids": _IDS, "log_probs": _MATRIX}
_CHOSEN = {"answer_ids": TensorContract("tensor(int64)", 1), "probabilities": _MATRIX}
_IMAGES = {"images": TensorContract("tensor(uint8)", 4)}
_QUESTIONS = {"questions": TensorContract("tensor(string)", 1)}
_TEXTS = {"texts": TensorContract("tensor(string)", 1)}
_FORMS: Mapping[str, tuple[_Form, ...]] = {
    "image_encoder": (
        _Form(_PIXELS, produces=("cross",)),
        _Form(_PIXELS, produces=("prefix",)),
        _Form(_PIXELS, produces=("image",)),
        _Form(_PIXELS, {"image_embeddings": _MATRIX}),
        _Form(_PIXELS, {"image_embeddings": _MATRIX, **_IMAGE_TOKENS}),
        _Form(_PIXELS, _IMAGE),
        _Form(_PIXELS, _IMAGE_TOKENS),
        _Form(_PATCHES, _IMAGE),
        _Form({**_FEATURES, **_BOXES}, _IMAGE_TOKENS),
        _Form(_FEATURES, _IMAGE_TOKENS),
    ),
    "text_encoder": (
        _Form(_TEXT, consumes=("image",), produces=("cross",)),
        _Form({**_TEXT, **_IMAGE}, produces=("cross",)),
        _Form(_TEXT, {"text_embeddings": _MATRIX}),
        _Form(_TEXT, {"text_embeddings": _MATRIX, **_TEXT_TOKENS}),
    ),
    "reranker": (_Form({**_TEXT_TOKENS, "attention_mask": _IDS, **_IMAGE_TOKENS}, {"match": _MATRIX}),),
    "decoder": (
        _Form({"input_ids": _IDS}, _NEXT, consumes=("past", "cross"), produces=("present",)),
        _Form({"input_ids": _IDS}, _NEXT, consumes=("past",), produces=("present",)),
        _Form({"input_ids": _IDS, **_IMAGE}, _NEXT, consumes=("past",), produces=("present",)),
        _Form({"input_ids": _IDS}, _NEXT, consumes=("frozen", "past", "cross"), produces=("present",)),
        _Form({"input_ids": _IDS}, _NEXT, consumes=("frozen", "past"), produces=("present",)),
        _Form({"input_ids": _IDS, **_IMAGE}, _NEXT, consumes=("frozen", "past"), produces=("present",)),
        _Form({"input_ids": _IDS, **_IMAGE, **_GRIDS}, _NEXT, consumes=("past",), produces=("present",)),
        _Form({"input_ids": _IDS, **_IMAGE, **_GRIDS}, _NEXT, consumes=("frozen", "past"), produces=("present",)),
    ),
    "generator": (
        _Form(_LOOP, _GENERATED, consumes=("past", "cross")),
        _Form(_LOOP, _GENERATED, consumes=("past",)),
        _Form({**_LOOP, **_IMAGE}, _GENERATED, consumes=("past",)),
        _Form({**_LOOP, **_IMAGE, **_GRIDS}, _GENERATED, consumes=("past",)),
    ),
    "classifier": (
        _Form(_TEXT, _ANSWERS, consumes=("cross",)),
        _Form({**_TEXT, **_IMAGE_TOKENS}, _ANSWERS),
        _Form({**_TEXT, **_SPEECH, **_FRAMES}, _ANSWERS),
    ),
    "attention": (
        _Form({"input_ids": _IDS}, _LOGITS, consumes=("past", "cross"), produces_weights=True),
        _Form(_TEXT, _LOGITS, consumes=("cross",), produces_weights=True),
        _Form(_TEXT, consumes=("image",), produces=("cross",), produces_weights=True),
    ),
    "whole": (
        _Form(_IMAGES, _GENERATED),
        _Form({**_IMAGES, "input_ids": _IDS}, _GENERATED),
        _Form({**_IMAGES, "input_ids": _IDS}, _CHOSEN),
    ),
    "whole_text": (
        _Form(_IMAGES, {**_GENERATED, **_TEXTS}),
        _Form({**_IMAGES, **_QUESTIONS}, {**_GENERATED, **_TEXTS}),
        _Form({**_IMAGES, **_QUESTIONS}, {**_CHOSEN, **_TEXTS}),
    ),
}

ROLES = tuple(_FORMS)
"""Every role that a graph of a bundle may have."""


def key_value_names(series: str, layers: int) -> list[str]:
    """`SERIES_key_0`, `SERIES_value_0`, `SERIES_key_1`, …"""
    return [f"{series}_{kind}_{layer}" for layer in range(layers) for kind in ("key", "value")]


def cross_names(layers: int) -> list[str]:
    """Keys and values that a decoder or classifier attends to: `cross_key_0`, `cross_value_0`, …"""
    return key_value_names("cross", layers)


def image_names(layers: int) -> list[str]:
    """Keys and values of the image that a text encoder attends to: `image_key_0`, `image_value_0`, …"""
    return key_value_names("image", layers)


def prefix_names(layers: int) -> list[str]:
    """Keys and values of the image that a decoder's cache begins with: `prefix_key_0`, `prefix_value_0`, …"""
    return key_value_names("prefix", layers)


def frozen_names(layers: int) -> list[str]:
    """The part of a split cache that no step changes: `frozen_key_0`, `frozen_value_0`, …, as `past_names`.

    Keys of a split cache are transposed, those of `past` and `present` too: `[batch, heads, head_width, tokens]`.
    """
    return key_value_names("frozen", layers)


def past_names(layers: int) -> list[str]:
    """The cache before a step: `past_key_0`, `past_value_0`, …"""
    return key_value_names("past", layers)


def present_names(layers: int) -> list[str]:
    """The cache after a step: `present_key_0`, `present_value_0`, …, in the order of `past_names`."""
    return key_value_names("present", layers)


def state_names(series: str, layers: int) -> list[str]:
    """What layers that convolve keep before a step, `past`, or after it, `present`: `past_conv_0`, `past_conv_1`, …"""
    return [f"{series}_conv_{layer}" for layer in range(layers)]


def attention_names(outputs: Collection[str]) -> list[str]:
    """Attention weights, a tensor a layer, of as many layers as there are among `outputs`, at least one."""
    return [f"attention_{layer}" for layer in range(max(1, sum(name.startswith("attention_") for name in outputs)))]


def layers_of(series: str, names: Iterable[str]) -> int:
    """How many layers of `series` there are among the names of a graph's inputs or outputs."""
    return sum(name.startswith(f"{series}_key_") for name in names)


def states_of(series: str, names: Iterable[str]) -> int:
    """How many layers of `series` keep a state of fixed size; as `layers_of` counts keys."""
    return sum(name.startswith(f"{series}_conv_") for name in names)


def role_contract(role: str, inputs: Collection[str], outputs: Collection[str]) -> RoleContract:
    """Inputs and outputs of a graph of `role`: of all forms of the role the one nearest to the names that it has.

    A series of keys and values has as many layers as the graph has keys of it, at least one; `present` has as many as
    `past`, and as many states of fixed size as `past` has.
    """
    contracts = [_contract(form, inputs, outputs) for form in _FORMS[role]]
    return min(
        contracts,
        key=lambda contract: len(contract.inputs.keys() ^ set(inputs)) + len(contract.outputs.keys() ^ set(outputs)),
    )


def _contract(form: _Form, inputs: Collection[str], outputs: Collection[str]) -> RoleContract:
    def tensors(series: tuple[str, ...], names: Collection[str]) -> dict[str, TensorContract]:
        return {name: _KEY_VALUE for one in series for name in key_value_names(one, max(1, layers_of(one, names)))}

    weights = attention_names(outputs) if form.produces_weights else []
    past = present_names(max(1, layers_of("past", inputs)))
    states = states_of("past", inputs) if "past" in form.consumes else 0
    last_states = state_names("present", states if "present" in form.produces else 0)
    return RoleContract(
        {**form.inputs, **tensors(form.consumes, inputs), **dict.fromkeys(state_names("past", states), _STATE)},
        {
            **form.outputs,
            **tensors(form.produces, past if "present" in form.produces else outputs),
            **dict.fromkeys(last_states, _STATE),
            **dict.fromkeys(weights, TensorContract("tensor(float)", 4)),
        },
    )
