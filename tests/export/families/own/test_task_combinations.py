"""A sample of what the script takes all the way: re-ranking by a mechanism that its recipe does not use."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[4] / "scripts" / "check_combinations.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("check_combinations", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_whole_way(script, tmp_path):
    combination = ("retrieval", "graph", "cosine", "none", "patches", "transformer")
    assert combination in set(script.combinations(script.TASKS))
    script.take_all_the_way(script.configuration(*combination), combination[0], tmp_path)


def test_no_pair_of_mechanism_and_fusion_is_left_out(script):
    for task in ("vqa", "sentiment"):
        found = {(mechanism, fusion) for _, mechanism, _, fusion, _, _ in script.combinations((task,))}
        assert len(found) == len(script.MECHANISMS) * len(script.FUSIONS)
