"""An adapter's folder and that of its base, seen as one folder of links: nothing is copied."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xattn_export.families.checkpoint_folder.weights.adapter import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    is_adapter,
    refusal_without_base,
)
from xattn_runtime.errors import CheckpointError, UserError, XattnError

__all__ = ["TO_MERGE", "whole_folder"]

TO_MERGE = ".adapter-to-merge"
"""Where, in the folder of `whole_folder`, the adapter's own files lie."""

_OWN = (ADAPTER_CONFIG, *ADAPTER_WEIGHTS)
# Files that belong together: where the adapter has one of them, none of the base's is taken.
_TOGETHER = (
    (
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
        "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
    ),
    ("preprocessor_config.json", "processor_config.json"),
)  # fmt: skip
_OF_TRAINING = (".bin", ".ckpt", ".pt", ".pth", ".safetensors")


@contextmanager
def whole_folder(folder: Path, base: Path | None, name: str) -> Iterator[Path]:
    """The folder to open: `folder` itself, or one called `name` of an adapter in it and the model in `base`.

    What is raised inside names the files of the two, not those of the folder in between.

    Raises:
        UserError: a base beside a whole model.
        CheckpointError: an adapter without a base, or a base that is no whole model.
    """
    if not is_adapter(folder):
        if base is not None:
            raise UserError(
                f"--base: expected an adapter of PEFT to add to it, found a whole model in {folder}; leave it out"
            )
        if (folder / ADAPTER_CONFIG).is_file():
            logging.getLogger("xattn_export").info(
                f"{folder}: the weights are taken as they are: {ADAPTER_CONFIG} beside them is not looked at"
            )
        yield folder
        return
    if base is None:
        raise refusal_without_base(folder)
    if is_adapter(base):
        raise CheckpointError(f"{base}: expected the whole model that the adapter was trained on, found an adapter too")
    with tempfile.TemporaryDirectory(prefix="xattn-export-") as place:
        whole = Path(place) / name
        links = _lay_together(folder, base, whole)
        try:
            yield whole
        except XattnError as error:
            text = str(error)
            for link, file in links.items():
                text = text.replace(str(link), str(file))
            text = text.replace(str(whole / TO_MERGE), str(folder)).replace(str(whole), str(base))
            raise type(error)(text) from error


def _lay_together(folder: Path, base: Path, whole: Path) -> dict[Path, Path]:
    """Fill `whole` with links to the files of both; link → file."""
    own = {path.name: path for path in folder.iterdir() if path.is_file() and path.suffix not in _OF_TRAINING}
    taken = {name for names in _TOGETHER if own.keys() & set(names) for name in names}
    files = {path.name: path for path in base.iterdir() if path.is_file() and path.name not in taken | set(_OWN)}
    files |= {name: path for name, path in own.items() if name not in ("config.json", *_OWN)}
    links = {whole / name: path for name, path in files.items()}
    links |= {whole / TO_MERGE / name: folder / name for name in _OWN if (folder / name).is_file()}
    (whole / TO_MERGE).mkdir(parents=True)
    for link, path in links.items():
        try:
            link.symlink_to(path.resolve())
        except OSError:  # a system that has no links, or not for everyone
            shutil.copy2(path, link)
    return links
