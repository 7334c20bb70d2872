"""Every mechanism once more, for one sample, as its equations say it: loops over positions, float64, numpy alone.

Reads the parameters of a module and nothing else of it.
"""

import math

import numpy as np


def weights_of(module):
    """The parameters by name, float64."""
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


def linear(values, name, x):
    return values[f"{name}.weight"] @ x + values.get(f"{name}.bias", 0.0)


def score(values, similarity, name, head, query, key):
    """Of one query and one key, both vectors of a head."""
    if similarity == "additive":
        energy = values[f"{name}.energy"][head]
        return sum(e * math.tanh(q + k) for e, q, k in zip(energy, query, key, strict=True))
    product = sum(q * k for q, k in zip(query, key, strict=True))
    if similarity == "scaled_dot":
        return product / math.sqrt(len(query))
    if similarity == "cosine":
        length = math.sqrt(sum(q * q for q in query)) * math.sqrt(sum(k * k for k in key))
        return product / length * min(100.0, math.exp(values[f"{name}.log_scale"]))
    return product


def weigh(options, scores, allowed):
    """Weights of one row of scores."""
    candidates = [j for j, ok in enumerate(allowed) if ok]
    if options.weighting == "hard":
        candidates = sorted(candidates, key=lambda j: (-scores[j], j))[: options.top_k]
    row = np.zeros(len(scores))
    if not candidates:
        return row
    highest = max(scores[j] for j in candidates)
    for j in candidates:
        row[j] = math.exp(scores[j] - highest)
    return row / row.sum()


def head_of(vector, head, heads):
    """The part of a vector that a head sees."""
    width = len(vector) // heads
    return vector[head * width : (head + 1) * width]


def attention(values, options, query, context, allowed):
    """CrossModalAttention: `query` [L, dim_q], `context` [S, dim_k], `allowed` [L, S] to output and weights."""
    keys = [linear(values, "k_linear", x) for x in context]
    found = [linear(values, "v_linear", x) for x in context]
    outputs, weights = [], np.zeros((options.heads, len(query), len(context)))
    for i, asked in enumerate(query):
        projected = linear(values, "q_linear", asked)
        parts = []
        for head in range(options.heads):
            group = head // (options.heads // options.key_heads)
            q = head_of(projected, head, options.heads)
            scores = [
                score(values, options.similarity, "similarity", head, q, head_of(key, group, options.key_heads))
                for key in keys
            ]
            weights[head, i] = weigh(options, scores, allowed[i])
            parts.append(
                sum(weights[head, i, j] * head_of(value, group, options.key_heads) for j, value in enumerate(found))
            )
        joined = np.concatenate(parts)
        outputs.append(linear(values, "out_linear", joined) if options.heads > 1 else joined)
    return np.array(outputs), weights


def hierarchical(values, options, order, query, context, allowed):
    """HierarchicalAttention: `context` [G, P, dim_k], `allowed` [G, P]; weights [heads, L, G, P]."""
    groups, members = allowed.shape
    outputs, weights = [], np.zeros((options.heads, len(query), groups, members))

    def member(name, head, g, p):
        group = head // (options.heads // options.key_heads)
        return head_of(linear(values, name, context[g, p]), group, options.key_heads)

    for i, asked in enumerate(query):
        parts = []
        for head in range(options.heads):
            q = head_of(linear(values, "q_linear", asked), head, options.heads)
            inside, group_scores = [], []
            for g in range(groups):
                scores = [
                    score(values, options.similarity, "member_similarity", head, q, member("k_linear", head, g, p))
                    for p in range(members)
                ]
                inside.append(weigh(options, scores, allowed[g]))
                shares = inside[-1] if order == "members_first" else allowed[g] / max(1, allowed[g].sum())
                key = sum(shares[p] * member("group_linear", head, g, p) for p in range(members))
                if np.any(key) or options.similarity != "cosine":
                    group_scores.append(score(values, options.similarity, "group_similarity", head, q, key))
                else:
                    group_scores.append(0.0)
            over = weigh(options, group_scores, allowed.any(1))
            total = 0.0
            for g in range(groups):
                for p in range(members):
                    weights[head, i, g, p] = over[g] * inside[g][p]
                    total = total + weights[head, i, g, p] * member("v_linear", head, g, p)
            parts.append(total)
        joined = np.concatenate(parts)
        outputs.append(linear(values, "out_linear", joined) if options.heads > 1 else joined)
    return np.array(outputs), weights


