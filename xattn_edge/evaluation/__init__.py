"""How good a model is: metrics, the floors it must beat, and the evaluation of bundles. Nothing here imports torch."""

from xattn_edge.evaluation.run import EvaluationReport, evaluate

__all__ = ["EvaluationReport", "evaluate"]
