"""The tests' own helpers: what was skipped is told."""

import pytest

from tests.support.programs import requires_program, summary_of_skips


def test_a_missing_program_skips_and_names_its_package():
    with pytest.raises(pytest.skip.Exception) as caught:
        requires_program("no-such-program", "nor-this", package="some-package")
    assert list(summary_of_skips([str(caught.value)])) == ["skipped 1: install some-package to run them"]


def test_a_program_of_the_system_is_found():
    assert requires_program("no-such-program", "sh", package="dash").endswith("/sh")


def test_skips_are_summed_up():
    reasons = [
        "needs node: install nodejs npm",
        "needs npm: install npm",
        "needs c++ or g++: install g++",
        "only Linux",
        "only Linux",
    ]
    assert list(summary_of_skips(reasons)) == [
        "skipped 3: install g++ nodejs npm to run them",
        "skipped 2 for other reasons: only Linux (2)",
    ]
    assert list(summary_of_skips([])) == []
