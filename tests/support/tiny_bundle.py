"""Tiny real bundles: ONNX graphs of a two-layer cross-attention model, and the same model in plain numpy.

The numpy model keeps no cache and recomputes every prefix, so that it is an independent reference for the runtime.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from xattn_runtime.bundle import manifest as m
from xattn_runtime.bundle.task_table import TASKS
from xattn_runtime.preprocess.steps import Flatten, Normalize, PadToSquare, Rescale, Resize

LAYERS, HEADS, HEAD_WIDTH, WIDTH, SIDE_PX = 2, 2, 4, 8, 16
PAD, UNKNOWN, START, END = 0, 1, 2, 3
SPECIAL = ["[PAD]", "[UNK]", "[START]", "[END]"]
WORDS = [*SPECIAL, "what", "is", "the", "red", "green", "cat", "dog", "of", "a", "on", "house"]
LABELS = ("yes", "no", "red", "green", "two")
MAX_NEW_TOKENS = 12
STEPS = (
    Flatten((255, 255, 255)),
    PadToSquare((255, 255, 255)),
    Resize(SIDE_PX, SIDE_PX, "bicubic"),
    Rescale(1 / 255),
    Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
)


class TinyModel:
    """The weights, their ONNX graphs, and their outputs by numpy."""

    def __init__(self, seed: int = 14) -> None:
        rng = np.random.default_rng(seed)

        def weight(*shape: int, scale: float = 1.0) -> np.ndarray:
            return rng.normal(size=shape, scale=scale).astype(np.float32)

        self.weights = {
            "patch": weight(WIDTH, 3, 8, 8, scale=0.2),
            "embed": weight(len(WORDS), WIDTH),
            "position": weight(MAX_NEW_TOKENS + 1, WIDTH),
            "out": weight(WIDTH, len(WORDS)),
            "answer": weight(WIDTH, len(LABELS)),
        }
        for layer in range(LAYERS):
            for name in ("q", "k", "v", "cq"):
                self.weights[f"{name}_{layer}"] = weight(WIDTH, WIDTH, scale=0.5)
            for name in ("ck", "cv"):
                self.weights[f"{name}_{layer}"] = weight(HEADS, HEAD_WIDTH, HEAD_WIDTH)

    def cross(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Cross keys and values of float32 `[batch, 3, 16, 16]`."""
        batch = pixels.shape[0]
        patches = pixels.reshape(batch, 3, 2, 8, 2, 8).transpose(0, 2, 4, 1, 3, 5).reshape(batch, 4, -1)
        tokens = np.tanh(patches @ self.weights["patch"].reshape(WIDTH, -1).T)
        heads = tokens.transpose(0, 2, 1).reshape(batch, HEADS, HEAD_WIDTH, 4).transpose(0, 1, 3, 2)
        out = {}
        for layer in range(LAYERS):
            out[f"cross_key_{layer}"] = heads @ self.weights[f"ck_{layer}"]
            out[f"cross_value_{layer}"] = heads @ self.weights[f"cv_{layer}"]
        return out

    def forced_logits(self, cross: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
        """Logits `[len(ids) + 1, vocabulary]` after the start token and along `ids`, without any cache."""
        tokens = [START, *ids]
        x = self.weights["embed"][tokens] + self.weights["position"][: len(tokens)]
        causal = np.triu(np.full((len(tokens), len(tokens)), -np.inf), 1)
        for layer in range(LAYERS):
            q, k, v, cq = (_heads(x @ self.weights[f"{name}_{layer}"]) for name in ("q", "k", "v", "cq"))
            own = _merge(_attend(q, k, v, causal))
            x = x + own + _merge(_attend(cq, cross[f"cross_key_{layer}"][0], cross[f"cross_value_{layer}"][0], 0.0))
        return x @ self.weights["out"]

    def greedy(self, cross: dict[str, np.ndarray], limit: int = MAX_NEW_TOKENS) -> tuple[list[int], list[float]]:
        """Token ids without the end token, and log-probabilities with the end token's."""
        ids: list[int] = []
        log_probs: list[float] = []
        for _ in range(limit):
            row = self.forced_logits(cross, ids)[-1].astype(np.float64)
            row = row - row.max() - np.log(np.exp(row - row.max()).sum())
            log_probs.append(float(row.max()))
            if int(row.argmax()) == END:
                break
            ids.append(int(row.argmax()))
        return ids, log_probs

    def answer_logits(self, cross: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
        """The classifier's logits `[answers]`."""
        x = self.weights["embed"][ids].mean(axis=0, keepdims=True)
        for layer in range(LAYERS):
            query = _heads(x @ self.weights[f"cq_{layer}"])
            x = x + _merge(_attend(query, cross[f"cross_key_{layer}"][0], cross[f"cross_value_{layer}"][0], 0.0))
        return (x @ self.weights["answer"])[0]

    def graph(self, role: str) -> onnx.ModelProto:
        """The ONNX graph of `role`, opset 18."""
        text = {"image_encoder": _encoder_text, "decoder": _decoder_text, "classifier": _classifier_text}[role]()
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}')
        constants: dict[str, np.ndarray] = {
            **self.weights,
            "split": np.array([0, 0, HEADS, HEAD_WIDTH]),
            "merge": np.array([0, 0, WIDTH]),
            "image_split": np.array([0, HEADS, HEAD_WIDTH, 4]),
            "root": np.array(np.sqrt(HEAD_WIDTH), np.float32),
            "no_mask": np.array(0, np.float32),
            "barred": np.array(-np.inf, np.float32),
            "zero": np.array(0),
            "step": np.array(1),
            "final": np.array(-1),
            "one": np.array([1]),
            "minus_one": np.array([-1]),
            "two": np.array([2]),
        }
        used = {name for node in model.graph.node for name in node.input}
        for name, value in constants.items():
            if name in used:
                model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        onnx.checker.check_model(model, full_check=True)
        return model


def _heads(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), HEADS, HEAD_WIDTH).transpose(1, 0, 2)


