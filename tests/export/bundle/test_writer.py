"""All of a bundle or none of it, and never less than there was."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from xattn_export.bundle.writer import StagedBundle, check_output, staged_bundle
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import BundleError, OutputError


def copy_into(staged: StagedBundle, bundle: Path) -> None:
    opened = open_bundle(bundle)
    for path in opened.manifest.files:
        staged.write(path, opened.file(path).read_bytes())
    staged.write_manifest(replace(opened.manifest, name="copied"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_bundle_is_written(tmp_path, vqa_bundle):
    output = tmp_path / "new.xattn"
    with staged_bundle(output, overwrite=False) as staged:
        copy_into(staged, vqa_bundle)
        assert not output.exists()
    assert open_bundle(output).manifest.name == "copied"
    assert names(tmp_path) == ["new.xattn"]


def test_a_file_that_was_taken_back_is_gone(tmp_path, vqa_bundle):
    with staged_bundle(tmp_path / "new.xattn", overwrite=False) as staged:
        staged.write("golden/extra.png", b"1")
        staged.remove("golden/extra.png")
        copy_into(staged, vqa_bundle)
    assert "golden/extra.png" not in open_bundle(tmp_path / "new.xattn").manifest.files


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError, MemoryError])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_error_midway_leaves_what_there_was(tmp_path, vqa_copy, error, overwrite):
    output = vqa_copy if overwrite else tmp_path / "new.xattn"
    before = names(tmp_path)
    with pytest.raises(error), staged_bundle(output, overwrite=overwrite) as staged:
        staged.write("graphs/classifier.onnx", b"half")
        raise error
    assert names(tmp_path) == before
    assert open_bundle(vqa_copy).manifest.name == "tiny-vqa"


def test_a_full_disk(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(OutputError, match=r"new\.xattn: cannot be written: No space left on device; free some space"),
        staged_bundle(tmp_path / "new.xattn", overwrite=False) as staged,
    ):
        staged.write("tokenizer.json", b"{}")
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
@pytest.mark.parametrize("failing", ["first", "second", "after second"])
def test_overwriting_that_fails_restores_the_old(tmp_path, vqa_copy, monkeypatch, error, failing):
    """Wherever between the two renames it fails, there is one whole bundle, and nothing beside it."""
    real, calls = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        calls.append(self)
        if (failing, len(calls)) in (("first", 1), ("second", 2)):
            raise error
        result = real(self, target)
        if (failing, len(calls)) == ("after second", 2):
            raise error
        return result

    monkeypatch.setattr(Path, "rename", rename)
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected), staged_bundle(vqa_copy, overwrite=True) as staged:
        copy_into(staged, vqa_copy)
    assert names(tmp_path) == [vqa_copy.name]
    assert open_bundle(vqa_copy).manifest.name == ("copied" if failing == "after second" else "tiny-vqa")


def test_overwriting_replaces(tmp_path, vqa_copy):
    with staged_bundle(vqa_copy, overwrite=True) as staged:
        copy_into(staged, vqa_copy)
    assert open_bundle(vqa_copy).manifest.name == "copied"
    assert names(tmp_path) == [vqa_copy.name]


def test_an_output_that_appears_meanwhile_is_kept(tmp_path):
    output = tmp_path / "new.xattn"
    with pytest.raises(OutputError, match="already exists"), staged_bundle(output, overwrite=False) as staged:
        staged.write("tokenizer.json", b"{}")
        output.mkdir()
    assert names(tmp_path) == ["new.xattn"]


def test_refused_outputs(tmp_path, vqa_copy):
    with pytest.raises(OutputError, match="already exists; name another place, or replace it with --overwrite"):
        check_output(vqa_copy, overwrite=False)
    precious = tmp_path / "thesis"
    precious.mkdir()
    link = tmp_path / "link.xattn"
    link.symlink_to(vqa_copy)
    (tmp_path / "file").write_text("1")
    for output in (precious, link, tmp_path / "file"):
        with pytest.raises(OutputError, match="expected a bundle to overwrite, found something else"):
            check_output(output, overwrite=True)
    with pytest.raises(OutputError, match="expected an existing folder to write into"):
        check_output(tmp_path / "nowhere" / "new.xattn", overwrite=False)
    with pytest.raises(OutputError, match="expected an existing folder to write into"):
        check_output(tmp_path / "file" / "new.xattn", overwrite=False)


def test_a_folder_without_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="no permission to write into"):
        check_output(tmp_path / "new.xattn", overwrite=False)


def test_a_name_that_is_too_long(tmp_path):
    with (
        pytest.raises(OutputError, match="choose a shorter name"),
        staged_bundle(tmp_path / ("x" * 256), overwrite=False),
    ):
        pass
    assert names(tmp_path) == []


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path, vqa_bundle):
    dead = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(dead, 0)
    kept = [
        f".new.xattn.{os.getppid()}-0123abcd.partial",
        f".other.xattn.{dead}-0123abcd.partial",
        ".new.xattn.partial",
    ]
    for name in (*kept, f".new.xattn.{dead}-0123abcd.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    with staged_bundle(tmp_path / "new.xattn", overwrite=False) as staged:
        copy_into(staged, vqa_bundle)
    assert names(tmp_path) == sorted(["new.xattn", *kept])


def test_a_bundle_that_holds_other_files_is_not_overwritten(vqa_copy):
    (vqa_copy / ".DS_Store").touch()
    check_output(vqa_copy, overwrite=True)
    (vqa_copy / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"expected a bundle to overwrite, found .*notes\.txt in it"):
        check_output(vqa_copy, overwrite=True)


@pytest.mark.parametrize("content", ['{"manifest_version": 3, "files": {}}', "{", "[]", '{"schema_version": 1}'])
def test_a_folder_of_another_program_is_not_overwritten(tmp_path, content):
    (tmp_path / "extension").mkdir()
    (tmp_path / "extension" / "manifest.json").write_text(content)
    with pytest.raises(OutputError, match="expected a bundle to overwrite, found something else"):
        check_output(tmp_path / "extension", overwrite=True)


def test_what_is_said_of_a_bundle_names_the_one_that_was_to_be_written(tmp_path):
    output = tmp_path / "new.xattn"
    with pytest.raises(BundleError) as caught, staged_bundle(output, overwrite=False) as staged:
        raise BundleError(f"{staged.folder / 'manifest.json'}: labels: expected other names, found 'yes'")
    assert str(caught.value) == f"{output / 'manifest.json'}: labels: expected other names, found 'yes'"
    assert not list(tmp_path.iterdir())
