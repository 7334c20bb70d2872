"""The golden cases of a bundle with one graph at a time in another engine, ONNX Runtime running the others.

So a graph that an engine cannot read, or computes wrongly, is known by name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from xattn_export.engines import ForeignEngine, open_engine
from xattn_export.graph.generator import GENERATOR
from xattn_export.whole import WHOLE, WHOLE_TEXT
from xattn_runtime.bundle.folder import Bundle, open_bundle
from xattn_runtime.bundle.manifest import ATTENTION_ROLE
from xattn_runtime.errors import BundleError, VerificationError
from xattn_runtime.execution.loading import session_entries
from xattn_runtime.execution.providers import CPU
from xattn_runtime.execution.session import EngineGraph, EngineTensor, SessionSettings, Tensor, default_threads
from xattn_runtime.loader import load
from xattn_runtime.tasks import Task, TaskInput
from xattn_runtime.verify.golden import measure
from xattn_runtime.verify.wholes import compare_wholes, run_wholes

__all__ = ["EngineReport", "GraphVerdict", "verify_in_engine"]


# The error of a single logit may be so many times the root-mean-square of all of them.
_TIE = 4.0


@dataclass(frozen=True)
class GraphVerdict:
    """What became of the golden cases with one graph in the engine.

    runs: how often the engine ran it; nothing is proved where that is 0. relative_rms: the largest of the cases; None
    where the graph failed, a value was not finite, or it outputs tokens alone. texts: how many of the compared texts
    are the same, and of how many; of a graph that outputs tokens, of all golden inputs or some, compared with ONNX
    Runtime. error: why it failed.
    """

    role: str
    file: str
    precision: str
    runs: int
    relative_rms: float | None
    texts: tuple[int, int]
    error: str | None
    passed: bool


@dataclass(frozen=True)
class EngineReport:
    """The verdict on every graph, with the largest `relative_rms` that the bundle allows."""

    bundle: str
    engine: str
    tolerance: float
    graphs: tuple[GraphVerdict, ...]

    @property
    def passed(self) -> bool:
        """Whether every graph passed."""
        return all(graph.passed for graph in self.graphs)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "bundle": self.bundle,
            "engine": self.engine,
            "tolerance": self.tolerance,
            "passed": self.passed,
            "graphs": [asdict(graph) for graph in self.graphs],
        }

    def raise_if_failed(self) -> None:
        """VerificationError that names the first graph that failed."""
        failed = [graph for graph in self.graphs if not graph.passed]
        if failed:
            worst = failed[0]
            failure = worst.error or (
                f"{worst.runs} runs, a relative difference of {worst.relative_rms} and "
                f"{worst.texts[0]} of {worst.texts[1]} texts the same"
            )
            raise VerificationError(
                f"{self.bundle}: {len(failed)} of {len(self.graphs)} graphs failed in {self.engine}: {worst.role}: "
                f"expected a relative difference of at most {self.tolerance:.3g}, found: {failure}"
            )


@dataclass(frozen=True)
class _Counted:
    """A graph that counts how often it is run."""

    graph: EngineGraph
    runs: list[str]

    def get_inputs(self) -> Sequence[EngineTensor]:
        return self.graph.get_inputs()

    def get_outputs(self) -> Sequence[EngineTensor]:
        return self.graph.get_outputs()

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
        results = self.graph.run(outputs, inputs)
        self.runs.append("run")
        return results


@dataclass(frozen=True)
class _One:
    """The engine for the graph of one role."""

    engine: ForeignEngine
    role: str
    runs: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.engine.name

    def open(self, path: Path, role: str) -> EngineGraph | None:
        return _Counted(self.engine.open(path, role), self.runs) if role == self.role else None


def verify_in_engine(
    bundle: str | os.PathLike[str] | Bundle, engine: str, folder: Path | None = None, threads: int | None = None
) -> EngineReport:
    """Run the golden cases of `bundle` once for each of its graphs, with that graph in `engine`.

    folder: as in `open_engine`, whose errors are raised too. Raises BundleError where the bundle itself is broken.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    with open_engine(engine, folder, session_entries(opened.manifest)) as foreign:
        count = default_threads() if threads is None else threads
        # Not all engines support strings: the graph with texts is the one with token ids, plus strings. That of
        # the attention is one of the others, with outputs that no answer uses.
        roles = [role for role in opened.manifest.graphs if role not in (WHOLE_TEXT, ATTENTION_ROLE)]
        graphs = tuple(_verdict(opened, role, foreign, count) for role in roles)
    return EngineReport(str(opened.path), engine, opened.manifest.golden.relative_rms, graphs)


def _verdict(bundle: Bundle, role: str, foreign: ForeignEngine, threads: int) -> GraphVerdict:
    one, entry = _One(foreign, role), bundle.manifest.graphs[role]
    try:
        task = load(bundle, SessionSettings(CPU, threads, engine=one))
        if role == GENERATOR:
            largest, texts = None, _same_tokens(task, load(bundle, SessionSettings(CPU, threads)))
        elif role == WHOLE:
            ours = load(bundle, SessionSettings(CPU, threads))
            verdict = compare_wholes(ours, run_wholes(bundle, SessionSettings(CPU, threads, engine=one), [role]))[0]
            if verdict.difference is not None:
                raise BundleError(f"{role}: expected what the other graphs give, found {verdict.difference}")
            largest, texts = None, (verdict.cases, verdict.cases)
        else:
            cases = measure(task)
            largest = max(case.relative_rms for case in cases)
            compared = [case.same_text for case in cases if case.expected_text is not None]
            texts = sum(compared), len(compared)
    except BundleError as error:
        return GraphVerdict(role, entry.file, entry.precision, len(one.runs), None, (0, 0), str(error), passed=False)
    is_near = largest is None or largest <= bundle.manifest.golden.relative_rms
    return GraphVerdict(
        role,
        entry.file,
        entry.precision,
        len(one.runs),
        largest if largest is not None and np.isfinite(largest) else None,
        texts,
        None,
        passed=bool(one.runs) and texts[0] == texts[1] and is_near,
    )


def _same_tokens(task: Task, ours: Task) -> tuple[int, int]:
    """How many golden inputs yield the same token ids as in ONNX Runtime, and of how many.

    From where two tokens are as likely, within the bundle's tolerance, either may follow.
    """
    cases, same = task.bundle.manifest.golden.cases, 0
    for case in cases:
        golden = TaskInput(task.bundle.file(case.image), case.input_text)
        actual, expected = task.answer(golden).token_ids, ours.answer(golden).token_ids
        same += actual == expected or _is_tie(ours, golden, expected, actual)
    return same, len(cases)


def _is_tie(task: Task, golden: TaskInput, expected: tuple[int, ...], actual: tuple[int, ...]) -> bool:
    """Whether the logits of the first two tokens that differ do so by less than the bundle's tolerance."""
    decoding = task.bundle.manifest.decoding
    if decoding is None:
        return False
    end = (*decoding.end_token_ids, decoding.pad_token_id)[0]
    pairs = list(zip_longest(expected, actual, fillvalue=end))
    first = next(number for number, pair in enumerate(pairs) if pair[0] != pair[1])
    row = task.token_logits(golden, expected[:first])[-1]
    size = float(np.sqrt(np.mean((row - row.mean()) ** 2)))
    lead = abs(float(row[pairs[first][0]] - row[pairs[first][1]]))
    return lead <= _TIE * task.bundle.manifest.golden.relative_rms * size
