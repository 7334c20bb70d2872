"""Every `xattn-edge …` that the documents tell a reader to type is a command line that exists."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
FENCE = re.compile(r"^```(?:bash|console|sh|shell)\n(.*?)^```", re.MULTILINE | re.DOTALL)
DOCUMENTS = [path for path in (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))) if path.exists()]


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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_command_lines_parse(parse, document):
    for arguments in typed(document.read_text(encoding="utf-8")):
        if arguments not in (["--version"], ["--help"], ["--install-completion"]):
            parse(arguments)


def test_what_counts_as_a_call():
    lines = ['$ cd x && xattn-edge vqa a.png "is it red?" > out', "# xattn-edge no", "xattn-edge a \\", "  b | tee c"]
    text = "\n".join(["```console", *lines, "```"])
    assert list(typed(text)) == [["vqa", "a.png", "is it red?"], ["a", "b"]]
