"""Bias correction: what the product with rounded weights lacks on average is added to the bias that follows it.

Activations are far from zero on average, so that errors of weights add up in the same direction at every token. Nothing
is added to the graph (Nagel et al., 2019, https://arxiv.org/abs/1906.04721).
"""

from __future__ import annotations

from collections import Counter

from xattn_export.graph.editing import GraphWriter, with_inputs
from xattn_export.quantize.base.passing import Assignment, Draft, Pass

__all__ = ["CORRECT_BIASES", "correct_biases"]


def correct_biases(draft: Draft, assignment: Assignment) -> Draft:
    """Add the shifts of `draft` to the biases that alone follow those products.

    A product without a bias stays as it is, and layers that are not assigned have no shift.
    """
    graph, writer = draft.graph, GraphWriter(draft.graph.constants())
    constants = writer.constants
    readers = Counter(name for node in graph.nodes for name in node.input)
    readers.update(output.name for output in graph.outputs)
    corrected = 0
    for node in graph.nodes:
        inputs = list(node.input)
        for place, name in enumerate(node.input if node.op_type == "Add" else ()):
            bias = inputs[1 - place]
            if name in draft.shifts and readers[name] == 1 and constants.is_float(bias, 1):
                inputs[1 - place] = constants.add(f"{name}_bias", constants.values(bias) + draft.shifts[name])
                corrected += 1
        writer.keep(with_inputs(node, inputs))
    return draft.after(graph.rewritten(writer), corrected_biases=corrected)


CORRECT_BIASES = Pass("correct_biases", correct_biases)
