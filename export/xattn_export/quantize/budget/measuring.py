"""Makes and measures the bundles of a search, and keeps what was measured beside the output.

So a search that was killed resumes where it stopped.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from xattn_export.quantize.base.mode_spec import BASELINE
from xattn_export.quantize.base.options import Options
from xattn_export.quantize.base.prepared import PreparedBundle
from xattn_export.quantize.budget.search import Components, Measured, named
from xattn_export.quantize.bundle import write_quantized
from xattn_export.quantize.calibration.activation_statistics import calibrate, needs_examples
from xattn_export.quantize.calibration.examples import Example, Examples, SomeExamples, run_example
from xattn_export.quantize.modes.table import searched_modes
from xattn_export.quantize.plans import make_plans
from xattn_runtime.bundle.folder import MANIFEST_FILE, Bundle, file_digest, open_bundle
from xattn_runtime.errors import OutputError, UserError, XattnError
from xattn_runtime.files import atomic_write, sync
from xattn_runtime.loader import load
from xattn_runtime.profiling.measure.peak_memory import peak_memory_bytes
from xattn_runtime.progress import Progress, silent
from xattn_runtime.tasks import Task

__all__ = ["Bench", "Journal", "Scores", "Split", "relative_loss", "search_identity"]

_HEAD = '{"search": '
_TIMED = 12
_CALIBRATED = 32
# Other programs disturb single answers of a millisecond, so that each is measured several times while that is quick.
_TURNS, _SECONDS_OF_TURNS = 10, 5.0


@dataclass(frozen=True)
class Scores:
    """What each sample scored, the higher the better; the metric's value is their mean."""

    metric: str
    values: Sequence[float]

    @property
    def mean(self) -> float:
        """The metric."""
        return statistics.fmean(self.values)


class Split(Protocol):
    """Samples of a task, and what a bundle scores on them."""

    @property
    def name(self) -> str:
        """For records."""

    @property
    def examples(self) -> Examples:
        """To calibrate on, and to time answers with."""

    def scores(self, bundle: Bundle) -> Scores:
        """What `bundle` scores on each sample."""


@dataclass
class Journal:
    """All measurements, one per line, after a first line that identifies the search."""

    path: Path
    known: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, output: Path, identity: Mapping[str, Any]) -> Journal:
        """The journal of this search, to resume where it was killed; a journal of another search is begun anew.

        Raises OutputError where another file has its place.
        """
        path = output.resolve().parent / f".{output.name}.search.jsonl"
        head = json.dumps({"search": identity}, sort_keys=True)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        if lines[:1] != [head]:
            if lines and not lines[0].startswith(_HEAD):
                raise OutputError(
                    f"{path}: expected the measurements of a search, found another file; move it elsewhere"
                )
            atomic_write(path, head + "\n")
            return cls(path)
        known = {}
        for line in lines[1:]:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the line that was being written when the search was killed
                continue
            known[_key(entry["components"])] = entry
        return cls(path, known)

    def add(self, measured: Measured) -> None:
        """Keep a measurement."""
        entry = asdict(measured)
        self.known[_key(measured.components)] = entry
        with self.path.open("ab") as stream:
            stream.write(f"{json.dumps(entry)}\n".encode())
            sync(stream)


