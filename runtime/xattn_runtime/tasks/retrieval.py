"""Image-text retrieval: images and texts to embeddings of one space, and what is nearest to what.

It joins preprocessing, tokenizer and the two encoders of one bundle, and knows nothing of the model in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.arguments import float_array, text, whole_number
from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.bundle.manifest import GoldenCase, Similarity
from xattn_runtime.errors import BundleError, QuestionError, UserError
from xattn_runtime.execution.session import GraphSession, SessionSettings, Tensor, open_session
from xattn_runtime.execution.settings import session_settings
from xattn_runtime.json_reader import show
from xattn_runtime.preprocess.text import TextCodec
from xattn_runtime.retrieval.match import Embeddings, Match
from xattn_runtime.tasks.protocol import CaseResult, Task, TaskInput, TaskResult, Times
from xattn_runtime.tasks.shared.closing import Closable, while_open
from xattn_runtime.tasks.shared.image_encoder import (
    EncodedImage,
    ImageReader,
    milliseconds_since,
    padded,
)
from xattn_runtime.tasks.shared.several import several_images, several_texts

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput

__all__ = ["TEMPLATE", "Classification", "ClassificationTiming", "LabelScore", "Match", "RetrievalTask"]

TEMPLATE = "a photo of a {label}"
"""What is said of an image for each label."""

_TEXT_BATCH = 64
_IMAGE_OUTPUT, _TEXT_OUTPUT = "image_embeddings", "text_embeddings"
_RERANKER = "reranker"


@dataclass(frozen=True)
class LabelScore:
    """A label, how probable the model finds it, and the cosine of its text's embedding and the image's."""

    label: str
    probability: float
    cosine: float


@dataclass(frozen=True)
class ClassificationTiming:
    """Milliseconds of each stage; 0 for what an `EncodedImage` had behind it."""

    preprocess: float
    encode: float
    labels: float
    total: float


@dataclass(frozen=True)
class Classification:
    """All labels, the most probable first.

    among_labels: whether the probabilities are those of one label among all, and sum to 1; else each is of its own.
    """

    label: str
    probability: float
    scores: tuple[LabelScore, ...]
    among_labels: bool
    timing_ms: ClassificationTiming


def _seen(image: EncodedImage) -> dict[str, Tensor]:
    return {name: image.tensors[name] for name in ("image_tokens", "image_mask")}


class RetrievalTask(Closable, Task):
    """A retrieval bundle, loaded. Calls from several threads at once are safe, and run side by side."""

    def __init__(self, bundle: Bundle, provider: str | SessionSettings = "cpu", threads: int | None = None) -> None:
        """Load the graphs of `bundle`; `threads` within an operator, by default the cores, at most 4.

        Raises BundleError, ProviderError or DependencyError.
        """
        manifest = bundle.manifest
        if manifest.similarity is None:
            raise BundleError(f"{bundle.path}: expected a bundle for retrieval, found one for {manifest.task}")
        self.bundle = bundle
        self.settings = session_settings(provider, threads, bundle)
        self._similarity = manifest.similarity
        self._images = ImageReader(bundle, self.settings)
        self._texts = open_session(bundle, "text_encoder", self.settings)
        _check_widths(self._images.session, self._texts)
        reranks = _RERANKER in manifest.graphs
        self._reranker = open_session(bundle, _RERANKER, self.settings) if reranks else None
        self._codec = TextCodec(bundle.file(manifest.tokenizer.file), manifest.tokenizer)

    @while_open
    def encode(self, image: ImageInput) -> EncodedImage:
        """The image, encoded, and what that cost; ImageError where it cannot be used."""
        return self._images.encode(image)

    @property
    def reranks(self) -> bool:
        """Whether the bundle can compare a text and images once more, by cross-attention."""
        return self._reranker is not None

    @while_open
    def rerank(
        self, text: str, images: Iterable[ImageInput | EncodedImage], cosines: Sequence[float]
    ) -> NDArray[np.float32]:
        """Scores of images for a text, float32 `[images]`: the logit of their match and that of their cosine, added.

        Raises:
            ImageError: an image cannot be used.
            QuestionError: the text is empty, too long, or of no known word.
            UserError: the bundle has no graph for it.
        """
        reranker, text_inputs = self._reranker_inputs([self._codec.encode_question(text, kind="text").ids])
        scores = self._similarity.scale * float_array("cosines", cosines, "[images]", 1)
        matches = [
            reranker.run(["match"], {**text_inputs, **_seen(encoded)})[0][0, 0]
            for encoded in self._images.encode_many(several_images(images))
        ]
        if len(matches) != len(scores):
            raise UserError(f"cosines: expected one for each of {len(matches)} images, found {len(scores)}")
        return scores + np.array(matches, dtype=np.float32)

    @while_open
    def beginnings_match(self, text: str, image: ImageInput) -> NDArray[np.float32]:
        """Logits of a match of the image with the text's first token, its first two, and so on, float32 `[tokens]`.

        They are what golden cases compare. Raises what `rerank` does.
        """
        ids, seen = self._codec.encode_question(text, kind="text").ids, _seen(self.encode(image))
        logits = []
        for end in range(1, len(ids) + 1):
            reranker, text_inputs = self._reranker_inputs([ids[:end]])
            logits.append(reranker.run(["match"], {**text_inputs, **seen})[0][0, 0])
        return np.array(logits, dtype=np.float32)

    def _reranker_inputs(self, texts: Sequence[Sequence[int]]) -> tuple[GraphSession, dict[str, Tensor]]:
        if self._reranker is None:
            raise UserError(f"{self.bundle.path}: expected a bundle with a reranker, found none; do without re-ranking")
        inputs = padded(texts)
        (tokens,) = self._texts.run(["text_tokens"], inputs)
        return self._reranker, {"text_tokens": tokens, "attention_mask": inputs["attention_mask"]}

    @while_open
    def embed_images(self, images: Iterable[ImageInput | EncodedImage]) -> Embeddings:
        """Embeddings of images, each as it is when it is given; ImageError where one cannot be used.

        UserError for one image in place of several.
        """
        encoded_images = self._images.encode_many(several_images(images))
        embeddings = [encoded.tensors[_IMAGE_OUTPUT] for encoded in encoded_images]
        return np.concatenate(embeddings) if embeddings else self._none()

    @while_open
    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """Embeddings of texts; QuestionError where one is empty, too long, or of no known word."""
        return self._embed_texts(several_texts(texts, "texts"), "text")

    @while_open
    def classify(
        self, image: ImageInput | EncodedImage, labels: Sequence[str], template: str = TEMPLATE
    ) -> Classification:
        """How probable each of `labels` is for an image, by a text made of each with `template`.

        Raises:
            ImageError: the image cannot be used.
            QuestionError: a label is empty, too long, or of no known word.
            UserError: no labels, the same label twice, a template without `{label}` in it once, a single label where
                the model chooses among labels, or a model that states no probability.
        """
        labels = self._checked_labels(labels, template)
        began = time.perf_counter()
        known = isinstance(image, EncodedImage)
        encoded = self._images.encoded(image)
        labels_began = time.perf_counter()
        texts = self._embed_texts([template.replace("{label}", label) for label in labels], "label")
        matches = self.rank(encoded.tensors[_IMAGE_OUTPUT][0], texts, top_k=len(labels))
        timing = ClassificationTiming(
            preprocess=0.0 if known else encoded.preprocess_ms,
            encode=0.0 if known else encoded.encode_ms,
            labels=milliseconds_since(labels_began),
            total=milliseconds_since(began),
        )
        scores = tuple(LabelScore(labels[match.index], match.probability or 0.0, match.cosine) for match in matches)
        among_labels = self._similarity.kind == "softmax"
        return Classification(scores[0].label, scores[0].probability, scores, among_labels, timing)

    def _checked_labels(self, labels: Sequence[str], template: str) -> list[str]:
        kind = self._similarity.kind
        if kind == "cosine":
            raise UserError(
                f"{self.bundle.path}: expected a model that states probabilities, such as CLIP or SigLIP, found one "
                "that only compares; use `xattn-edge retrieve`"
            )
        if text("template", template).count("{label}") != 1:
            raise UserError(f"template: expected a text with {{label}} in it once, found {show(template)}")
        stripped = [label.strip() for label in several_texts(labels, "labels")]
        if len(stripped) < (fewest := 2 if kind == "softmax" else 1):
            reason = "; this model chooses among them" if stripped else "; say what the image may show"
            raise UserError(f"labels: expected at least {fewest}, found {len(stripped)}{reason}")
        for place, label in enumerate(stripped):
            if not label:
                raise QuestionError(f"labels: expected a text, found an empty one as number {place + 1}; remove it")
            if label in stripped[:place]:
                raise UserError(f"labels: expected each label once, found {show(label)} twice; remove one")
        return stripped

    def _embed_texts(self, texts: Sequence[str], kind: str) -> Embeddings:
        ids = [self._codec.encode_question(text, kind=kind).ids for text in texts]
        parts = [ids[start : start + _TEXT_BATCH] for start in range(0, len(ids), _TEXT_BATCH)]
        embeddings = [self._texts.run([_TEXT_OUTPUT], padded(part))[0] for part in parts]
        return np.concatenate(embeddings) if embeddings else self._none()

    @while_open
    def rank(
        self, query: Embeddings, candidates: Embeddings | Sequence[Embeddings], top_k: int = 10
    ) -> tuple[Match, ...]:
        """The `top_k` of `candidates`, `[width]` each, that are nearest to `query` `[width]`, the nearest first.

        Raises UserError for a `top_k` below 1.
        """
        top_k = whole_number("top_k", top_k, 1)
        query = float_array("query", query, "[width]", 1)
        if isinstance(candidates, list | tuple) and not candidates:
            return ()
        rows = float_array("candidates", candidates, "[candidates, width]", 2)
        if rows.shape[1] != len(query):
            raise UserError(f"candidates: expected {len(query)} numbers each, as in query, found {rows.shape[1]}")
        cosines = rows @ query
        probabilities = _probabilities(cosines, self._similarity)
        order = np.argsort(-cosines, kind="stable")[:top_k]
        return tuple(
            Match(int(i), float(cosines[i]), None if probabilities is None else float(probabilities[i])) for i in order
        )

    @while_open
    def answer(self, task_input: TaskInput) -> TaskResult:
        """See `Task`: image and text are embedded, and nothing is said of them."""
        self.embed_images([task_input.image])
        if task_input.text is not None:
            self.embed_texts([task_input.text])
        return TaskResult()

    @while_open
    def run_case(self, case: GoldenCase) -> CaseResult:
        """See `Task`: both embeddings; and how far the text's beginnings match, with a reranker."""
        image, query = self.bundle.file(case.image), case.query or ""
        tensors = {_IMAGE_OUTPUT: self.embed_images([image])[0], _TEXT_OUTPUT: self.embed_texts([query])[0]}
        if self.reranks:
            tensors["match"] = np.append(np.float32(0), self.beginnings_match(query, image))
        return CaseResult(tensors)

    @while_open
    def timed(self, image: ImageInput, case: GoldenCase) -> Times:
        """See `Task`: preprocess, encode, embed_text, total."""
        began = time.perf_counter()
        encoded = self.encode(image)
        text_began = time.perf_counter()
        self.embed_texts([case.query or ""])
        return {
            "preprocess": [encoded.preprocess_ms],
            "encode": [encoded.encode_ms],
            "embed_text": [milliseconds_since(text_began)],
            "total": [milliseconds_since(began)],
        }

    @property
    def width(self) -> int:
        """Width of an embedding."""
        width = self._texts.output_shapes[_TEXT_OUTPUT][1]
        return width if isinstance(width, int) else 0

    def _none(self) -> Embeddings:
        return np.zeros((0, self.width), dtype=np.float32)


def _probabilities(cosines: NDArray[np.float32], similarity: Similarity) -> NDArray[np.float64] | None:
    scores = similarity.scale * cosines.astype(np.float64) + similarity.bias
    if similarity.kind == "cosine" or not len(scores):
        return None
    if similarity.kind == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-scores)), dtype=np.float64)
    weights = np.exp(scores - scores.max())
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _check_widths(images: GraphSession, texts: GraphSession) -> None:
    one, other = images.output_shapes[_IMAGE_OUTPUT][1], texts.output_shapes[_TEXT_OUTPUT][1]
    if isinstance(one, int) and isinstance(other, int) and one != other:
        raise BundleError(
            f"{texts.path}: output {_TEXT_OUTPUT}: expected width {one}, as {images.path} gives, found {other}; "
            "export it again"
        )
