"""Adapters of PEFT: a folder beside a model, whose low-rank products are added to the model's weights.

LoRA (https://arxiv.org/abs/2106.09685) as `peft.tuners.lora` defines it: a layer computes `x Wᵀ + s x Aᵀ Bᵀ`, so that
merging is `W + s B A`, with `s = alpha / r`, or `alpha / √r` if it is rank-stabilised. It knows no architecture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from xattn_export.families.checkpoint_folder.json_files import read_json
from xattn_export.families.checkpoint_folder.weights.files import WeightFiles, find_weights, read_tensors
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import show

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "Adapter",
    "LowRank",
    "is_adapter",
    "read_adapter",
    "refusal_without_base",
]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_WRAPPED = "base_model.model."
_MERGE = "merge it with merge_and_unload() of peft, and export what save_pretrained then writes"
# Settings that change the arithmetic.
_OTHER_ARITHMETIC = (
    "use_dora", "lora_bias", "use_qalora", "use_bdlora", "target_parameters", "trainable_token_indices",
    "layer_replication", "megatron_config", "alora_invocation_tokens", "arrow_config", "kasa_config",
    "monteclora_config", "velora_config",
)  # fmt: skip
# Ways to begin that leave the model's own weights as they are.
_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")
_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.weight|\.default|\.default\.weight)?")
# A pattern's quantifier behind a group may take time without end.
_SLOW = re.compile(r"\)[*+{?]")


@dataclass(frozen=True)
class LowRank:
    """What is added to a module's weight: `scale` · b @ a, for a linear layer, a convolution, or an embedding.

    a: `[r, inputs]`, of a convolution `[r, inputs, height, width]`. b: `[outputs, r]`.
    """

    a: Tensor
    b: Tensor
    scale: float
    kind: Literal["linear", "convolution", "embedding"]

    def added_to(self, weight: Tensor, *, transposed: bool) -> Tensor | None:
        """The weight with it, in float32; None where the shapes do not fit.

        transposed: whether the layer keeps its weight as `[inputs, outputs]`, as the `Conv1D` of GPT-2 does.
        """
        a, b = self.a.float(), self.b.float()
        change = torch.einsum("or,rikl->oikl", b.flatten(1), a) if self.kind == "convolution" else b @ a
        if self.kind == "embedding" or transposed:
            change = change.T
        return weight.float() + self.scale * change if change.shape == weight.shape else None


@dataclass(frozen=True)
class Adapter:
    """An adapter: module → what is added to its weight; tensor → what takes its place.

    file: its tensors.
    """

    file: Path
    low_rank: Mapping[str, LowRank]
    replaced: Mapping[str, Tensor]


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter of PEFT, and no weights of a model."""
    if not any((folder / name).is_file() for name in (ADAPTER_CONFIG, *ADAPTER_WEIGHTS)):
        return False
    try:
        find_weights(folder)
    except CheckpointError:
        return True
    return False


def refusal_without_base(folder: Path) -> CheckpointError:
    """Of an adapter's folder that is exported alone."""
    config = read_json(folder / ADAPTER_CONFIG)
    base = config.get("base_model_name_or_path")
    known = f" of {base}" if isinstance(base, str) and base else ""
    return CheckpointError(
        f"{folder}: expected a whole model, found an adapter of PEFT ({config.get('peft_type') or 'unknown'}){known}; "
        f"add --base with the folder of that model, or {_MERGE}"
    )


def read_adapter(folder: Path) -> Adapter:
    """The adapter in `folder`.

    Raises:
        CheckpointError: a damaged file, or an adapter of another kind than LoRA's.
    """
    path = folder / ADAPTER_CONFIG
    config = read_json(path)
    _check_kind(path, config)
    file = next((folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{folder}: expected {' or '.join(ADAPTER_WEIGHTS)}, found neither; download it again")
    factors: dict[str, dict[str, Tensor]] = {}
    replaced = {}
    for name, tensor in read_tensors(WeightFiles((file,))).items():
        plain = name.removeprefix(_WRAPPED)
        if match := _FACTOR.fullmatch(plain):
            factors.setdefault(match[1], {})[f"{match[2] or ''}{match[3]}"] = tensor
        elif ".lora_" in plain or not re.search(r"\.(weight|bias)$", plain):
            raise CheckpointError(f"{file}: the tensor {name}: expected those of plain LoRA, found others; {_MERGE}")
        else:
            replaced[_plain_name(plain)] = tensor
    low_rank = {module: _low_rank(path, config, module, pair) for module, pair in factors.items()}
    return Adapter(file, low_rank, replaced)


def _check_kind(path: Path, config: Mapping[str, Any]) -> None:
    if (kind := config.get("peft_type")) != "LORA":
        raise CheckpointError(f"{path}: peft_type: expected LORA, found {show(kind)}; {_MERGE}")
    for key in _OTHER_ARITHMETIC:
        if config.get(key):
            raise CheckpointError(f"{path}: {key}: expected none, found {show(config[key])}; {_MERGE}")
    if (beginning := config.get("init_lora_weights")) not in _BEGINNINGS:
        raise CheckpointError(
            f"{path}: init_lora_weights: expected one that leaves the model's weights as they are, found "
            f"{show(beginning)}; {_MERGE}"
        )


def _plain_name(name: str) -> str:
    """A tensor's name without the modules that wrap what is saved as a whole, or what a product is added to."""
    return re.sub(r"\.(modules_to_save(\.default)?|base_layer)(?=\.)", "", name)


def _low_rank(path: Path, config: Mapping[str, Any], module: str, pair: Mapping[str, Tensor]) -> LowRank:
    embedding = "embedding_A" in pair or "embedding_B" in pair
    a, b = (pair.get(f"{'embedding_' if embedding else ''}{side}") for side in "AB")
    if a is None or b is None or a.dim() not in (2, 4) or b.dim() != a.dim():
        raise CheckpointError(f"{path.parent}: {module}: expected two factors, lora_A and lora_B; download it again")
    rank = _of_module(path, config, "rank_pattern", module, config.get("r", 8))
    alpha = _of_module(path, config, "alpha_pattern", module, config.get("lora_alpha", 8))
    if rank != a.shape[0] or b.shape[1] != a.shape[0]:
        raise CheckpointError(
            f"{path}: r: expected {a.shape[0]} for {module}, as its tensors have it, found {show(rank)}; "
            "adapter_config.json and the tensors are not of one adapter"
        )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRank(a, b, scale, "embedding" if embedding else "convolution" if a.dim() == 4 else "linear")


def _of_module(path: Path, config: Mapping[str, Any], key: str, module: str, default: object) -> float:
    """A module's own value, of the first pattern that its name ends with, or else the adapter's."""
    patterns = config.get(key) or {}
    value = default
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{path}: {key}: expected an object, found {show(patterns)}; download it again")
    for pattern, own in patterns.items():
        try:
            if _SLOW.search(pattern):
                raise re.error("a repeated group")
            matches = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise CheckpointError(
                f"{path}: {key}: {show(pattern)}: expected a name, found {error}; {_MERGE}"
            ) from error
        if matches:
            value = own
            break
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(f"{path}: {key}: expected a number above 0 for {module}, found {show(value)}")
    return value
