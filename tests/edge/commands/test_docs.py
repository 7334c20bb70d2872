"""Every `xattn-edge …` that the documents tell a reader to type is a command line that exists."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```(?:bash|console|sh|shell)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FOLDERS = (CHECKOUT, CHECKOUT / "examples", CHECKOUT / "docs", CHECKOUT / "docs" / "decisions")
DOCUMENTS = [path for folder in FOLDERS for path in sorted(folder.glob("*.md"))]
GETTING_STARTED = CHECKOUT / "docs" / "getting-started.md"


def typed(text: str) -> Iterator[list[str]]:
    """The arguments of every call of ours in the shell blocks of a document."""
    for block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
            words.whitespace_split = True
            call: list[str] = []
            for word in (*words, ";"):
                if not re.fullmatch(r"[();<>|&]+", word):
                    call.append(word)
                    continue
                if call[:1] == ["xattn-edge"]:
                    yield call[1:]
                elif call[:2] == ["python", "cli.py"]:
                    yield call[2:]
                call = []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_command_lines_parse(parse, document):
    for arguments in typed(document.read_text(encoding="utf-8")):
        if arguments not in (["--version"], ["--help"], ["--install-completion"]):
            parse(arguments)


@pytest.mark.slow
def test_getting_started_runs(invoke, tmp_path, monkeypatch):
    """Its commands, as they are written, one after another; its Python, and that of the architecture."""
    for folder in ("examples", "checkpoints"):
        (tmp_path / folder).symlink_to(CHECKOUT / folder)
    monkeypatch.chdir(tmp_path)
    text = GETTING_STARTED.read_text(encoding="utf-8")
    calls = list(typed(text))
    assert [call[0] for call in calls] == ["caption", "vqa", "export", "quantize", "verify", "vqa"]
    for call in calls:
        result = invoke(*call)
        assert (result.exit_code, result.stdout != "") == (0, True), f"{call}: {result.stderr}"
    for page, printed in ((GETTING_STARTED, "blue\nno\n"), (CHECKOUT / "docs" / "architecture.md", "blue\n")):
        (example,) = PYTHON.findall(page.read_text(encoding="utf-8"))
        ran = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stdout) == (0, printed), ran.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_python_is_python(document):
    for example in PYTHON.findall(document.read_text(encoding="utf-8")):
        compile(example, document.name, "exec")


def scripts_called(text: str) -> Iterator[tuple[str, list[str]]]:
    """The scripts of ours in the shell blocks of a document, each with its options."""
    for block in FENCE.findall(text):
        for path, rest in re.findall(
            r"^(?:\$ )?(?:python3? )?((?:scripts|benchmarks|\.ci)/\S+)(.*)$", block, re.MULTILINE
        ):
            yield path, re.findall(r"--[\w-]+", rest)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_scripts_exist_and_take_their_options(document):
    for path, options in scripts_called(document.read_text(encoding="utf-8")):
        source = (CHECKOUT / path).read_text(encoding="utf-8")
        assert all(f'"{option}"' in source for option in options), f"{document.name}: {path} {options}"


def test_what_contributing_tells_to_type_is_what_ci_runs():
    """Its first line is the README's block, and the rest is in `.ci/run`."""
    readme, contributing = ((CHECKOUT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md"))
    ci = (CHECKOUT / ".ci" / "run").read_text(encoding="utf-8")
    (block, whole) = (text.splitlines() for text in FENCE.findall(contributing))
    assert block[0] in readme.partition("<!-- run: tests -->")[2]
    assert len(block) > 1 and all(line.removeprefix("$ ") in ci for line in block[1:])
    assert whole == ["$ .ci/run"]


def test_what_counts_as_a_call():
    lines = ['$ cd x && xattn-edge vqa a.png "is it red?" > out', "# xattn-edge no", "xattn-edge a \\", "  b | tee c"]
    text = "\n".join(["```console", *lines, "```"])
    assert list(typed(text)) == [["vqa", "a.png", "is it red?"], ["a", "b"]]
