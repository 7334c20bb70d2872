"""Every fusion once more, for one sample, as its equation says it: loops over features, float64, numpy alone.

Modalities are vectors, or None where they are missing.
"""

import math

import numpy as np


def gelu(x):
    return np.array([value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x])


def linear(values, name, x):
    return values[f"{name}.weight"] @ x + values.get(f"{name}.bias", 0.0)


def filled(values, modalities, prefix):
    """The modalities, zeros in place of missing ones, whose width is that of a map called `prefix`, number and all."""
    shapes = [values[f"{prefix}.{number}.weight"].shape[1] for number in range(len(modalities))]
    return [np.zeros(width) if x is None else x for x, width in zip(modalities, shapes, strict=True)]


def shares(scores, modalities):
    """Softmax of `scores` over the modalities that are there."""
    exponents = [0.0 if x is None else math.exp(score) for score, x in zip(scores, modalities, strict=True)]
    return [each / sum(exponents) if any(exponents) else 0.0 for each in exponents]


def weighted(scores, vectors, modalities):
    weights = shares(scores, modalities)
    total = sum(w * v for w, v in zip(weights, vectors, strict=True))
    return total, np.array(weights)


def concatenation(values, widths, modalities):
    joined = [0.0 if x is None else x[i] for x, width in zip(modalities, widths, strict=True) for i in range(width)]
    if all(x is None for x in modalities):
        return np.zeros(len(values["linear.bias"])), None
    return gelu(linear(values, "linear", np.array(joined))), None


def summed(values, widths, modalities):
    return sum((x for x in modalities if x is not None), np.zeros(widths[0])), None


def dynamic(values, widths, modalities):
    parts = filled(values, modalities, "project")
    sample = np.concatenate(parts)
    vectors = [np.tanh(linear(values, f"project.{m}", part)) for m, part in enumerate(parts)]
    scores = [linear(values, f"gate.{m}", sample) for m in range(len(parts))]
    output, gates = np.zeros(len(vectors[0])), np.zeros((len(parts), len(vectors[0])))
    for feature in range(len(output)):
        gates[:, feature] = shares([score[feature] for score in scores], modalities)
        output[feature] = sum(gates[m, feature] * vector[feature] for m, vector in enumerate(vectors))
    return output, gates


def adaptive(values, widths, modalities):
    parts = filled(values, modalities, "project")
    vectors = [gelu(linear(values, f"project.{m}", part)) for m, part in enumerate(parts)]
    return weighted(values["scores"], vectors, modalities)


def bilinear(values, widths, modalities, rank):
    width = len(values["factors.0.bias"]) // rank
    output = np.zeros(width)
    if all(x is None for x in modalities):
        return output, None
    for r in range(rank):
        for feature in range(width):
            product = 1.0
            for m, x in enumerate(modalities):
                if x is not None:
                    product *= math.tanh(linear(values, f"factors.{m}", x)[r * width + feature])
            output[feature] += product
    return output, None


def late(values, modalities, scores, prefix=""):
    """Each modality's own decision, weighed."""
    names = [f"{prefix}classifiers.{m}" for m in range(len(modalities))]
    parts = filled(values, modalities, f"{prefix}classifiers")
    return weighted(scores, [linear(values, name, part) for name, part in zip(names, parts, strict=True)], modalities)


def hybrid(values, widths, modalities):
    early = {name.removeprefix("early.fusion."): value for name, value in values.items()}
    together = linear(values, "early.classifier", concatenation(early, widths, modalities)[0])
    parts = filled(values, modalities, "late.classifiers")
    alone = [linear(values, f"late.classifiers.{m}", part) for m, part in enumerate(parts)]
    some = None if all(x is None for x in modalities) else together
    return weighted(values["late.fusion.scores"], [*alone, together], [*modalities, some])


def head(name, config, values, widths, modalities):
    """The head of that name: logits and weights."""
    if name in ("late_mean", "late_weighted"):
        return late(values, modalities, [math.log(weight) for weight in config.weights or (1.0,) * len(widths)])
    if name == "late_learned":
        return late(values, modalities, values["fusion.scores"])
    if name == "hybrid":
        return hybrid(values, widths, modalities)
    inner = {key.removeprefix("fusion."): value for key, value in values.items()}
    extra = (config.rank,) if name == "bilinear" else ()
    features = {
        "concatenation": concatenation,
        "sum": summed,
        "dynamic": dynamic,
        "adaptive": adaptive,
        "bilinear": bilinear,
    }
    fused, weights = features[name](inner, widths, modalities, *extra)
    return linear(values, "classifier", fused), weights
