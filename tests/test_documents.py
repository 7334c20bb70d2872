"""What the documents promise: the words of the glossary, files that exist, links that lead somewhere."""

import re
from pathlib import Path

import pytest

from tests.test_import_rule import LEVELS

CHECKOUT = Path(__file__).resolve().parents[1]
DOCS = CHECKOUT / "docs"
GLOSSARY = DOCS / "glossary.md"
PAGES = [
    path
    for path in (*sorted(CHECKOUT.glob("*.md")), CHECKOUT / "examples" / "README.md", *sorted(DOCS.rglob("*.md")))
    if path.exists()
]
CODE = re.compile(r"^ *(```+).*?^ *\1$|`[^`\n]*`|\]\([^)]*\)|<!--.*?-->|<[^>\n]+>", re.MULTILINE | re.DOTALL)

# Page, word: why it may stand there all the same.
EXCEPTIONS: dict[tuple[str, str], str] = {}


def refused_words() -> list[str]:
    """The first column of the glossary's last table."""
    table = GLOSSARY.read_text(encoding="utf-8").partition("| not | but | why |\n|---|---|---|\n")[2]
    rows = [line.split("|")[1] for line in table.partition("\n\n")[0].splitlines()]
    return [word.strip() for row in rows for word in row.split(",")]


def name_of(page: Path) -> str:
    return str(page.relative_to(CHECKOUT))


def prose(page: Path) -> str:
    """The text of a page without its code, its links' targets and its comments."""
    return CODE.sub(" ", page.read_text(encoding="utf-8"))


def uses(text: str, word: str) -> list[str]:
    """Where `word`, or its plural, stands in `text`, with what stands around it."""
    pattern = rf"\b{re.escape(word)}s?\b".replace(r"\ ", r"\s+")
    return [text[max(0, m.start() - 30) : m.end() + 30] for m in re.finditer(pattern, text, re.IGNORECASE)]


@pytest.mark.parametrize("page", [p for p in PAGES if p != GLOSSARY], ids=name_of)
def test_a_page_uses_the_words_of_the_glossary(page):
    text = prose(page)
    for word in refused_words():
        found = uses(text, word)
        if (name_of(page), word) in EXCEPTIONS:
            assert found, f"{name_of(page)} no longer says {word!r}: expected no exception for it"
        else:
            assert not found, f"{name_of(page)}: expected the glossary's word for {word!r}, found {found}"


def test_what_counts_as_a_use():
    words = refused_words()
    assert {"picture", "giver", "goes on"} <= set(words) and len(words) == len(set(words))
    text = "A `picture` [of](picture.md)\n```bash\npicture\n```\n<!-- picture --> two pictures and it goes\non."
    plain = CODE.sub(" ", text)
    assert len(uses(plain, "picture")) == 1 and len(uses(plain, "goes on")) == 1


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not re.match(r"https?://|mailto:|#", target):
            path = page.parent / target.partition("#")[0]
            assert path.exists(), f"{name_of(page)}: expected a file behind the link {target}"


# Pages that name files of the checkout, each of which must exist. NAME and GROUP stand for the reader's own.
NAMING_FILES = [
    CHECKOUT / "CONTRIBUTING.md",
    CHECKOUT / "SECURITY.md",
    DOCS / "architecture.md",
    DOCS / "releasing.md",
    *sorted((DOCS / "decisions").glob("*.md")),
]
PATH = re.compile(r"`((?:\.?[\w.-]+/)+[\w.-]*|[\w-]+\.(?:md|py|toml|yml|txt))`")


@pytest.mark.parametrize("page", NAMING_FILES, ids=name_of)
def test_files_that_a_page_names_exist(page):
    named = PATH.findall(page.read_text(encoding="utf-8"))
    for path in named:
        if "NAME" not in path and path != "manifest.json":
            assert (CHECKOUT / path).exists(), f"{name_of(page)} names {path}: expected it in the checkout"


def test_what_counts_as_a_path():
    text = "`docs/x.md` `.ci/run` `pyproject.toml` `tests/edge/` `a.b` `int8/fp32` [`x`](y/z.md) `NAME.xattn`"
    assert PATH.findall(text) == ["docs/x.md", ".ci/run", "pyproject.toml", "tests/edge/", "int8/fp32"]


def test_contributing_says_how_to_add():
    """Each in a row of its table, with a section of its own below, in the same order."""
    text = (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[an? ([\w ]+)\]\(#", text, re.MULTILINE)
    sections = re.findall(r"^### An? ([\w ]+)$", text, re.MULTILINE)
    assert rows == sections
    what = ("similarity", "fusion", "family", "task", "mode", "provider", "decoding option", "command")
    assert [name for name in what if not any(row.startswith(name) for row in rows)] == []


def test_the_rooms_are_those_of_the_import_rule():
    """docs/architecture.md lists every room of `LEVELS`, in its order, and says what each is for."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(xattn_[\w.]+)` \| (.+) \|$", text.partition("| room | what is in it |")[2], re.MULTILINE)
    assert [room for room, _ in rows] == [room for level in LEVELS for room in level]
    assert all(re.search(r"\w{3}.*[.?…]$", words) for _, words in rows)


def test_the_navigation_holds_every_page():
    """So that none is on the site and cannot be reached; mkdocs --strict checks the rest."""
    nav = (CHECKOUT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"([\w/-]+\.md)$", nav, re.MULTILINE)
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_opens_with_what_it_is_for(page):
    """A heading, and at once a text or the first example."""
    lines = page.read_text(encoding="utf-8").splitlines()
    assert re.match(r"# \S", lines[0]) and not lines[1] and re.match(r"[\w*'\"]", lines[2]), name_of(page)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_is_merged(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    marks = [number for number, line in enumerate(lines, 1) if re.match(r"(<{7}|={7}|>{7})( |$)", line)]
    assert not marks, f"{name_of(page)}: expected no marks of an unfinished merge, found some in the lines {marks}"


MODULE = re.compile(r"\bxattn_(?:edge|export|runtime)(?:\.\w+)+")


def resolves(dotted: str) -> bool:
    """Whether it is a module of ours, or a name that one defines."""
    parts = dotted.split(".")
    root = CHECKOUT / {"xattn_edge": ".", "xattn_export": "export", "xattn_runtime": "runtime"}[parts[0]]
    for end in (len(parts), len(parts) - 1):
        path = root.joinpath(*parts[:end])
        source = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
        if source.is_file():
            rest = parts[end:]
            return not rest or re.search(rf"\b{rest[0]}\b", source.read_text(encoding="utf-8")) is not None
    return False


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_modules_that_a_page_names_exist(page):
    """Of the changelog's tables the last column: the first says where a module was."""
    text = re.sub(r"^ *\| `xattn[^|]*\|", "|", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for dotted in MODULE.findall(text):
        assert resolves(dotted), f"{name_of(page)} names {dotted}: expected a module of ours"
