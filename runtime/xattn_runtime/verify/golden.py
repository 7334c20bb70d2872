"""Golden cases: what a bundle computes here, beside what the trained model computed when the bundle was made.

`measure` only measures, so that a quantizer can use it; `verify_bundle` judges by the bundle's own tolerance.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xattn_runtime.bundle.folder import Bundle, open_bundle
from xattn_runtime.bundle.manifest import GoldenCase
from xattn_runtime.errors import BundleError, VerificationError
from xattn_runtime.execution.provider_choice import choose_provider
from xattn_runtime.execution.providers import RESOLVED_ON_DEVICE, RequestedProvider
from xattn_runtime.execution.session import SessionSettings
from xattn_runtime.execution.settings import checked_threads, session_settings, tuned_settings
from xattn_runtime.json_reader import one_line
from xattn_runtime.tasks import Task, open_task
from xattn_runtime.verify.wholes import WholeVerdict, compare_wholes, run_wholes

__all__ = [
    "CaseMeasure",
    "CaseVerdict",
    "VerificationReport",
    "chosen_settings",
    "least_lead",
    "measure",
    "relative_rms",
    "verify_bundle",
]


@dataclass(frozen=True)
class CaseMeasure:
    """A golden case as computed here.

    relative_rms: infinite where a value computed is not finite.
    expected_text: None where the case compares no text, as the trained model is not sure of it.
    """

    image: str
    question: str | None
    relative_rms: float
    expected_text: str | None
    found_text: str | None

    @property
    def same_text(self) -> bool:
        """Whether the text is as expected, if any is."""
        return self.expected_text is None or self.found_text == self.expected_text


@dataclass(frozen=True)
class CaseVerdict:
    """A measured case and whether it is within the bundle's tolerance, with the same text."""

    measure: CaseMeasure
    passed: bool


