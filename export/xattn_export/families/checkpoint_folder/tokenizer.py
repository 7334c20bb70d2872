"""Tokenizers of Transformers folders as one tokenizer.json of the `tokenizers` library, which is all the runtime reads.

A tokenizer.json is taken as it is. WordPiece (vocab.txt) and byte-level BPE (vocab.json, merges.txt) are put together
from their files as Transformers' own classes do it: models/{bert,gpt2,roberta,clip}/tokenization_*.py. What else there
is, sentencepiece models above all, Transformers converts. No code that came with a checkpoint is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from xattn_export.families.checkpoint_folder.json_files import read_json
from xattn_export.families.checkpoint_folder.quiet import quiet_transformers
from xattn_export.families.checkpoint_folder.sentencepiece import siglip_tokenizer
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import one_line, show

__all__ = ["cleans_up_spaces", "special_token_of", "tokenizer_json_of"]

_PLACES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_OTHERS = ("additional_special_tokens", "extra_special_tokens")
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class _Parts:
    """What the JSON files beside a vocabulary say.

    settings: tokenizer_config.json. special: the special token of every place, such as `cls_token`, that has one.
    added: tokens by the id that they must have. others: special tokens without a required id.
    """

    folder: Path
    settings: Mapping[str, Any]
    special: Mapping[str, AddedToken]
    added: Mapping[int, AddedToken]
    others: tuple[AddedToken, ...]

    def flag(self, name: str, default: bool) -> bool:
        """A setting that is true or false."""
        value = self.settings.get(name)
        return default if value is None else bool(value)

    def word(self, place: str) -> str:
        """The special token of `place`, as text."""
        return str(self.special[place].content)


@dataclass(frozen=True)
class _Kind:
    """A tokenizer that is put together here.

    classes: names of classes, without `Tokenizer` and in lower case, and model types that have it. vocabulary: its
    files. special: its special tokens unless others are stated.
    """

    classes: tuple[str, ...]
    vocabulary: tuple[str, ...]
    special: Mapping[str, str]
    build: Callable[[_Parts], Tokenizer]


def tokenizer_json_of(folder: Path) -> str:
    """The tokenizer in `folder` as tokenizer.json, truncation and padding off.

    Raises:
        CheckpointError: there is none, it is damaged, or nothing here can convert it.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        tokenizer = _guarded(path, lambda: Tokenizer.from_file(str(path)))
    elif kind := _kind_of(folder):
        parts = _read_parts(folder, kind)
        tokenizer = _guarded(folder / kind.vocabulary[0], lambda: kind.build(parts))
    elif any(folder.glob("*.model")) or any((folder / name).is_file() for name in ("vocab.txt", "vocab.json")):
        tokenizer = _guarded(folder, lambda: _by_transformers(folder))
    else:
        raise CheckpointError(
            f"{folder}: expected a tokenizer (tokenizer.json, vocab.txt, vocab.json with merges.txt, or a "
            "sentencepiece model), found none; save the tokenizer or processor into this folder"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return str(tokenizer.to_str())


def cleans_up_spaces(folder: Path) -> bool:
    """Whether decoded text loses the blanks before punctuation, as in Transformers' `decode`.

    It does not for BPE unless forced, since there every blank is in the tokens.
    """
    settings = read_json(folder / "tokenizer_config.json")
    if not settings.get("clean_up_tokenization_spaces"):
        return False
    forced = settings.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
    return bool(forced or json.loads(tokenizer_json_of(folder))["model"].get("type") != "BPE")


def special_token_of(folder: Path, place: str) -> str | None:
    """The token of `place`, such as `pad_token`, that the tokenizer's settings state, or that its kind has."""
    kind = _kind_of(folder)
    settings = read_json(folder / "tokenizer_config.json")
    stated = _content({**read_json(folder / "special_tokens_map.json"), **settings}.get(place))
    word = stated or (kind.special.get(place) if kind else None)
    return word if isinstance(word, str) else None


def _wordpiece(parts: _Parts) -> Tokenizer:
    """`BertTokenizer`."""
    lines = (parts.folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    vocabulary = {word: number for number, word in enumerate(lines[:-1] if lines[-1] == "" else lines)}
    if parts.word("unk_token") not in vocabulary:
        raise ValueError(f"no unknown token {parts.word('unk_token')!r} in the vocabulary")
    tokenizer = _with_tokens(models.WordPiece(vocabulary, unk_token=parts.word("unk_token")), parts)
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=parts.flag("tokenize_chinese_chars", True),
        strip_accents=parts.settings.get("strip_accents"),
        lowercase=parts.flag("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    begin, end = parts.word("cls_token"), parts.word("sep_token")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin}:0 $A:0 {end}:0",
        pair=f"{begin}:0 $A:0 {end}:0 $B:1 {end}:1",
        special_tokens=[(word, _id_of(tokenizer, word)) for word in (begin, end)],
    )
    return tokenizer


def _gpt2(parts: _Parts) -> Tokenizer:
    """`GPT2Tokenizer`; OPT's adds the token for the beginning."""
    tokenizer = _byte_level_bpe(parts)
    begin = [parts.word("bos_token")] if parts.flag("add_bos_token", False) else []
    end = [parts.word("eos_token")] if parts.flag("add_eos_token", False) else []
    if begin or end:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*begin, "$A", *end],
            pair=[*begin, "$A", *end, *(f"{word}:1" for word in begin), "$B:1", *(f"{word}:1" for word in end)],
            special_tokens=[(word, _id_of(tokenizer, word)) for word in dict.fromkeys((*begin, *end))],
        )
    return tokenizer


