from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.programs import requires_program
from xattn_edge.report.profile_page import profile_page
from xattn_edge.report.profile_plots import draw_plots
from xattn_runtime.errors import DependencyError
from xattn_runtime.files import check_replaceable


@pytest.fixture(scope="module")
def document(vqa_bundle: Path, caption_bundle: Path) -> dict[str, Any]:
    from xattn_runtime.profiling import ProfileOptions, profile_matrix

    found = profile_matrix([caption_bundle, vqa_bundle], threads=[1], options=ProfileOptions(time_budget_s=1.5))
    values: dict[str, Any] = json.loads(json.dumps(found.to_dict()))
    shift = {"share": 0.2, "low": 0.1, "high": 0.3, "detectable": 0.1}
    change = {"name": "<b>", "provider": "cpu", "threads": 1, "stage": "total", "shift": shift, "verdict": "worse"}
    failure = {"message": "provider cuda: <missing>"}
    return values | {"against": [change], "failures": [failure]}


class Links(HTMLParser):
    """What a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_a_page_by_itself(document: dict[str, Any]) -> None:
    page = profile_page(document)
    links = Links()
    links.feed(page)
    assert all(link.startswith("#") for link in links.found)
    assert "script" not in links.tags
    assert links.tags.count("svg") == 5
    assert not re.search(r"url\((?!#)", page)
    assert "<b>" not in page
    assert "provider cuda: &lt;missing&gt;" in page
    assert "currentColor" in page


def test_the_same_document_gives_the_same_plots(document: dict[str, Any]) -> None:
    assert draw_plots(document) == draw_plots(document)


def test_nothing_measured(document: dict[str, Any]) -> None:
    assert "<svg" not in profile_page(document | {"profiles": []})


def test_without_matplotlib(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DependencyError, match=r"xattn-edge\[report\]"):
        profile_page(document)


def test_a_browser_shows_it(document: dict[str, Any], tmp_path: Path) -> None:
    browser = requires_program("chromium-headless-shell", "chromium", "google-chrome", package="chromium")
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    page.write_text(profile_page(document), encoding="utf-8")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1000,3000")
    result = subprocess.run(
        [browser, *flags, f"--user-data-dir={tmp_path / 'user'}", f"--screenshot={picture}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert picture.exists(), result.stderr[-2000:]
    assert "ERR_" not in result.stderr
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    colours = {tuple(colour) for colour in np.unique(pixels[::2, ::2].reshape(-1, 3), axis=0).tolist()}
    # The bars of the first two stages.
    assert {(59, 125, 216), (224, 123, 57)} <= colours


def test_a_page_is_known_again(document: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "profile.html"
    path.write_text(profile_page(document), encoding="utf-8")
    check_replaceable(path)