@dataclass(frozen=True)
class VerificationReport:
    """The verdict on every golden case, with the largest `relative_rms` that the bundle allows."""

    bundle: str
    provider: str
    tolerance: float
    cases: tuple[CaseVerdict, ...]
    wholes: tuple[WholeVerdict, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every case passed, and every graph of the whole model gave what the others give."""
        return all(case.passed for case in self.cases) and all(whole.passed for whole in self.wholes)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "bundle": self.bundle,
            "provider": self.provider,
            "tolerance": self.tolerance,
            "passed": self.passed,
            "cases": [{**_finite(asdict(case.measure)), "passed": case.passed} for case in self.cases],
            "wholes": [asdict(whole) | {"passed": whole.passed} for whole in self.wholes],
        }

    def raise_if_failed(self, advice: str = "try another provider, or export the bundle again") -> None:
        """VerificationError that names the first case that failed and by how much, or the graph of the whole model.

        advice: what to do, which depends on who asks.
        """
        failed = [case.measure for case in self.cases if not case.passed]
        if failed:
            worst = failed[0]
            texts = (
                f" and {text!r}" if worst.expected_text is not None else ""
                for text in (worst.expected_text, worst.found_text)
            )
            raise VerificationError(
                f"{self.bundle}: {len(failed)} of {len(self.cases)} golden cases failed on {self.provider}: "
                f"{worst.image}: expected a relative difference of at most {self.tolerance:.3g}{next(texts)}, "
                f"found {worst.relative_rms:.3g}{next(texts)}; {advice}"
            )
        for whole in self.wholes:
            if not whole.passed:
                raise VerificationError(
                    f"{self.bundle}: {whole.role}: expected on {self.provider} what the bundle's graphs give one by "
                    f"one, found {whole.difference}; {advice}"
                )


def verify_bundle(
    bundle: str | os.PathLike[str] | Bundle, provider: str | SessionSettings = "cpu", threads: int | None = None
) -> VerificationReport:
    """Run every golden case of `bundle` through the whole pipeline and judge it, and the graphs of the whole model.

    Raises what `load` raises, and BundleError for golden files that cannot be used; a case that fails raises nothing.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    settings = chosen_settings(provider, threads, opened)
    runs = run_wholes(opened, settings)
    task = open_task(opened, settings)
    tolerance = opened.manifest.golden.relative_rms
    verdicts = tuple(CaseVerdict(case, case.relative_rms <= tolerance and case.same_text) for case in measure(task))
    return VerificationReport(str(opened.path), settings.name, tolerance, verdicts, compare_wholes(task, runs))


def chosen_settings(provider: str | SessionSettings, threads: int | None, bundle: Bundle) -> SessionSettings:
    """As `session_settings`; `auto` and `arm` become the first provider with the golden outputs of `bundle`."""
    if not isinstance(provider, str) or provider not in RESOLVED_ON_DEVICE:
        return session_settings(provider, threads, bundle)
    count = checked_threads(threads)

    def prove(requested: RequestedProvider) -> None:
        verify_bundle(bundle, SessionSettings(requested.provider, count)).raise_if_failed()

    return tuned_settings(choose_provider(provider, bundle, prove), threads, bundle)


def measure(task: Task) -> tuple[CaseMeasure, ...]:
    """Every golden case of the task's bundle, run through the whole pipeline, without judgement."""
    return tuple(_measure_case(task, case) for case in task.bundle.manifest.golden.cases)


def relative_rms(computed: NDArray[np.floating[Any]], golden: NDArray[np.floating[Any]]) -> float:
    """Root-mean-square of the difference over that of `golden`, each row's mean taken off both.

    A constant added to a row of logits changes no probability, hence the means. Both `[…, classes]`, of one shape.
    Infinite where a value is not finite, or where `golden` is constant and `computed` is not.
    """
    centred = [
        values - values.mean(axis=-1, keepdims=True) for values in (computed.astype(float), golden.astype(float))
    ]
    difference = float(np.sqrt(np.mean((centred[0] - centred[1]) ** 2)))
    size = float(np.sqrt(np.mean(centred[1] ** 2)))
    if not np.isfinite(difference) or not np.isfinite(size):
        return float("inf")
    if size == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return difference / size


def least_lead(logits: NDArray[np.floating[Any]]) -> float:
    """By how much the best logit leads where it leads least, over the root-mean-square of all, each row's mean off.

    logits: `[…, classes]`.
    """
    rows = np.sort(np.atleast_2d(logits), axis=-1)
    size = float(np.sqrt(np.mean((rows - rows.mean(-1, keepdims=True)) ** 2))) or 1.0
    return float((rows[..., -1] - rows[..., -2]).min()) / size


def _measure_case(task: Task, case: GoldenCase) -> CaseMeasure:
    result = task.run_case(case)
    golden = _golden_tensors(task.bundle, case, result.tensors)
    difference = max(relative_rms(values, golden[name]) for name, values in result.tensors.items())
    return CaseMeasure(case.image, case.question, difference, case.text, result.text)


def _golden_tensors(
    bundle: Bundle, case: GoldenCase, computed: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.floating[Any]]]:
    """The case's tensors by the names of `computed`, checked to be of the same shapes."""
    path = bundle.file(case.tensors)
    try:
        with np.load(path, allow_pickle=False) as stored:
            tensors: dict[str, NDArray[Any]] = {name: stored[name] for name in computed}
    except Exception as error:  # numpy and zipfile raise half a dozen kinds on damaged input
        raise BundleError(
            f"{path}: expected an .npz with {', '.join(computed)}, found: {one_line(error)}; export the bundle again"
        ) from error
    for name, values in tensors.items():
        if values.shape != computed[name].shape or not np.issubdtype(values.dtype, np.floating):
            raise BundleError(
                f"{path}: {name}: expected floating-point values of shape {list(computed[name].shape)}, found "
                f"{values.dtype} {list(values.shape)}; export the bundle again"
            )
    return tensors


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: such a difference is null."""
    return values | {"relative_rms": values["relative_rms"] if np.isfinite(values["relative_rms"]) else None}