def _merge(x: np.ndarray) -> np.ndarray:
    return x.transpose(1, 0, 2).reshape(-1, WIDTH)


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: Any) -> np.ndarray:
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(HEAD_WIDTH) + mask
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)) @ v


def _encoder_text() -> str:
    outputs = ", ".join(f"float[batch,2,4,4] cross_{kind}_{i}" for i in range(LAYERS) for kind in ("key", "value"))
    layers = "".join(
        f"cross_key_{i} = MatMul(heads, ck_{i}) cross_value_{i} = MatMul(heads, cv_{i}) " for i in range(LAYERS)
    )
    return f"""image_encoder (float[batch,3,16,16] pixel_values) => ({outputs}) {{
        conv = Conv<strides=[8,8]>(pixel_values, patch)
        tokens = Tanh(conv)
        split_heads = Reshape(tokens, image_split)
        heads = Transpose<perm=[0,1,3,2]>(split_heads)
        {layers}
    }}"""


def _attention_text(prefix: str, query: str, key: str, value: str, mask: str = "no_mask") -> str:
    return f"""
        {prefix}_kt = Transpose<perm=[0,1,3,2]>({key})
        {prefix}_s = MatMul({query}, {prefix}_kt)
        {prefix}_m = Div({prefix}_s, root)
        {prefix}_d = Add({prefix}_m, {mask})
        {prefix}_p = Softmax<axis=-1>({prefix}_d)
        {prefix}_h = MatMul({prefix}_p, {value})
        {prefix}_t = Transpose<perm=[0,2,1,3]>({prefix}_h)
        {prefix}_o = Reshape({prefix}_t, merge)"""


def _projection_text(out: str, x: str, weight: str) -> str:
    return f"""
        {out}_f = MatMul({x}, {weight})
        {out}_r = Reshape({out}_f, split)
        {out} = Transpose<perm=[0,2,1,3]>({out}_r)"""


def _decoder_text() -> str:
    pairs = [f"{kind}_{i}" for i in range(LAYERS) for kind in ("key", "value")]
    inputs = "".join(f", float[batch,2,past,4] past_{p}" for p in pairs)
    inputs += "".join(f", float[batch,2,4,4] cross_{p}" for p in pairs)
    outputs = "".join(f", float[batch,2,total,4] present_{p}" for p in pairs)
    body = ""
    for i in range(LAYERS):
        for name in ("q", "k", "v", "cq"):
            body += _projection_text(f"{name}h_{i}", f"x_{i}", f"{name}_{i}")
        body += f"""
        present_key_{i} = Concat<axis=2>(past_key_{i}, kh_{i})
        present_value_{i} = Concat<axis=2>(past_value_{i}, vh_{i})"""
        body += _attention_text(f"self_{i}", f"qh_{i}", f"present_key_{i}", f"present_value_{i}", "causal")
        body += _attention_text(f"cross_{i}", f"cqh_{i}", f"cross_key_{i}", f"cross_value_{i}")
        body += f"""
        y_{i} = Add(x_{i}, self_{i}_o)
        x_{i + 1} = Add(y_{i}, cross_{i}_o)"""
    return f"""decoder (int64[batch,length] input_ids{inputs}) =>
        (float[batch,15] logits, int64[batch] next_token, float[batch] next_log_prob{outputs}) {{
        past_shape = Shape<start=2, end=3>(past_key_0)
        length_shape = Shape<start=1, end=2>(input_ids)
        past_count = Squeeze(past_shape)
        length_count = Squeeze(length_shape)
        total_count = Add(past_count, length_count)
        rows = Range(past_count, total_count, step)
        columns = Range(zero, total_count, step)
        row_column = Unsqueeze(rows, one)
        seen = LessOrEqual(columns, row_column)
        causal = Where(seen, no_mask, barred)
        position_rows = Gather<axis=0>(position, rows)
        token = Gather<axis=0>(embed, input_ids)
        x_0 = Add(token, position_rows)
        {body}
        last = Gather<axis=1>(x_{LAYERS}, final)
        logits = MatMul(last, out)
        next_token = ArgMax<axis=1, keepdims=0>(logits)
        log_probs = LogSoftmax<axis=-1>(logits)
        next_log_prob = ReduceMax<keepdims=0>(log_probs, minus_one)
        }}"""


