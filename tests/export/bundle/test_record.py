"""How good a bundle was found to be stands in its manifest."""

import errno
import shutil
from pathlib import Path

import pytest

from xattn_export import record_evaluation
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import BundleError, OutputError
from xattn_runtime.verify.golden import verify_bundle

RECORD = {"metric": "accuracy", "value": 90.0, "n": 7, "data": "easy-vqa", "split": "test", "provider": "cpu"}


@pytest.fixture
def bundle(exported, tmp_path):
    return Path(shutil.copytree(exported["lstm"], tmp_path / "lstm.xattn"))


def values(bundle):
    return [(record["split"], record["value"]) for record in open_bundle(bundle).manifest.evaluation]


def test_a_record_is_added_once_for_data_split_and_provider(bundle, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    record_evaluation(bundle, RECORD)
    record_evaluation(bundle, RECORD | {"split": "train", "value": 95.0})
    record_evaluation(bundle, RECORD | {"value": 91.0})
    assert values(bundle) == [("train", 95.0), ("test", 91.0)]
    assert open_bundle(bundle).manifest.evaluation[0]["evaluated_utc"] == "1970-01-02T00:00:00Z"
    assert verify_bundle(bundle).passed
    assert list(bundle.parent.iterdir()) == [bundle]


def test_a_full_disk_leaves_the_manifest_as_it_was(bundle, monkeypatch):
    before = (bundle / "manifest.json").read_bytes()

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        OutputError, match=r"manifest.json: cannot be written: No space left on device; free some space"
    ):
        record_evaluation(bundle, RECORD)
    assert (bundle / "manifest.json").read_bytes() == before
    assert list(bundle.parent.iterdir()) == [bundle]


def test_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="found nothing"):
        record_evaluation(tmp_path / "none.xattn", RECORD)
