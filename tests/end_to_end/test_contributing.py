"""The examples of CONTRIBUTING.md, as they stand there: each is an addition that works."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from xattn_edge.attention import similarity
from xattn_edge.commands.shared import console, options
from xattn_edge.fusion.protocol import Fused, without_missing
from xattn_runtime.execution import providers

CONTRIBUTING = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"


def example(section: str) -> str:
    """The first block of Python below a heading."""
    text = CONTRIBUTING.read_text(encoding="utf-8").partition(f"\n### {section}\n")[2]
    return textwrap.dedent(re.findall(r"^   ```python\n(.*?)^   ```", text, re.MULTILINE | re.DOTALL)[0])


def run(section: str, names: dict[str, Any]) -> dict[str, Any]:
    names = {**names, "__name__": "contributing"}
    exec(compile(example(section), CONTRIBUTING.name, "exec"), names)
    return names


def test_the_similarity():
    made = run("A similarity", vars(similarity))["NegativeDistance"](heads=2, width=8)
    query, key = torch.randn(3, 2, 4, 8), torch.randn(3, 2, 5, 8)
    expected = [[[[-((q - k) ** 2).sum() / 8 for k in ks] for q in qs] for qs, ks in zip(*pair, strict=True)]
                for pair in zip(query.numpy(), key.numpy(), strict=True)]  # fmt: skip
    assert np.allclose(made(query, key).numpy(), expected, atol=1e-5)


def test_the_fusion():
    names = {"nn": nn, "torch": torch, "Tensor": Tensor, "Sequence": Sequence}
    made = run("A fusion", {**names, "Fused": Fused, "without_missing": without_missing})["GatedSum"]([3, 4], 5)
    modalities = [torch.randn(3, 3), torch.randn(3, 4)]
    output, weights = made(modalities, torch.tensor([[True, True], [False, True], [False, False]]))
    first, second = (project(each) / 2 for project, each in zip(made.project, modalities, strict=True))
    expected = torch.stack([first[0] + second[0], second[1], torch.zeros(5)])
    assert weights is None and torch.allclose(output, expected, atol=1e-6)


def test_the_provider():
    made = eval(compile(example("A provider"), CONTRIBUTING.name, "eval"), dict(vars(providers)))
    assert isinstance(made, providers.Provider)
    assert (made.package, made.requirements.precisions, made.device) == (None, ("int8",), "NPU")


def test_the_command():
    names = {**vars(console), **vars(options), "Annotated": Annotated, "Path": Path, "app": options.new_app()}
    result = CliRunner().invoke(run("A command", names)["app"], ["shapes-vqa", "--json"])
    assert (result.exit_code, result.stdout) == (0, '{\n  "license": "Apache-2.0"\n}\n')
