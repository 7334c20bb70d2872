"""What is said of a folder that no family reads: what it is, what comes nearest, and what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xattn_export.families.base import Family
from xattn_export.families.checkpoint_folder.classes import architecture, nearest
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import show

__all__ = ["no_checkpoint", "unknown_architecture"]

_PAGES = "docs/families.md lists what can be exported, docs/adding-a-family.md says how to add a family"
_NAME_ONE = (
    "name the folder that `xattn-edge train` or Transformers' save_pretrained wrote, or a hub id like organisation/name"
)
# A file that marks what another library writes → what its folder is, and what to do with it.
_OF_OTHERS = {
    "model_index.json": ("a pipeline of Diffusers", "name the folder of one model in it"),
    "open_clip_config.json": ("a model of OpenCLIP", "convert it to Transformers' CLIP, and save that"),
    "manifest.json": ("a bundle", "it is exported already"),
    "*.gguf": ("a GGUF model of llama.cpp", "name the folder of the checkpoint that it was made from"),
    "*.onnx": ("an ONNX model", "name the folder of the checkpoint that it was made from"),
}


def no_checkpoint(folder: Path) -> CheckpointError:
    """Of a path without a config.json."""
    expected = f"{folder}: expected the folder of a checkpoint, found"
    if folder.is_file():
        return CheckpointError(f"{expected} a file; {_NAME_ONE}")
    if not folder.is_dir():
        return CheckpointError(f"{expected} nothing; {_NAME_ONE}")
    if not any(folder.iterdir()):
        return CheckpointError(f"{expected} an empty folder; {_NAME_ONE}")
    for pattern, (kind, advice) in _OF_OTHERS.items():
        if any(folder.glob(pattern)):
            return CheckpointError(f"{expected} {kind}; {advice}")
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if inside:
        some = ", ".join(inside[:3]) + (", …" if len(inside) > 3 else "")
        return CheckpointError(f"{expected} a folder of checkpoints: {some}; name one of them")
    return CheckpointError(f"{expected} a folder without config.json; {_NAME_ONE}")


def unknown_architecture(path: Path, config: Mapping[str, Any], families: Sequence[Family]) -> CheckpointError:
    """Of a `config.json`, at `path`, that no family recognises."""
    if "format_version" in config:
        tasks = ", ".join(family.name.split()[-1] for family in families if not family.classes)
        return CheckpointError(
            f"{path}: task: expected one of {tasks}, found {show(config.get('task'))}; train the model again"
        )
    stated, model_type = architecture(config), config.get("model_type")
    classes = {name: family for family in families for name in family.classes}
    of_type = [name for name, family in classes.items() if model_type and family.classes[name] == model_type]
    if stated is None and of_type:
        return CheckpointError(
            f'{path}: architectures: expected the class of the model, found none; write "architectures": '
            f"{' or '.join(json.dumps([name]) for name in of_type)}, whichever the weights are of"
        )
    found = show(stated) if stated else f"none, and model_type {show(model_type)}"
    near = _nearest_class(stated, model_type, of_type, classes)
    hint = f" (the nearest that can: {classes[near].name}, {near})" if near else ""
    return CheckpointError(
        f"{path}: architectures: expected a class that can be exported{hint}, found {found}; {_PAGES}"
    )


def _nearest_class(
    stated: str | None, model_type: object, of_type: Sequence[str], classes: Mapping[str, Family]
) -> str | None:
    """Of the same type the most like it; else the one whose name, without what it is for, is like its name or type."""
    if of_type:
        return (stated and nearest(stated, of_type)) or of_type[0]
    stems = {name: _stem(name) for name in classes}
    for name in (stated and _stem(stated), model_type if isinstance(model_type, str) else None):
        if name and (stem := nearest(name, stems.values())):
            of_stem = [other for other, known in stems.items() if known == stem]
            return (stated and nearest(stated, of_stem)) or of_stem[0]
    return None


def _stem(name: str) -> str:
    """`BlipForQuestionAnswering` → `Blip`, `CLIPModel` → `CLIP`."""
    return name.partition("For")[0].removesuffix("Model")
