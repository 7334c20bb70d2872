"""BLIP-base on ONNX Runtime against Transformers: the whole caption, the encoder, one decoding step.

    python benchmarks/families.py

The architecture is that of `Salesforce/blip-image-captioning-base` at 384 px, with random weights: time does not depend
on their values. Every engine runs in a process of its own, and all take turns; what counts is the ratio. Every caption
has 20 tokens. The floor of a step is the bytes that it reads over this machine's read bandwidth, that of the encoder
its operations over the rate of a large product, both in fp32 and measured in the same run. Prints Markdown tables, then
one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TOKENS = 20
FOLDER = Path(__file__).parent
ENGINES = {
    "generate() fp32": "checkpoint",
    "eager loop bf16": "checkpoint",
    "ORT fp32": "fp32",
    "ORT int8": "int8",
    "ORT int8, decoder int4": "int4",
}
MACHINE = "the machine itself"
Times = dict[str, float]


def make_checkpoint(folder: Path) -> Path:
    """BLIP-base with random weights of a sane size, its image processor and a vocabulary of its size."""
    import torch
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessorPil,
        BlipProcessor,
    )

    torch.manual_seed(0)
    model = BlipForConditionalGeneration(BlipConfig())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    special = ["[PAD]", *(f"[unused{number}]" for number in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [f"word{number}" for number in range(model.config.text_config.vocab_size - len(special) - 2)]
    vocabulary = {token: number for number, token in enumerate([*special, *words, "[DEC]", "[ENC]"])}
    tokenizer = BertTokenizer(vocab=vocabulary, bos_token="[DEC]")
    checkpoint = folder / "blip-base"
    model.save_pretrained(checkpoint)
    BlipProcessor(image_processor=BlipImageProcessorPil(), tokenizer=tokenizer).save_pretrained(checkpoint)
    return checkpoint


def make_bundles(checkpoint: Path, folder: Path) -> dict[str, Path]:
    """The checkpoint, and the bundles that the engines run."""
    from xattn_export import export_checkpoint, quantize_bundle

    paths = {"checkpoint": checkpoint} | {name: folder / f"{name}.xattn" for name in ("fp32", "int8", "int4")}
    if not paths["int4"].exists():
        export_checkpoint(checkpoint, paths["fp32"], overwrite=paths["fp32"].exists())
        quantize_bundle(paths["fp32"], paths["int8"], overwrite=paths["int8"].exists())
        quantize_bundle(paths["fp32"], paths["int4"], components={"decoder": "int4"})
    return paths


def generate_runner(checkpoint: Path, threads: int) -> Callable[[Any], Times]:
    """A caption by Transformers' own `generate()` in float32; the encoder is timed apart from it."""
    import torch
    from transformers import BlipForConditionalGeneration, BlipImageProcessorPil

    torch.set_num_threads(threads)
    model = BlipForConditionalGeneration.from_pretrained(checkpoint).eval()
    processor = BlipImageProcessorPil.from_pretrained(checkpoint)

    @torch.inference_mode()
    def run(image: Any) -> Times:
        began = time.perf_counter()
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        ids = model.generate(pixels, min_new_tokens=TOKENS, max_new_tokens=TOKENS, num_beams=1)
        total = time.perf_counter() - began
        if ids.shape[1] < TOKENS:
            raise SystemExit(f"expected {TOKENS} tokens, found {ids.shape[1]}")
        began = time.perf_counter()
        states = model.vision_model(pixels)[0]
        for layer in model.text_decoder.bert.encoder.layer:
            attention = layer.crossattention.self
            attention.key(states), attention.value(states)
        return {"total": total, "encode": time.perf_counter() - began}

    return run


def bfloat16_runner(checkpoint: Path, threads: int) -> Callable[[Any], Times]:
    """A caption by a bare loop over Transformers' modules in bfloat16, with a KV cache."""
    import torch
    from transformers import BlipForConditionalGeneration, BlipImageProcessorPil, DynamicCache, EncoderDecoderCache

    torch.set_num_threads(threads)
    model = BlipForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
    processor = BlipImageProcessorPil.from_pretrained(checkpoint)

    @torch.inference_mode()
    def run(image: Any) -> Times:
        began = time.perf_counter()
        pixels = processor(image, return_tensors="pt")["pixel_values"].to(torch.bfloat16)
        states = model.vision_model(pixels)[0]
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        token = torch.tensor([[model.config.text_config.bos_token_id]])
        decoding = time.perf_counter()
        for _ in range(TOKENS):
            output = model.text_decoder(token, encoder_hidden_states=states, past_key_values=cache, use_cache=True)
            token = output.logits[:, -1:].argmax(-1)
        ended = time.perf_counter()
        return {"total": ended - began, "step": (ended - decoding) / TOKENS}

    return run


