"""ViT-GPT2 exported and run by this project and by optimum-onnx, with the same weights.

    python benchmarks/optimum.py --optimum-python PATH

PATH is the Python of an environment of its own, made by

    python -m venv optimum && optimum/bin/pip install "optimum-onnx[onnxruntime]==0.1.0" "transformers==4.57.*" pillow

The architecture is that of `nlpconnect/vit-gpt2-image-captioning` with random weights: time does not depend on their
values. Both sides caption on ONNX Runtime in fp32, greedily, 20 tokens, from a decoded image; each in a process of
its own, taking turns, and what counts is the ratio. Prints a Markdown table, then one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TOKENS = 20

OURS = """
import json, sys, time
import numpy as np
from xattn_runtime import load
task = load(sys.argv[1], threads=int(sys.argv[2]))
image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
for line in sys.stdin:
    began = time.perf_counter()
    caption = task.caption(image, beams=1, max_new_tokens=TOKENS)
    print(json.dumps([time.perf_counter() - began, list(caption.token_ids)]), flush=True)
"""
THEIRS = """
import json, sys, time
import numpy as np, onnxruntime, torch
from PIL import Image
from optimum.onnxruntime import ORTModelForVision2Seq
from transformers import ViTImageProcessor
torch.set_num_threads(int(sys.argv[2]))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
model = ORTModelForVision2Seq.from_pretrained(sys.argv[1], session_options=options, use_cache=True)
processor = ViTImageProcessor.from_pretrained(sys.argv[1])
image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
for line in sys.stdin:
    began = time.perf_counter()
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    ids = model.generate(pixels, num_beams=1, do_sample=False, min_new_tokens=TOKENS, max_new_tokens=TOKENS)
    print(json.dumps([time.perf_counter() - began, ids[0, 1:].tolist()]), flush=True)
"""


def make_checkpoint(folder: Path) -> Path:
    """ViT-base and GPT-2 with cross-attention, random weights of a sane size, in a form that both sides open."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        GenerationConfig,
        GPT2Config,
        GPT2Tokenizer,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessorPil,
    )

    torch.manual_seed(0)
    decoder = GPT2Config(add_cross_attention=True, is_decoder=True)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(), decoder)
    end = decoder.eos_token_id
    config.decoder_start_token_id = config.pad_token_id = config.eos_token_id = end
    model = VisionEncoderDecoderModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
        model.decoder.lm_head.weight[end] = 0
    model.generation_config = GenerationConfig(
        decoder_start_token_id=end, pad_token_id=end, eos_token_id=end, max_new_tokens=TOKENS
    )
    words = [*sorted(ByteLevel.alphabet()), *(f"word{number}" for number in range(end - 256)), "<|endoftext|>"]
    checkpoint = folder / "vit-gpt2"
    model.save_pretrained(checkpoint)
    GPT2Tokenizer({word: number for number, word in enumerate(words)}, []).save_pretrained(checkpoint)
    ViTImageProcessorPil().save_pretrained(checkpoint)
    return checkpoint


def exported(arguments: list[str], output: Path) -> dict[str, float]:
    """Seconds that the command takes, and what it wrote, in bytes."""
    began = time.perf_counter()
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    seconds = time.perf_counter() - began
    return {"export_s": seconds, "bytes": sum(path.stat().st_size for path in output.rglob("*") if path.is_file())}


def compare(engines: dict[str, list[str]], rounds: int) -> dict[str, dict[str, Any]]:
    """Median seconds of a caption of each engine, taking turns, and its token ids."""
    processes = {
        name: subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name, arguments in engines.items()
    }
    times: dict[str, list[float]] = {name: [] for name in engines}
    ids: dict[str, list[int]] = {}
    for number in range(rounds + 1):
        for name, process in processes.items():
            if process.stdin is None or process.stdout is None:
                raise SystemExit(f"{name}: its process has no pipes")
            print(file=process.stdin, flush=True)
            seconds, ids[name] = json.loads(process.stdout.readline())
            if number:
                times[name].append(seconds)
    for process in processes.values():
        process.communicate()
    return {name: {"caption_s": statistics.median(times[name]), "token_ids": ids[name]} for name in engines}


def main() -> None:
    """Export with both, caption with both, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimum-python", type=Path, required=True, help="Python of the environment with optimum")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each engine")
    parser.add_argument("--threads", type=int, default=2, help="threads of each engine")
    parser.add_argument("--work", type=Path, help="folder to keep the checkpoint and the exports in")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint, ours, theirs = make_checkpoint(folder), folder / "ours.xattn", folder / "theirs"
        command = str(Path(sys.executable).with_name("xattn-edge"))
        export_ours = [command, "export", str(checkpoint), "-o", str(ours), "--overwrite", "--quiet"]
        module = [str(options.optimum_python), "-m", "optimum.exporters.onnx", "--model", str(checkpoint)]
        engines: dict[str, dict[str, Any]] = {
            "xattn-edge": exported(export_ours, ours),
            "optimum-onnx 0.1.0": exported([*module, "--task", "image-to-text-with-past", str(theirs)], theirs),
        }
        threads = str(options.threads)
        programs = {
            "xattn-edge": [sys.executable, "-c", OURS.replace("TOKENS", str(TOKENS)), str(ours), threads],
            "optimum-onnx 0.1.0": [
                str(options.optimum_python), "-c", THEIRS.replace("TOKENS", str(TOKENS)), str(theirs), threads,
            ],
        }  # fmt: skip
        for name, measured in compare(programs, options.rounds).items():
            engines[name] |= measured
    optimum_values = engines["optimum-onnx 0.1.0"]
    print("\n| | caption, ms | × | export, s | × | on the disk, MB | × | first tokens |")
    print("|---|---|---|---|---|---|---|---|")
    for name, values in engines.items():
        cells = []
        for key, factor in (("caption_s", 1e3), ("export_s", 1.0), ("bytes", 1e-6)):
            cells += [f"{values[key] * factor:.0f}", f"{values[key] / optimum_values[key]:.2f}"]
        print(f"| {name} | {' | '.join(cells)} | {values['token_ids'][:5]} |")
    print("\n" + json.dumps({"threads": options.threads, "engines": engines}))


if __name__ == "__main__":
    main()
