"""The tokenizer in a folder as Transformers loads it: what a bundle's tokenizer must agree with.

`AutoTokenizer` reads all that stands in the folder: vocabularies, tokenizer.json, and the settings beside them. No code
that came with a checkpoint is run, and nothing is fetched. It knows how a tokenizer is found, and not how it is
carried over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer

from xattn_export.families.checkpoint_folder.json_files import read_json
from xattn_export.families.checkpoint_folder.quiet import quiet_transformers
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import one_line, show

__all__ = ["SETTINGS", "TOKENIZER", "Original", "guarded", "load_original"]

_Result = TypeVar("_Result")

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
_VOCABULARIES = ("vocab.txt", "vocab.json")
_JAPANESE = "BertJapaneseTokenizer"
# How Transformers says that a class cannot make a tokenizer of the files that are there.
_NO_BACKEND = "Couldn't instantiate the backend tokenizer"


@dataclass(frozen=True)
class Original:
    """A tokenizer of Transformers, and the folder that it was loaded from."""

    folder: Path
    tokenizer: Any

    @property
    def name(self) -> str:
        """Its class."""
        return type(self.tokenizer).__name__

    @property
    def backend(self) -> Tokenizer | None:
        """The tokenizer of the `tokenizers` library that it is made of; None where it is written in Python."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return backend if isinstance(backend, Tokenizer) else None

    @property
    def special(self) -> dict[str, str]:
        """The special token of every place, such as `pad_token`, that has one."""
        return dict(self.tokenizer.special_tokens_map)

    @property
    def added(self) -> dict[int, Any]:
        """Tokens that are looked for before a text is taken apart, by id."""
        return dict(self.tokenizer.added_tokens_decoder)

    def ids_of(self, texts: Sequence[str], *, special_tokens: bool = True) -> list[list[int]]:
        """The token ids of texts."""
        with quiet_transformers():
            ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=special_tokens)["input_ids"]
        return ids

    def decode_all(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """The texts of token ids, special tokens and surrounding blanks left out."""
        with quiet_transformers():
            texts: list[str] = self.tokenizer.batch_decode([list(ids) for ids in sequences], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The same for one sequence."""
        return self.decode_all([ids])[0]


def load_original(folder: Path) -> Original:
    """The tokenizer that Transformers loads from `folder`.

    Raises:
        CheckpointError: there is none, it is damaged, needs code of its own, or has other ids than its files say.
    """
    settings = _check_files(folder)
    with quiet_transformers():
        tokenizer = guarded(partial(_first_loaded, folder, settings), partial(_unusable, folder, settings))
    original = Original(folder, tokenizer)
    _check_words(original)
    _check_ids(original, settings)
    return original


def guarded(work: Callable[[], _Result], problem: Callable[[BaseException], CheckpointError]) -> _Result:
    """What `work` gives; where a tokenizer fails in it, the error that `problem` makes of that."""
    try:
        return work()
    except CheckpointError:
        raise
    except BaseException as error:  # Transformers raises many kinds, the Rust library panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise problem(error) from error


def _check_files(folder: Path) -> dict[str, Any]:
    """The settings of the tokenizer; CheckpointError where a file is damaged or no file holds a vocabulary."""
    settings = read_json(folder / SETTINGS)
    for name in ("special_tokens_map.json", "added_tokens.json"):
        read_json(folder / name)
    names = (TOKENIZER, *_VOCABULARIES)
    if not any((folder / name).is_file() for name in names) and not any(folder.glob("*.model")):
        raise CheckpointError(
            f"{folder}: expected a tokenizer (tokenizer.json, vocab.txt, vocab.json with merges.txt, or a "
            "sentencepiece model), found none; save the tokenizer or processor into this folder"
        )
    return settings


def _first_loaded(folder: Path, settings: Mapping[str, Any]) -> Any:
    """The first tokenizer that loads and is made of the files of `folder`."""
    errors: list[Exception] = []
    for load in _ways(folder, settings):
        try:
            tokenizer = load()
        except Exception as error:  # each class has checks of its own
            errors.append(error)
            continue
        if _is_read(folder, tokenizer):
            return tokenizer
        missing = ", ".join(name for name in type(tokenizer).vocab_files_names.values() if name != TOKENIZER)
        errors.append(ValueError(f"no {missing} of the {type(tokenizer).__name__} that the settings name"))
    # Where `AutoTokenizer` has no class to start from, the next knows better what is wrong.
    raise errors[min(1, len(errors) - 1)]


def _ways(folder: Path, settings: Mapping[str, Any]) -> Iterator[Callable[[], Any]]:
    """`AutoTokenizer`, and what else may load the folder where that does not know how."""
    from transformers import AutoTokenizer

    auto = partial(AutoTokenizer.from_pretrained, folder, local_files_only=True, trust_remote_code=False)
    yield auto
    config = read_json(folder / "config.json")
    stated = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if stated is None and "auto_map" not in settings:
        parts = [part for name in ("text_config", "decoder") if isinstance(part := config.get(name), dict)]
        for part in (*parts, config):
            stated = stated or part.get("tokenizer_class")
            if isinstance(stated, str):
                yield partial(_class_of(stated).from_pretrained, folder, local_files_only=True)
            elif isinstance(kind := part.get("model_type"), str):
                yield partial(auto, tokenizer_type=kind)
        for name, kind in (("vocab.txt", "bert"), ("merges.txt", "gpt2"), ("sentencepiece.bpe.model", "xlm-roberta")):
            if (folder / name).is_file():
                yield partial(auto, tokenizer_type=kind)
    if isinstance(stated, str) and stated.removesuffix("Fast") == _JAPANESE:
        # Only what reads texts needs a segmenter, which may not be installed; what writes them does not.
        yield partial(_class_of(_JAPANESE).from_pretrained, folder, local_files_only=True, do_word_tokenize=False)


def _class_of(name: str) -> Any:
    import transformers

    found = getattr(transformers, name, None) or getattr(transformers, name.removesuffix("Fast"), None)
    if found is None:
        raise ValueError(f"Transformers has no class {name}")
    return found


def _is_read(folder: Path, tokenizer: Any) -> bool:
    """Whether it is made of the folder's files: some classes make up a vocabulary where theirs are missing."""
    names = [name for name in type(tokenizer).vocab_files_names.values() if name]
    return not hasattr(tokenizer, "backend_tokenizer") or any((folder / name).is_file() for name in (TOKENIZER, *names))


def _unusable(folder: Path, settings: Mapping[str, Any], error: BaseException) -> CheckpointError:
    if "auto_map" in settings:
        return CheckpointError(
            f"{folder / SETTINGS}: auto_map: expected a tokenizer of Transformers, found code of its own, which is "
            "never run; save the tokenizer as a PreTrainedTokenizerFast, with its tokenizer.json, into this folder"
        )
    path = next((path for name in (TOKENIZER, *_VOCABULARIES) if (path := folder / name).is_file()), folder)
    if "tokenizer_class" in settings and _NO_BACKEND in str(error):
        return CheckpointError(
            f"{folder / SETTINGS}: tokenizer_class: expected a class of Transformers that reads {path.name}, found "
            f"{show(settings['tokenizer_class'])}; name the class that the file is of, or save a {TOKENIZER} beside it"
        )
    return CheckpointError(
        f"{path}: expected a tokenizer, found: {one_line(error)[:300]}; copy it again, or save a tokenizer.json "
        "beside it"
    )


def _check_words(original: Original) -> None:
    backend = original.backend
    if backend is not None and not backend.get_vocab_size(with_added_tokens=False):
        raise _unusable(original.folder, {}, ValueError(f"no words for a {original.name}"))


def _check_ids(original: Original, settings: Mapping[str, Any]) -> None:
    """CheckpointError where an added token has another id than the files say: the model was trained with theirs."""
    name, key, stated = SETTINGS, "added_tokens_decoder: ", settings.get("added_tokens_decoder")
    if isinstance(stated, dict):
        words = {int(number): token.get("content") for number, token in stated.items() if isinstance(token, dict)}
    else:
        name, key = "added_tokens.json", ""
        words = {number: word for word, number in read_json(original.folder / name).items()}
    for number, word in sorted(words.items()):
        found = original.tokenizer.convert_tokens_to_ids(word)
        if found != number:
            raise CheckpointError(
                f"{original.folder / name}: {key}expected the added token {show(word)} to have the id {number}, found "
                f"{found}; these tokens were added to another vocabulary"
            )