def columns(mask, queries):
    """The mask of a context for every query."""
    return np.array([mask for _ in range(queries)])


def sub(values, prefix):
    """The parameters of a part."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def text_to_image(values, config, text, image):
    found, _ = attention(sub(values, "attention."), config.options, text[0], image[0], columns(image[1], len(text[0])))
    return found, None


def image_to_text(values, config, text, image):
    return None, text_to_image(values, config, image, text)[0]


def two_way(values, config, text, image):
    back = "attentions.0." if config.shared else "attentions.1."
    to_image, to_text = (columns(b[1], len(a[0])) for a, b in ((text, image), (image, text)))
    return (
        attention(sub(values, "attentions.0."), config.options, text[0], image[0], to_image)[0],
        attention(sub(values, back), config.options, image[0], text[0], to_text)[0],
    )


def multi_hop(values, config, text, image):
    words, positions = text[0], image[0]
    for hop in range(config.hops):
        part = sub(values, f"attentions.{0 if config.shared else hop}.")
        if hop % 2 == 0:
            words = words + attention(part, config.options, words, positions, columns(image[1], len(words)))[0]
        else:
            positions = (
                positions + attention(part, config.options, positions, words, columns(text[1], len(image[0])))[0]
            )
    return words - text[0], positions - image[0] if config.hops > 1 else None


def self_attention(values, config, text, image):
    nodes, mask = np.concatenate([text[0], image[0]]), np.concatenate([text[1], image[1]])
    found, _ = attention(sub(values, "attention."), config.options, nodes, nodes, columns(mask, len(nodes)))
    return found[: len(text[0])], found[len(text[0]) :]


def graph(values, config, text, image):
    nodes, mask = np.concatenate([text[0], image[0]]), np.concatenate([text[1], image[1]])
    directions = [node / np.linalg.norm(node) for node in nodes]
    edges = np.zeros((len(nodes), len(nodes)), bool)
    for i in range(len(nodes)):
        for side in (range(len(text[0])), range(len(text[0]), len(nodes))):
            there = [j for j in side if mask[j]]
            nearest = sorted(there, key=lambda j: (-float(directions[i] @ directions[j]), j))
            for j in nearest[: config.neighbours]:
                edges[i, j] = True
        edges[i, i] = True
    edges &= mask[:, None] & mask[None, :]
    found, _ = attention(sub(values, "attention.attention."), config.options, nodes, nodes, edges)
    return found[: len(text[0])], found[len(text[0]) :]


def grouped(tokens, members):
    """Groups given as lists of positions; -1 stands for padding."""
    features = np.array(
        [[tokens[0][p] if p >= 0 else np.zeros(tokens[0].shape[1]) for p in group] for group in members]
    )
    return features, np.array([[p >= 0 and bool(tokens[1][p]) for p in group] for group in members])


def windows(side, window):
    """Positions of a feature map by region."""
    return [
        [y * side + x for y in range(top, top + window) for x in range(left, left + window)]
        for top in range(0, side, window)
        for left in range(0, side, window)
    ]


def runs(count, length):
    """Positions that follow each other, `length` at a time."""
    return [[p if p < count else -1 for p in range(start, start + length)] for start in range(0, count, length)]


def hierarchical_exchange(values, config, text, image, side):
    areas = windows(side, config.window) if side else runs(len(image[0]), config.window)
    lines = runs(len(text[0]), config.words)
    by_text, by_image = sub(values, "text_attention."), sub(values, "image_attention.")
    return (
        hierarchical(by_text, config.options, "groups_first", text[0], *grouped(image, areas))[0],
        hierarchical(by_image, config.options, "members_first", image[0], *grouped(text, lines))[0],
    )