class Bench:
    """Makes and measures bundles."""

    def __init__(
        self,
        source: PreparedBundle,
        split: Split,
        options: Options,
        journal: Journal,
        progress: Progress,
    ) -> None:
        self.source, self.split, self.options = source, split, options
        self._journal, self._progress = journal, progress
        self._baseline: Scores | None = None
        self._expected = 1 + len(searched_modes()) * len(source.graphs)
        self._done = 0

    def measure(self, components: Components) -> Measured:
        """The result of the mix, as it is in the journal, or measured now."""
        self._progress(f"measuring {named(components)}", min(1.0, self._done / self._expected))
        self._done += 1
        if known := self._journal.known.get(_key(components)):
            return Measured(**known)
        measured = self._measure(components)
        self._journal.add(measured)
        return measured

    @property
    def place(self) -> Path:
        """Where bundles of mixes are made, one at a time."""
        return self._journal.path.with_suffix("")

    @contextmanager
    def made(self, components: Components) -> Iterator[Bundle]:
        """A bundle of this mix, beside the journal for as long as the context lasts; the source for no mix.

        Its place has a fixed name, so that what a killed search left in it is gone when it resumes.
        """
        if not components:
            yield self.source.bundle
            return
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        try:
            path = self.place / "mix.xattn"
            self._write(path, components, mode=BASELINE)
            yield open_bundle(path)
        finally:
            shutil.rmtree(self.place, ignore_errors=True)

    def write(
        self, output: Path, components: Components, search: Mapping[str, Any], overwrite: bool, command: str
    ) -> None:
        """Write the bundle of this mix for good."""
        self._write(output, components, mode="auto", search=search, overwrite=overwrite, command=command)

    def _write(
        self,
        output: Path,
        components: Components,
        *,
        mode: str,
        search: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        command: str = "",
    ) -> None:
        """Quantize the source's graphs, which are read and prepared already. Mixes that need data have the split's."""
        plans, examples = make_plans(self.source, BASELINE, components, self.options), None
        if needs_examples(plans, self.options):
            examples = SomeExamples(self.split.examples.name, self.split.examples.items[:_CALIBRATED])
        calibrations = calibrate(self.source, plans, self.options, examples, silent)
        write_quantized(
            self.source,
            output,
            plans,
            self.options,
            calibrations,
            mode=mode,
            examples=examples,
            search=search,
            overwrite=overwrite,
            command=command,
        )

    def _measure(self, components: Components) -> Measured:
        try:
            with self.made(components) as small:
                scores = self.split.scores(small)
                size = sum(path.stat().st_size for path in small.path.rglob("*") if path.is_file())
                ratio, memory = self._time(small) if components else 1.0, peak_memory_bytes(small.path) / 2**20
        except XattnError as error:
            return Measured(components, 0.0, math.inf, 0, math.inf, math.inf, str(error))
        if self._baseline is None:
            self._baseline = scores if not components else self.split.scores(self.source.bundle)
            if not self._baseline.mean:
                raise UserError(
                    f"{self.split.name}: expected a bundle that scores above 0, found 0: nothing can be lost"
                )
        return Measured(components, scores.mean, relative_loss(self._baseline.mean, scores.mean), size, ratio, memory)

    def _time(self, small: Bundle) -> float:
        """The time of an answer as a multiple of the fp32 bundle's: the median over a few examples.

        Both take turns, and of several answers to one example the fastest counts.
        """
        tasks = load(self.source.bundle), load(small)
        ratios: list[float] = []
        began = time.perf_counter()
        for example in self.split.examples.items[:_TIMED]:
            turns = [[_seconds(task, example) for task in tasks]]
            while len(turns) < _TURNS and time.perf_counter() - began < _SECONDS_OF_TURNS:
                turns.append([_seconds(task, example) for task in tasks])
            ratios.append(min(turn[1] for turn in turns) / min(turn[0] for turn in turns))
        return statistics.median(ratios)


def _seconds(task: Task, example: Example) -> float:
    began = time.perf_counter()
    run_example(task, example)
    return time.perf_counter() - began


def relative_loss(baseline: float, measured: float) -> float:
    return (baseline - measured) / baseline


def search_identity(bundle: Bundle, split: Split, options: Options) -> dict[str, Any]:
    return {
        "source": file_digest(bundle.path / MANIFEST_FILE),
        "data": [split.name, len(split.examples.items)],
        "options": asdict(options),
    }


def _key(components: Components) -> str:
    return json.dumps(dict(components), sort_keys=True)