def onnxruntime_runner(bundle: Path, threads: int) -> Callable[[Any], Times]:
    """A caption by the runtime."""
    from xattn_runtime import load

    task = load(bundle, threads=threads, task="caption")

    def run(image: Any) -> Times:
        caption = task.caption(image, max_new_tokens=TOKENS)
        if len(caption.token_ids) != TOKENS:
            raise SystemExit(f"expected {TOKENS} tokens, found {len(caption.token_ids)}")
        timing = caption.timing_ms
        return {
            "total": timing.total / 1e3,
            "encode": timing.encode / 1e3,
            "step": timing.decode / TOKENS / 1e3,
        }

    return run


RUNNERS = {"generate() fp32": generate_runner, "eager loop bf16": bfloat16_runner}


def read_bandwidth(threads: int) -> float:
    """Bytes a second that summing a gigabyte reads, the best of some runs."""
    import torch

    torch.set_num_threads(threads)
    block = torch.ones(2**28)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        block.sum()
        times.append(time.perf_counter() - began)
    return block.numel() * 4 / min(times)


def product_rate(threads: int) -> float:
    """Operations a second of ONNX Runtime in the largest product of the encoder's layers, the best of some runs."""
    import numpy as np
    from onnx import numpy_helper, parser

    from xattn_runtime.execution.providers import load_onnxruntime

    onnxruntime = load_onnxruntime()
    rows, width, inner = 577, 768, 3072
    model = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 23]> product (float[{rows},{width}] x) => (float[{rows},{inner}] y)'
        "{ y = MatMul(x, w) }"
    )
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(width, inner)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = {"x": generator.normal(size=(rows, width)).astype(np.float32)}
    times = []
    for _ in range(30):
        began = time.perf_counter()
        session.run(None, inputs)
        times.append(time.perf_counter() - began)
    return 2 * rows * width * inner / min(times)


def worker(connection: Connection, engine: str, source: Path, threads: int) -> None:
    """Answers each message with the times of one caption."""
    import numpy as np

    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    if engine == MACHINE:
        while connection.recv():
            connection.send({"bytes_s": read_bandwidth(threads), "operations_s": product_rate(threads)})
        return
    run = RUNNERS.get(engine, onnxruntime_runner)(source, threads)
    run(image)
    while connection.recv():
        connection.send(run(image))


def compare(sources: dict[str, Path], threads: int, rounds: int) -> dict[str, Times]:
    """Medians of each engine's times in seconds, and of what the machine can do, all taking turns."""
    context = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    processes = []
    for engine in (*ENGINES, MACHINE):
        connections[engine], theirs = context.Pipe()
        source = sources[ENGINES.get(engine, "checkpoint")]
        process = context.Process(target=worker, args=(theirs, engine, source, threads), daemon=True)
        process.start()
        processes.append(process)
    measured_rounds: dict[str, list[Times]] = {engine: [] for engine in connections}
    for number in range(rounds):
        for engine, connection in connections.items():
            connection.send(True)
            measured_rounds[engine].append(connection.recv())
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    for connection in connections.values():
        connection.send(False)
    for process in processes:
        process.join()
    return {
        engine: {key: statistics.median(times[key] for times in measured) for key in measured[0]}
        for engine, measured in measured_rounds.items()
    }


def step_bytes(bundle: Path) -> int:
    """What a decoding step of an fp32 bundle reads: weights of products, and an image's cross keys and values."""
    import onnx

    from xattn_runtime.bundle.folder import open_bundle

    opened = open_bundle(bundle)
    graph = onnx.load(opened.file(opened.manifest.graphs["decoder"].file), load_external_data=False).graph
    factors = {name for node in graph.node if node.op_type in ("MatMul", "Gemm") for name in node.input}
    weights = sum(math.prod(tensor.dims) for tensor in graph.initializer if tensor.name in factors)
    shapes = [
        [axis.dim_value or 1 for axis in tensor.type.tensor_type.shape.dim]
        for tensor in graph.input
        if tensor.name.startswith("cross_")
    ]
    return int(4 * (weights + sum(map(math.prod, shapes))))