def _classifier_text() -> str:
    pairs = [f"{kind}_{i}" for i in range(LAYERS) for kind in ("key", "value")]
    inputs = "".join(f", float[batch,2,4,4] cross_{p}" for p in pairs)
    body = ""
    for i in range(LAYERS):
        body += _projection_text(f"cqh_{i}", f"x_{i}", f"cq_{i}")
        body += _attention_text(f"cross_{i}", f"cqh_{i}", f"cross_key_{i}", f"cross_value_{i}")
        body += f"\nx_{i + 1} = Add(x_{i}, cross_{i}_o)"
    return f"""classifier (int64[batch,length] input_ids, int64[batch,length] attention_mask{inputs}) =>
        (float[batch,5] logits, float[batch,5] probabilities) {{
        mask_f = Cast<to=1>(attention_mask)
        mask = Unsqueeze(mask_f, two)
        tokens = Gather<axis=0>(embed, input_ids)
        kept = Mul(tokens, mask)
        sum = ReduceSum<keepdims=1>(kept, one)
        count = ReduceSum<keepdims=1>(mask, one)
        x_0 = Div(sum, count)
        {body}
        last = Gather<axis=1>(x_{LAYERS}, zero)
        logits = MatMul(last, answer)
        probabilities = Softmax<axis=-1>(logits)
        }}"""


def reference_pixels(path: Path) -> np.ndarray:
    """The steps above, computed directly on an opaque square RGB picture: float32 `[1, 3, 16, 16]`."""
    picture = Image.open(path).convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
    values = np.asarray(picture).astype(np.float32) * np.float32(1 / 255)
    return ((values - np.float32(0.5)) / np.float32(0.25)).transpose(2, 0, 1)[None]


def write_tokenizer(path: Path) -> None:
    """A word tokenizer over WORDS."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(path))


def write_manifest(folder: Path, manifest: m.Manifest) -> m.Manifest:
    """Write manifest.json with the sizes and hashes of what lies in `folder`."""
    files = {
        path.relative_to(folder).as_posix(): m.FileEntry(
            hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    manifest = replace(manifest, files=files)
    (folder / "manifest.json").write_text(json.dumps(manifest.to_dict(), indent=2))
    return manifest


def build_bundle(folder: Path, task: m.TaskName, model: TinyModel) -> Path:
    """A whole bundle, golden cases by numpy."""
    (folder / "graphs").mkdir(parents=True)
    (folder / "golden").mkdir()
    roles = TASKS[task].roles[0]
    for role in roles:
        onnx.save(model.graph(role), folder / "graphs" / f"{role}.onnx")
    write_tokenizer(folder / "tokenizer.json")
    write_manifest(
        folder,
        m.Manifest(
            name=f"tiny-{task}",
            task=task,
            license="Apache-2.0",
            attention="decomposed",
            opset=18,
            graphs={role: m.Graph(f"graphs/{role}.onnx", "fp32") for role in roles},
            image_steps=STEPS,
            tokenizer=m.TokenizerSpec("tokenizer.json", UNKNOWN, 8),
            decoding=m.Decoding((START,), (END,), PAD, MAX_NEW_TOKENS) if task == "caption" else None,
            labels=LABELS if task == "vqa" else None,
            provenance=m.Provenance("numpy", "0" * 64, "pytest", "2026-01-01T00:00:00Z", {"onnx": onnx.__version__}),
            golden=m.Golden(1e-4, tuple(_golden_case(folder, task, model, i) for i in range(3))),
            files={},
        ),
    )
    return folder


def _golden_case(folder: Path, task: m.TaskName, model: TinyModel, index: int) -> m.GoldenCase:
    image, tensors = f"golden/{index}.png", f"golden/{index}.npz"
    rng = np.random.default_rng(index)
    Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(folder / image)
    cross = model.cross(reference_pixels(folder / image))
    if task == "caption":
        ids, _ = model.greedy(cross)
        np.savez(folder / tensors, logits=model.forced_logits(cross, ids))
        return m.GoldenCase(image, tensors, " ".join(WORDS[i] for i in ids if i > END), token_ids=tuple(ids))
    logits = model.answer_logits(cross, [4, 5, 6, 9])
    np.savez(folder / tensors, logits=logits)
    return m.GoldenCase(image, tensors, LABELS[int(logits.argmax())], question="What is the cat")
