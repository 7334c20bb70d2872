"""Adding an adapter to a model's weights, by the names that the opened model has, or else by those of its files.

A version of Transformers may call a module otherwise than the files of older ones do, and an adapter is of one of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from xattn_export.families.checkpoint_folder.weights.adapter import Adapter
from xattn_runtime.errors import CheckpointError

__all__ = ["merge_into_model", "merge_into_tensors"]


def merge_into_tensors(tensors: Mapping[str, Tensor], adapter: Adapter, skeleton: nn.Module) -> dict[str, Tensor]:
    """The tensors of the files with what the adapter has under names that only they have.

    skeleton: the model without its weights.
    """
    merged = dict(tensors)
    for name, tensor in adapter.replaced.items():
        if name in merged and _find(skeleton, name.rpartition(".")[0]) is None:
            merged[name] = _checked(adapter, name, merged[name], tensor.float())
    for module, change in adapter.low_rank.items():
        name = f"{module}.weight"
        if name in merged and _find(skeleton, module) is None:
            weight = merged[name]
            merged[name] = _checked(adapter, name, weight, change.added_to(weight, transposed=False))
    return merged


def merge_into_model(model: nn.Module, adapter: Adapter, tensors: Mapping[str, Tensor]) -> None:
    """Give the opened model the rest of the adapter: what is in none of the files' `tensors` under its own name alone.

    A weight that two modules share is changed for the one that the adapter names, as the adapter's own layer does.

    Raises:
        CheckpointError: a module that the model does not have, or that is of another shape.
    """
    for name, tensor in adapter.replaced.items():
        module, _, kind = name.rpartition(".")
        layer = _find(model, module)
        if layer is not None:
            _put(layer, kind, _checked(adapter, name, _tensor(adapter, layer, module, kind), tensor.float()))
        elif name not in tensors:
            raise _no_module(adapter, name)
    for module, change in adapter.low_rank.items():
        layer = _find(model, module)
        if layer is not None:
            weight = _tensor(adapter, layer, module, "weight")
            merged = change.added_to(weight, transposed=type(layer).__name__ == "Conv1D")
            _put(layer, "weight", _checked(adapter, module, weight, merged))
        elif f"{module}.weight" not in tensors:
            raise _no_module(adapter, module)


def _find(model: nn.Module, module: str) -> nn.Module | None:
    try:
        return model.get_submodule(module)
    except AttributeError:
        return None


def _tensor(adapter: Adapter, layer: nn.Module, module: str, kind: str) -> Tensor:
    tensor = getattr(layer, kind, None)
    if not isinstance(tensor, Tensor):
        raise _no_module(adapter, f"{module}.{kind}")
    return tensor.detach()


def _put(layer: nn.Module, kind: str, tensor: Tensor) -> None:
    setattr(layer, kind, nn.Parameter(tensor, requires_grad=False))


def _checked(adapter: Adapter, name: str, own: Tensor, merged: Tensor | None) -> Tensor:
    if merged is None or merged.shape != own.shape:
        found = "another" if merged is None else list(merged.shape)
        raise CheckpointError(
            f"{adapter.file}: {name}: expected the shape {list(own.shape)} that the base has, found {found}; name the "
            "model that the adapter was trained on with --base, its vocabulary resized as it was in training"
        )
    return merged


def _no_module(adapter: Adapter, name: str) -> CheckpointError:
    return CheckpointError(
        f"{adapter.file}: expected an adapter of modules that the base has, found {name}, which it does not have; name "
        "the model that the adapter was trained on with --base"
    )
