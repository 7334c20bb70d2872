"""Folders that `save_pretrained` of Transformers made, in any version: what each family of its models begins with.

It finds and checks weights, builds the model around them, and reads name and licence. Transformers is imported when a
folder is opened, and never runs code that came with a model. It knows no architecture.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from xattn_export.families.checkpoint_folder.json_files import read_json
from xattn_export.families.checkpoint_folder.quiet import quiet_transformers
from xattn_export.families.checkpoint_folder.weights.adapter import read_adapter
from xattn_export.families.checkpoint_folder.weights.base import TO_MERGE
from xattn_export.families.checkpoint_folder.weights.files import find_weights, read_tensors
from xattn_export.families.checkpoint_folder.weights.fitting import check_loaded, fit_names
from xattn_export.families.checkpoint_folder.weights.merging import merge_into_model, merge_into_tensors
from xattn_export.families.checkpoint_folder.weights.quantized import refuse_quantized
from xattn_runtime.brought_files import decoded_text
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import one_line, show

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["generation_file", "license_of", "load_model", "name_of"]

_Model = TypeVar("_Model", bound="PreTrainedModel")

_CHANNELS = 3
# How a configuration class of Transformers says that a value is of the wrong type.
_OF_FIELD = re.compile(r"Field '([^']+)' expected (.+?), got .*\(value: (.+)\)")
_NO_LICENSE = "NOASSERTION"
# Of the hub's words for licences those whose SPDX identifier is not the same in capitals or as written.
_SPDX = {
    "agpl-3.0": "AGPL-3.0-only",
    "apache-2.0": "Apache-2.0",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "gpl-2.0": "GPL-2.0-only",
    "gpl-3.0": "GPL-3.0-only",
    "lgpl-3.0": "LGPL-3.0-only",
    "mpl-2.0": "MPL-2.0",
    "unlicense": "Unlicense",
    "zlib": "Zlib",
}
_SPDX_IN_CAPITALS = re.compile(r"mit|isc|wtfpl|(cc-by|cc0|bsl|ecl|epl|afl|osl|ofl|eupl|ms-pl)(-[a-z0-9.]+)*")


def name_of(folder: Path) -> str:
    """A bundle's name: that of the folder, in lower case; of a download, that of its repository."""
    repository = next((part for part in folder.parts if part.startswith("models--")), None)
    name = repository.rpartition("--")[2] if repository else folder.resolve().name
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("._-") or "model"


def generation_file(folder: Path) -> Path:
    """The file that states how the model in `folder` generates: older versions kept all settings in config.json."""
    path = folder / "generation_config.json"
    return path if path.is_file() else folder / "config.json"


def license_of(folder: Path) -> str:
    """SPDX expression of the licence that the head of README.md states; `NOASSERTION` where there is none.

    https://huggingface.co/docs/hub/model-cards#model-card-metadata, https://spdx.org/licenses/
    """
    try:
        text = decoded_text((folder / "README.md").read_bytes())
    except (OSError, UnicodeDecodeError):
        return _NO_LICENSE
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    stated = head and re.search(r"^license:\s*[\"']?([\w.+-]+)[\"']?\s*$", head[1], re.MULTILINE)
    if not stated:
        return _NO_LICENSE
    word = stated[1].lower()
    if word in ("other", "unknown"):
        return _NO_LICENSE
    spdx = word.upper() if _SPDX_IN_CAPITALS.fullmatch(word) else None
    return _SPDX.get(word) or spdx or f"LicenseRef-{re.sub('[^A-Za-z0-9.-]', '-', stated[1])}"