def _roberta(parts: _Parts) -> Tokenizer:
    """`RobertaTokenizer`."""
    tokenizer = _byte_level_bpe(parts)
    end, begin = ((word, _id_of(tokenizer, word)) for word in (parts.word("sep_token"), parts.word("cls_token")))
    prefix_space = parts.flag("add_prefix_space", False)
    tokenizer.post_processor = processors.RobertaProcessing(end, begin, parts.flag("trim_offsets", True), prefix_space)
    return tokenizer


def _byte_level_bpe(parts: _Parts) -> Tokenizer:
    model = models.BPE(*_bpe_files(parts), continuing_subword_prefix="", end_of_word_suffix="")
    tokenizer = _with_tokens(model, parts)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=parts.flag("add_prefix_space", False))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _clip(parts: _Parts) -> Tokenizer:
    """`CLIPTokenizer`: lower case, and words and signs apart before the bytes are looked at."""
    model = models.BPE(
        *_bpe_files(parts), continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=parts.word("unk_token")
    )
    tokenizer = _with_tokens(model, parts)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    end, begin = ((word, _id_of(tokenizer, word)) for word in (parts.word("eos_token"), parts.word("bos_token")))
    tokenizer.post_processor = processors.RobertaProcessing(end, begin, trim_offsets=False, add_prefix_space=False)
    return tokenizer


def _siglip(parts: _Parts) -> Tokenizer:
    """`SiglipTokenizer`: nothing at the beginning, `</s>` at the end."""
    tokenizer = siglip_tokenizer(parts.folder / "spiece.model", lower_case=parts.flag("do_lower_case", True))
    tokenizer = _add_tokens(tokenizer, parts)
    end = parts.word("eos_token")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B:1 {end}:1", special_tokens=[(end, _id_of(tokenizer, end))]
    )
    return tokenizer


def _bpe_files(parts: _Parts) -> tuple[dict[str, int], list[tuple[str, str]]]:
    files = parts.folder / "vocab.json", parts.folder / "merges.txt"
    vocabulary, merges = models.BPE.read_file(*map(str, files))
    return vocabulary, merges


