"""What is kept of tokens that were read: rows of it, and the part of a split cache that no step copies."""

import numpy as np
import pytest

from xattn_runtime.generate.cache import Cache


def split(rows: int, frozen: int, past: int, frozen_rows: int | None = None) -> Cache:
    """A cache of one layer, 1 head of width 2, whose values are the numbers of its tokens and a tenth a row."""

    def tokens(first: int, count: int, rows: int) -> np.ndarray:
        numbers = np.arange(first, first + count, dtype=np.float32)[None, :] + np.arange(rows)[:, None] / 10
        return np.repeat(numbers[:, None, :, None], 2, axis=3).astype(np.float32)

    settled = tokens(0, frozen, rows if frozen_rows is None else frozen_rows)
    recent = tokens(frozen, past, rows)
    return Cache(
        {"past_key_0": recent.swapaxes(2, 3), "past_value_0": recent},
        {"frozen_key_0": settled.swapaxes(2, 3), "frozen_value_0": settled},
    )


def seen(cache: Cache) -> tuple[list[float], list[float]]:
    """The first row's values: frozen, and the others; keys say the same."""
    both = []
    for tensors, series in ((cache.frozen, "frozen"), (cache.tensors, "past")):
        key, value = tensors[f"{series}_key_0"], tensors[f"{series}_value_0"]
        np.testing.assert_array_equal(key.swapaxes(2, 3), value)
        both.append(value[0, 0, :, 0].tolist())
    return both[0], both[1]


def test_what_is_settled_is_frozen_and_in_order() -> None:
    assert seen(split(2, 3, 2).settled()) == ([0, 1, 2, 3, 4], [])
    assert seen(split(2, 0, 2).settled()) == ([0, 1], [])
    few = split(2, 3, 2)
    assert few.settled(least=3) is few
    empty = split(1, 3, 0)
    assert empty.settled() is empty


def test_a_part_that_rows_have_in_common_stays_as_it_is() -> None:
    shared = split(3, 4, 2, frozen_rows=1)
    assert shared.settled() is shared
    assert len(split(1, 4, 2).repeated(3).frozen["frozen_key_0"]) == 1
    assert len(split(2, 4, 2).repeated(3).frozen["frozen_key_0"]) == 6
    assert shared.of_rows([2, 0]).frozen is shared.frozen


def test_rows_are_taken_of_both_parts_and_reordered_in_one() -> None:
    cache = split(3, 2, 1)
    taken = cache.of_rows([2])
    np.testing.assert_allclose(seen(taken)[0], [0.2, 1.2], rtol=1e-6)
    np.testing.assert_allclose(seen(taken)[1], [2.2], rtol=1e-6)
    reordered = cache.reordered([1, 1, 0])
    assert reordered.frozen is cache.frozen
    np.testing.assert_allclose(reordered.tensors["past_value_0"][:, 0, 0, 0], [2.1, 2.1, 2.0], rtol=1e-6)


def test_a_cache_of_one_part_is_never_settled() -> None:
    single = Cache({"past_key_0": np.zeros((2, 1, 3, 2), np.float32)})
    assert single.settled() is single
    assert single.inputs == dict(single.tensors)
    assert single.repeated(2).tensors["past_key_0"].shape == (4, 1, 3, 2)
    assert not Cache({"past_key_0": object()}, {}).is_here  # type: ignore[dict-item]


@pytest.mark.parametrize(("length", "frozen", "past"), [(5, [0, 1, 2], [3, 4]), (4, [0, 1, 2], [3]), (2, [0, 1], [])])
def test_the_beginning_of_a_split_cache(length: int, frozen: list[float], past: list[float]) -> None:
    cache = split(1, 3, 2)
    begun = cache.begun(length)
    assert begun is not None and seen(begun) == (frozen, past)
    assert (cache.length, begun.length) == (5, length)
    assert begun.size_bytes == length * 2 * 2 * 4


def test_the_beginning_of_a_cache_of_one_part_and_of_states() -> None:
    keys = {"past_key_0": np.arange(6, dtype=np.float32).reshape(1, 1, 3, 2)}
    single = Cache(keys)
    begun = single.begun(2)
    assert begun is not None and begun.tensors["past_key_0"].tolist() == [[[[0, 1], [2, 3]]]]
    assert single.begun(3) is single
    with_state = Cache({**keys, "past_conv_0": np.zeros((1, 2, 3), np.float32)})
    assert with_state.begun(3) is with_state
    assert with_state.begun(2) is None
