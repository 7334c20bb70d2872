"""What an ONNX graph is made of, from its header: operators, domains, opset, precision, and whether it is standard.

A name in the domain `ai.onnx` is not enough: the operator must exist in the opset that the graph imports, and must not
be deprecated there. Every graph, subgraph and function counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from xattn_runtime.bundle.onnx_header import ModelHeader, WeightHeader
from xattn_runtime.bundle.standard_operators import STANDARD_DOMAIN, not_standard

__all__ = ["GraphFacts", "facts_of"]

_INT8_OPERATORS = frozenset({"MatMulInteger", "ConvInteger", "DequantizeLinear", "QLinearMatMul", "QLinearConv"})
# Element types as TensorProto.DataType numbers them.
_FLOATS: Mapping[int, str] = {1: "fp32", 10: "fp16", 16: "bf16"}
_BYTES = (2, 3)
_HALF_BYTES = (21, 22)


@dataclass(frozen=True)
class GraphFacts:
    """What a graph is made of.

    opset: of `ai.onnx`, or None where the graph does not import it.
    domains: that are imported or used, `ai.onnx` for the default one.
    operators: name → count, over all graphs and functions; other domains' names are `domain::name`.
    offences: why it is not standard, empty where it is.
    precision: `int4` where weights are of 4 bits, `int8` where weights or products are of 8 bits, else that of most
        weights.
    """

    opset: int | None
    domains: tuple[str, ...]
    operators: Mapping[str, int]
    offences: tuple[str, ...]
    precision: str

    @property
    def standard(self) -> bool:
        """Whether every operator is a standard one."""
        return not self.offences

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "opset": self.opset,
            "domains": list(self.domains),
            "operators": dict(self.operators),
            "precision": self.precision,
        }


def facts_of(header: ModelHeader) -> GraphFacts:
    """The facts of a model; never raises for what is not standard."""
    imports = _imports(header.opsets)
    operators: Counter[str] = Counter()
    domains = set(imports)
    offences = [f"imports the domain {domain}" for domain in imports if domain != STANDARD_DOMAIN]
    if STANDARD_DOMAIN not in imports:
        offences.append(f"does not import {STANDARD_DOMAIN}")
    for body in header.bodies:
        scope = _imports(body.opsets)
        if foreign := [domain for domain in scope if domain != STANDARD_DOMAIN]:
            offences += [f"{body.name} imports the domain {domain}" for domain in foreign]
            domains.update(foreign)
        for node in body.nodes:
            domain = node.domain or STANDARD_DOMAIN
            name = node.operator if domain == STANDARD_DOMAIN else f"{domain}::{node.operator}"
            operators[name] += 1
            domains.add(domain)
            if reason := _offence(domain, node.operator, scope.get(STANDARD_DOMAIN)):
                offences.append(f"{body.name} holds {name}, {reason}")
    return GraphFacts(
        opset=imports.get(STANDARD_DOMAIN),
        domains=tuple(sorted(domains)),
        operators=dict(sorted(operators.items())),
        offences=tuple(dict.fromkeys(offences)),
        precision=_precision(header.bodies[0].weights, operators),
    )


def _imports(opsets: Iterable[tuple[str, int]]) -> dict[str, int]:
    return {domain or STANDARD_DOMAIN: version for domain, version in opsets}


def _offence(domain: str, operator: str, opset: int | None) -> str | None:
    """Why an operator is not standard, or None where it is."""
    if domain != STANDARD_DOMAIN:
        return f"which is not of {STANDARD_DOMAIN}"
    if opset is None:
        return f"and does not import {STANDARD_DOMAIN}"
    return not_standard(operator, opset)


def _precision(weights: Iterable[WeightHeader], operators: Mapping[str, int]) -> str:
    weights = list(weights)
    if any(weight.dtype in _HALF_BYTES for weight in weights):
        return "int4"
    has_bytes = any(weight.dtype in _BYTES and len(weight.shape) > 1 for weight in weights)
    if has_bytes or not _INT8_OPERATORS.isdisjoint(operators):
        return "int8"
    elements: Counter[str] = Counter()
    for weight in weights:
        if weight.dtype in _FLOATS:
            elements[_FLOATS[weight.dtype]] += math.prod(weight.shape)
    return elements.most_common(1)[0][0] if elements else "fp32"