def _by_transformers(folder: Path) -> Tokenizer:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise CheckpointError(
            f"{folder}: expected a tokenizer.json, or Transformers to convert what there is, found neither; "
            'run pip install "xattn-edge[export]"'
        ) from error
    with quiet_transformers():
        converted = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    backend = getattr(converted, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise CheckpointError(
            f"{folder}: expected a tokenizer that the `tokenizers` library has, found {type(converted).__name__}; "
            "save a fast tokenizer, with its tokenizer.json, into this folder"
        )
    return Tokenizer.from_str(backend.to_str())


def _kind_of(folder: Path) -> _Kind | None:
    """Which of the kinds below the tokenizer in `folder` is, by what its own or else the model's settings name."""
    config = read_json(folder / "config.json")
    parts = [config, *(part for name in ("text_config", "decoder") if isinstance(part := config.get(name), dict))]
    names = [
        read_json(folder / "tokenizer_config.json").get("tokenizer_class"),
        *(part.get(key) for part in reversed(parts) for key in ("tokenizer_class", "model_type")),
    ]
    stated = [re.sub("tokenizer(fast)?$", "", name.lower()) for name in names if isinstance(name, str)]
    for kind in _KINDS:
        if all((folder / name).is_file() for name in kind.vocabulary) and (not stated or stated[0] in kind.classes):
            return kind
    return None


def _read_parts(folder: Path, kind: _Kind) -> _Parts:
    settings = read_json(folder / "tokenizer_config.json")
    stated = {**read_json(folder / "special_tokens_map.json"), **settings}
    special = dict(kind.special) | {place: stated[place] for place in _PLACES if stated.get(place) is not None}
    stated_tokens = settings.get("added_tokens_decoder")
    added = {int(number): token for number, token in stated_tokens.items()} if isinstance(stated_tokens, dict) else {}
    listed = {number: token for token, number in read_json(folder / "added_tokens.json").items()}
    others = [token for key in _OTHERS if isinstance(stated.get(key), list) for token in stated[key]]
    marked = {_content(token) for token in (*special.values(), *others)}
    return _Parts(
        folder=folder,
        settings=settings,
        special={place: _token(token, folder, special=True) for place, token in special.items()},
        added={
            number: _token(token, folder, special=_content(token) in marked)
            for number, token in (listed | added).items()
        },
        others=tuple(_token(token, folder, special=True) for token in others),
    )


def _token(value: object, folder: Path, *, special: bool) -> AddedToken:
    """A token, written as text or as an object with its flags."""
    flags = value if isinstance(value, dict) else {}
    content = _content(value)
    if not isinstance(content, str) or not content:
        raise CheckpointError(f"{folder}: expected the text of a special token, found {show(value)}")
    special = bool(flags.get("special", special)) or special
    return AddedToken(
        content,
        single_word=bool(flags.get("single_word", False)),
        lstrip=bool(flags.get("lstrip", False)),
        rstrip=bool(flags.get("rstrip", False)),
        normalized=bool(flags.get("normalized", not special)),
        special=special,
    )


def _content(value: object) -> object:
    return value.get("content") if isinstance(value, dict) else value


def _with_tokens(model: Any, parts: _Parts) -> Tokenizer:
    """A tokenizer of `model` with every token that is matched before the model sees a text."""
    return _add_tokens(Tokenizer(model), parts)


def _add_tokens(tokenizer: Tokenizer, parts: _Parts) -> Tokenizer:
    for token_id, token in sorted(parts.added.items()):
        tokenizer.add_tokens([token])
        if (actual_id := tokenizer.token_to_id(token.content)) != token_id:
            raise CheckpointError(
                f"{parts.folder}: expected the added token {show(token.content)} to have the id {token_id}, found "
                f"{actual_id}; these tokens were added to another vocabulary"
            )
    known = {token.content for token in parts.added.values()}
    tokenizer.add_tokens([token for token in (*parts.special.values(), *parts.others) if token.content not in known])
    return tokenizer


def _id_of(tokenizer: Tokenizer, word: str) -> int:
    token_id = tokenizer.token_to_id(word)
    if token_id is None:
        raise ValueError(f"no special token {word!r} in the vocabulary")
    return int(token_id)


def _guarded(path: Path, build: Callable[[], Tokenizer]) -> Tokenizer:
    try:
        return build()
    except CheckpointError:
        raise
    except Exception as error:  # the Rust library raises bare Exception, Transformers many kinds
        raise CheckpointError(
            f"{path}: expected a tokenizer, found: {one_line(error)}; copy it again, or save a tokenizer.json beside it"
        ) from error


_BERT_CLASSES = (
    "bert", "distilbert", "mobilebert", "squeezebert", "convbert", "electra", "layoutlm", "lxmert", "visual_bert",
    "vilt", "blip", "blip_text_model", "git",
)  # fmt: skip
_KINDS = (
    _Kind(
        classes=_BERT_CLASSES,
        vocabulary=("vocab.txt",),
        special={
            "unk_token": "[UNK]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "mask_token": "[MASK]",
        },
        build=_wordpiece,
    ),
    _Kind(
        classes=("gpt2", "opt"),
        vocabulary=("vocab.json", "merges.txt"),
        special=dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
        build=_gpt2,
    ),
    _Kind(
        classes=("roberta", "bart", "longformer", "led"),
        vocabulary=("vocab.json", "merges.txt"),
        special={
            "bos_token": "<s>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "cls_token": "<s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
        build=_roberta,
    ),
    _Kind(
        classes=("clip", "clip_text_model"),
        vocabulary=("vocab.json", "merges.txt"),
        special={
            "bos_token": "<|startoftext|>",
            **dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
        },
        build=_clip,
    ),
    _Kind(
        classes=("siglip", "siglip_text_model"),
        vocabulary=("spiece.model",),
        special={"unk_token": "<unk>", **dict.fromkeys(("eos_token", "pad_token"), "</s>")},
        build=_siglip,
    ),
)