def encoder_operations(bundle: Path) -> int:
    """What the image encoder of an fp32 bundle computes: its products with weights, and those of its attention."""
    import onnx

    from xattn_runtime.bundle.folder import open_bundle

    opened = open_bundle(bundle)
    graph = onnx.load(opened.file(opened.manifest.graphs["image_encoder"].file), load_external_data=False).graph
    tokens = next(value.type.tensor_type.shape.dim[2].dim_value for value in graph.output)
    read = {name: node.op_type for node in graph.node for name in node.input}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    products = sum(math.prod(weights[name].dims) for name in weights if read.get(name) in ("MatMul", "Gemm", "Conv"))
    width = next(tensor.dims[0] for tensor in weights.values() if read[tensor.name] == "Conv")
    attention = sum(2 * tokens * width for node in graph.node if node.op_type == "Attention")
    return int(2 * tokens * (products + attention))


def loading(bundle: Path, threads: int) -> float:
    """Seconds to load a bundle that was read before, in a process that does nothing else; the median of some."""
    arguments = [sys.executable, str(FOLDER / "loading_time.py"), str(bundle), str(threads)]
    return statistics.median(float(subprocess.check_output(arguments)) for _ in range(5))


def command_line(bundle: Path, folder: Path) -> dict[str, float]:
    """Peak memory and wall time of one `xattn-edge caption` from start to printed answer."""
    from PIL import Image

    image = folder / "picture.png"
    Image.linear_gradient("L").convert("RGB").save(image)
    executable = Path(sys.executable).with_name("xattn-edge")
    arguments = [str(executable), "caption", str(image), "--bundle", str(bundle), "--max-new-tokens", str(TOKENS)]
    timed = [sys.executable, str(FOLDER / "timed_command.py"), *arguments]
    completed = subprocess.run(timed, stdout=subprocess.PIPE, text=True)
    if completed.returncode:
        raise SystemExit(f"{' '.join(arguments)}: failed")
    seconds, peak_kib = completed.stdout.split()
    return {"seconds": float(seconds), "peak_memory_mb": int(peak_kib) * 1024 / 1e6}


def folder_bytes(folder: Path) -> int:
    """Size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def print_tables(
    measured: dict[str, Times], step_s: float, encoder_s: float, shipped: dict[str, dict[str, float]]
) -> None:
    """Markdown."""
    slowest = measured["generate() fp32"]["total"]
    print(f"\n| engine | {TOKENS} tokens, ms | of generate() | encoder, ms | of its floor | step, ms | of its floor |")
    print("|---|---|---|---|---|---|---|")
    for engine in ENGINES:
        times = measured[engine]
        cells = [f"{times['total'] * 1e3:.0f}", f"{times['total'] / slowest:.2f}"]
        for key, floor_s in (("encode", encoder_s), ("step", step_s)):
            cells += [f"{times[key] * 1e3:.1f}", f"{times[key] / floor_s:.2f}"] if key in times else ["", ""]
        print(f"| {engine} | {' | '.join(cells)} |")
    machine = measured[MACHINE]
    print(
        f"\nRead bandwidth {machine['bytes_s'] / 1e9:.1f} GB/s, products {machine['operations_s'] / 1e9:.0f} GFLOP/s; "
        f"floors in fp32: encoder {encoder_s * 1e3:.0f} ms, step {step_s * 1e3:.1f} ms."
    )
    print("\n| bundle | size, MB | load, s | `xattn-edge caption`: peak memory, MB | start to answer, s |")
    print("|---|---|---|---|---|")
    for name, values in shipped.items():
        cells = [f"{values['bytes'] / 1e6:.0f}", f"{values['load']:.2f}", f"{values['peak_memory_mb']:.0f}"]
        print(f"| {name} | {' | '.join(cells)} | {values['seconds']:.2f} |")


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="turns of each engine")
    parser.add_argument("--threads", type=int, default=2, help="threads of every engine")
    parser.add_argument("--work", type=Path, help="folder to keep the checkpoint and the bundles in, and to find them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = folder / "blip-base"
        sources = make_bundles(checkpoint if checkpoint.exists() else make_checkpoint(folder), folder)
        shipped = {
            name: {
                "bytes": folder_bytes(sources[name]),
                **command_line(sources[name], folder),
                "load": loading(sources[name], options.threads),
            }
            for name in ("fp32", "int8", "int4")
        }
        measured = compare(sources, options.threads, options.rounds)
        step_s = step_bytes(sources["fp32"]) / measured[MACHINE]["bytes_s"]
        encoder_s = encoder_operations(sources["fp32"]) / measured[MACHINE]["operations_s"]
    print_tables(measured, step_s, encoder_s, shipped)
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    document = {
        "machine": machine,
        "threads": options.threads,
        "engines": measured,
        "floors_s": {"step": step_s, "encoder": encoder_s},
        "bundles": shipped,
    }
    print("\n" + json.dumps(document))


if __name__ == "__main__":
    main()
