"""What a folder of the shelf is, and how its files are written: as the version of Transformers did that saved it.

It knows JSON and weights, and no architecture.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.parity.parity import randomize
from tests.parity.shelf.truths import Truth
from xattn_runtime.bundle.manifest import TaskName

__all__ = [
    "RESCALED",
    "Found",
    "Origin",
    "Published",
    "added_tokens",
    "position_ids",
    "put_json",
    "put_weights",
    "random_model",
    "token",
    "written_out",
]

RESCALED: Mapping[str, Any] = {"do_rescale": True, "rescale_factor": 0.00392156862745098}
"""In every preprocessor_config.json since 4.26."""

_WRITTEN_OUT: Mapping[str, Any] = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "architectures": None,
    "bos_token_id": None,
    "cross_attention_hidden_size": None,
    "decoder_start_token_id": None,
    "eos_token_id": None,
    "finetuning_task": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "pad_token_id": None,
    "sep_token_id": None,
    "tie_word_embeddings": True,
    **dict.fromkeys(
        (
            "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id", "prefix", "problem_type",
            "task_specific_params", "tokenizer_class", "torch_dtype",
        )
    ),
    **dict.fromkeys(
        (
            "do_sample", "early_stopping", "output_attentions", "output_hidden_states", "output_scores",
            "remove_invalid_values", "return_dict_in_generate", "tie_encoder_decoder", "torchscript", "use_bfloat16",
        ),
        False,
    ),
    **dict.fromkeys(
        ("chunk_size_feed_forward", "encoder_no_repeat_ngram_size", "min_length", "no_repeat_ngram_size"), 0
    ),
    **dict.fromkeys(("num_beam_groups", "num_beams", "num_return_sequences"), 1),
    "diversity_penalty": 0.0,
    "length_penalty": 1.0,
    "max_length": 20,
    "pruned_heads": {},
    "repetition_penalty": 1.0,
    "return_dict": True,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
}  # fmt: skip
_SINCE_4_26: Mapping[str, Any] = {
    **dict.fromkeys(("begin_suppress_tokens", "exponential_decay_length_penalty", "suppress_tokens")),
    "tf_legacy_loss": False,
    "typical_p": 1.0,
}


class Origin(StrEnum):
    """Where the settings of a file were found."""

    OWN = "its own"
    AGAIN = "saved again"
    PROGRAM = "a program"
    TWIN = "a twin's"
    USUAL = "usual"
    NONE = "–"


@dataclass(frozen=True)
class Found:
    """Where the settings of each file of a folder were found; `–` is for a file that the folder lacks."""

    config: Origin
    generation: Origin
    images: Origin
    tokenizer: Origin


@dataclass(frozen=True)
class Published:
    """A published checkpoint whose folder form the shelf has, at a small size and with random weights.

    Args:
        name: under which it is published.
        saved_by: the version of Transformers that saved it.
        write: writes the folder.
        truth: what Transformers gives for the folder, read by its own classes.
        found: where the settings of its files were found.
        places: the public repositories that hold them, in words.
        task: to export it for, where that is not the family's own.
        is_quick: whether the tests that run by default take it too.
    """

    name: str
    saved_by: str
    write: Callable[[Path], None]
    truth: Callable[[Path], Truth]
    found: Found
    places: str
    task: TaskName | None = None
    is_quick: bool = False


def written_out(version: str, **settings: Any) -> dict[str, Any]:
    """A part of a config.json as Transformers 4.12 to 4.49 wrote it: all that every configuration has, and `settings`.

    Before `version` is "4.26" it has no keys of later decoding settings.
    """
    later = _SINCE_4_26 if tuple(map(int, version.split(".")[:2])) >= (4, 26) else {}
    return dict(sorted({**_WRITTEN_OUT, **later, "transformers_version": version, **settings}.items()))


def put_json(folder: Path, **files: Mapping[str, Any]) -> None:
    """Write `NAME.json` into the folder for every file by its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def token(content: str, **form: bool) -> dict[str, Any]:
    """A token as tokenizer_config.json and special_tokens_map.json write it out; what is not in `form` is false."""
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {"content": content, **plain, **form}


def added_tokens(words: Mapping[int, str | dict[str, Any]]) -> dict[str, Any]:
    """`added_tokens_decoder` of tokenizer_config.json, by id: special tokens, each a word or what `token` gives."""
    rows = ((number, token(word) if isinstance(word, str) else word) for number, word in sorted(words.items()))
    return {str(number): {**row, "special": True} for number, row in rows}


def position_ids(counts: Mapping[str, int]) -> dict[str, Tensor]:
    """The numbers of places that older files keep beside the weights: module → how many."""
    return {f"{name}.embeddings.position_ids": torch.arange(count)[None] for name, count in counts.items()}


def random_model(folder: Path, model_class: Any, *, seed: int = 3, gain: float = 1.0) -> Any:
    """A model of the folder's config.json with random weights that pass on values of the size that they get."""
    torch.manual_seed(seed)
    model = model_class(model_class.config_class.from_pretrained(folder, local_files_only=True)).float()
    randomize(model, seed, gain)
    return model.eval()


def put_weights(
    folder: Path,
    model: Any,
    *,
    pickled: bool = False,
    copies: Mapping[str, str] | None = None,
    more: Mapping[str, Tensor] | None = None,
    without: tuple[str, ...] = (),
) -> None:
    """Write the model's weights under the names that every version has for them.

    Args:
        pickled: as `pytorch_model.bin`, else as `model.safetensors`.
        copies: tensors that older files hold twice, new name → name.
        more: tensors that older versions kept beside the weights.
        without: names of tensors that the file does not have.
    """
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place)
        tensors = load_file(Path(place) / "model.safetensors")
    tensors |= {new: tensors[name].clone() for new, name in (copies or {}).items()}
    tensors |= dict(more or {})
    for name in without:
        del tensors[name]
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            folder / "model.safetensors",
            {"format": "pt"},
        )