def load_model(
    folder: Path, model_class: type[_Model], *, unused: Sequence[str] = ()
) -> tuple[_Model, tuple[Path, ...]]:
    """The model in `folder` in float32, in evaluation mode, and the files of its weights.

    The weights stay mapped from their files where these hold float32.

    Args:
        model_class: of Transformers, as `architectures` of config.json names it.
        unused: regular expressions of tensors that the export does not need; they may be missing, or be too many.

    Raises:
        CheckpointError: no weights, or damaged ones; a configuration that Transformers cannot build; tensors that are
            missing, too many, or of other shapes than those of the configuration.
    """
    refuse_quantized(folder)
    _check_stated(folder / "config.json", read_json(folder / "config.json"))
    with quiet_transformers():
        config = _config(folder, model_class)
        weights = find_weights(folder)
        skeleton = _skeleton(folder, model_class, config)
        stated = config.to_dict()
        tensors, prefix = fit_names(folder, stated, skeleton.state_dict(), read_tensors(weights))
        adapter = read_adapter(folder / TO_MERGE) if (folder / TO_MERGE).is_dir() else None
        merged = tensors if adapter is None else merge_into_tensors(tensors, adapter, skeleton)
        try:
            model, info = model_class.from_pretrained(
                None,
                config=config,
                state_dict=merged,
                dtype=torch.float32,
                attn_implementation="eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except Exception as error:  # what a wrong value leads to depends on the architecture
            raise _unbuildable(folder, model_class, error) from error
        check_loaded(folder, model_class.__name__, stated, info, unused)
        if adapter is not None:
            merge_into_model(model, adapter, tensors)
        _read_generation_config(folder, model)
    if prefix:
        place = folder if adapter is None else weights.files[0].resolve().parent
        logging.getLogger("xattn_export").info(
            f"{place}: the weights are of a model that training wrapped: {prefix} is taken off their names"
        )
    files = weights.files if adapter is None else (*weights.files, adapter.file)
    return model.eval().requires_grad_(False), files


def _config(folder: Path, model_class: type[PreTrainedModel]) -> Any:
    try:
        return model_class.config_class.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # each configuration class has checks of its own
        raise _unbuildable(folder, model_class, error) from error


def _unbuildable(folder: Path, model_class: type[PreTrainedModel], error: Exception) -> CheckpointError:
    path, advice = folder / "config.json", "copy the file again from where the weights are from"
    if stated := _OF_FIELD.search(one_line(error)):
        return CheckpointError(f"{path}: {stated[1]}: expected {stated[2]}, found {stated[3]}; {advice}")
    return CheckpointError(
        f"{path}: expected the configuration of a {model_class.__name__}, found: "
        f"{type(error).__name__}: {one_line(error)[:300]}; {advice}"
    )


def _check_stated(path: Path, config: Mapping[str, Any]) -> None:
    """CheckpointError for labels that are not named by number, and for images of other than three channels."""
    labels = config.get("id2label") or {}
    if not isinstance(labels, dict) or not all(
        re.fullmatch(r"\d{1,9}", number) and isinstance(name, str) for number, name in labels.items()
    ):
        raise CheckpointError(
            f'{path}: id2label: expected names by number, as in {{"0": "yes"}}, found {show(labels)}; mend it, or copy '
            "the file again from where the weights are from"
        )
    parts = [("", config), *((f"{key}.", part) for key, part in config.items() if isinstance(part, dict))]
    for before, part in parts:
        for key in ("num_channels", "in_channels"):
            if part.get(key) not in (None, _CHANNELS):
                raise CheckpointError(
                    f"{path}: {before}{key}: expected {_CHANNELS}, found {show(part[key])}; models of greyscale or "
                    "other images cannot be exported yet: train it on images of three channels"
                )


def _skeleton(folder: Path, model_class: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """The model without memory for its weights."""
    try:
        with torch.device("meta"):
            return model_class(config)
    except Exception as error:  # what a wrong value leads to depends on the architecture
        raise _unbuildable(folder, model_class, error) from error


def _read_generation_config(folder: Path, model: PreTrainedModel) -> None:
    """Give `model` the settings of `generate()` that `from_pretrained` finds where it reads the folder itself."""
    from transformers import GenerationConfig

    if not model.can_generate():
        return
    path = generation_file(folder)
    try:
        model.generation_config = (
            GenerationConfig.from_model_config(dict(read_json(path)))
            if path.name == "config.json"
            else GenerationConfig.from_pretrained(folder, local_files_only=True)
        )
    except Exception as error:  # each setting has checks of its own
        raise CheckpointError(
            f"{path}: expected settings of generate(), found: {one_line(error)[:300]}; mend it, copy it again, or "
            "remove it, where the defaults are wanted"
        ) from error
