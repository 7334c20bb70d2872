"""The emoji set: fetching it with care, splitting it without leaks, and scenes that say what they show."""

import hashlib
import io
import json
import re
import stat
import tarfile
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from xattn_edge.data import data_sets, emoji_images
from xattn_edge.data.emoji_captions import SIDE_PX, SPLITS, EmojiCaptions, _pair_is_held_out
from xattn_edge.data.emoji_images import EmojiImages, _emoji, fetch_emoji
from xattn_runtime.errors import DataError, DependencyError


@pytest.fixture
def data(fake_emoji):
    return EmojiCaptions()


def things(caption):
    return re.findall(r"thing\d+", caption)


def concepts(caption):
    return [f"{0x2600 + int(thing.removeprefix('thing')):x}" for thing in things(caption)]


def test_a_training_sample_is_a_function_of_seed_and_index(data):
    first, again, other = (data.training_sample(seed, 7) for seed in (3, 3, 4))
    assert np.array_equal(first.pixels, again.pixels)
    assert first.caption == again.caption
    assert not np.array_equal(first.pixels, other.pixels)
    assert first.pixels.shape == (SIDE_PX, SIDE_PX, 3)
    assert first.pixels.dtype == np.uint8


def test_training_never_shows_what_is_held_out(data):
    captions = [data.training_sample(0, index).caption for index in range(600)]
    shown = [concepts(caption) for caption in captions]
    assert {len(each) for each in shown} == {1, 2, 3}
    assert not {f"{0x2600 + number:x}" for number in range(0, 60, 10)} & {c for each in shown for c in each}
    assert not any("thing56 with dark" in caption for caption in captions)
    assert not any(_pair_is_held_out(a, b) for each in shown for a, b in combinations(each, 2))


def test_a_training_sample_names_the_things_in_it(data):
    """What the classifiers of the training are told agrees with the caption, in the order of the caption."""
    for index in range(100):
        sample = data.training_sample(0, index)
        assert [data.concepts[thing.concept] for thing in sample.things] == concepts(sample.caption)
        told = re.findall(r"thing\d+(?: with (\w+) skin tone)?", sample.caption)
        assert [data.tones[thing.tone] or "" for thing in sample.things] == told


def test_a_sheet_shows_four_things_where_it_says(data, monkeypatch):
    """Not augmented and without background, the colour found at each middle is that of the thing said to be there."""
    monkeypatch.setattr("xattn_edge.data.emoji_captions.background", lambda rng, side: _white(side))
    monkeypatch.setattr("xattn_edge.data.emoji_captions.augment", lambda rng, drawing: drawing)
    monkeypatch.setattr("xattn_edge.data.emoji_captions.add_noise", lambda rng, canvas: np.asarray(canvas))
    rows = {(p.concept, p.tone): row for row, p in enumerate(EmojiImages().images) if p.split == "train"}
    for index in range(30):
        sheet = data.training_sheet(0, index)
        quarters = {(x > SIDE_PX / 2, y > SIDE_PX / 2) for x, y in (thing.centre_px for thing in sheet.things)}
        assert len(quarters) == 4
        for thing in sheet.things:
            row = rows[data.concepts[thing.concept], data.tones[thing.tone]]
            x, y = map(round, thing.centre_px)
            drawn = [data._drawings[artist][row, 40, 40, :3] for artist in data._artists]
            assert any(np.array_equal(sheet.pixels[y, x], colour) for colour in drawn)


def test_scenes_of_unseen_pairs_hold_nothing_else(data, monkeypatch):
    monkeypatch.setattr("xattn_edge.data.emoji_captions._SCENES", 40)
    samples = list(data.test_samples("unseen-pairs"))
    assert len(samples) == data.split_size("unseen-pairs") == 40
    for sample in samples:
        shown = concepts(sample.caption)
        assert len(shown) in (2, 3)
        assert all(_pair_is_held_out(a, b) for a, b in combinations(shown, 2))


@pytest.mark.parametrize("split", [split for split in SPLITS if split != "unseen-pairs"])
def test_splits_have_the_size_they_say(data, split):
    samples = list(data.test_samples(split))
    assert len(samples) == data.split_size(split) > 0


def test_a_scene_shows_its_things_where_it_says(data, monkeypatch):
    """Without background or jitter, the colour found at each place is that of the thing named for it."""
    monkeypatch.setattr("xattn_edge.data.emoji_captions.background", lambda rng, side: _white(side))
    captions = {picture.caption: row for row, picture in enumerate(EmojiImages().images)}
    checked = 0
    for index in range(200):
        sample = data._scene(np.random.default_rng(index), 2, held_out=False, augmented=False)
        if " to the left of " not in sample.caption or " above " in sample.caption:
            continue
        left, right = re.split(r" to the left of (?:an? )?", sample.caption)
        for caption, column in ((left, SIDE_PX // 4), (right, 3 * SIDE_PX // 4)):
            found = sample.pixels[SIDE_PX // 2, column]
            drawn = [data._drawings[artist][captions[caption], 40, 40, :3] for artist in data._artists]
            assert any(np.array_equal(found, colour) for colour in drawn)
        checked += 1
    assert checked > 20


def _white(side):
    from PIL import Image

    return Image.new("RGB", (side, side), (255, 255, 255))


def test_an_unknown_split_is_refused(data):
    with pytest.raises(DataError, match="unknown split 'train2'; expected one of unseen-artist"):
        data.test_samples("train2")


@pytest.mark.parametrize(
    ("code_points", "split"),
    [
        ("1f469-1f3fd-200d-1f3a8", "held-out-tones"),
        ("1f468-1f3fd-200d-1f3a8", "held-out-tones"),
        ("1f9d1-1f3fd-200d-1f3a8", "held-out-tones"),
        ("1f469-1f3ff-200d-1f3a8", "train"),
        ("1f469-200d-1f3a8", "train"),
    ],
)
def test_one_tone_of_a_profession_is_held_out_for_every_gender(code_points, split):
    assert _emoji(code_points, "artist").split == split


def test_all_tones_of_a_concept_lie_in_one_split():
    for point in range(0x1F400, 0x1F500):
        tones = ("", "-1f3fb", "-1f3ff")
        assert len({_emoji(f"{point:x}{tone}", "thing").split for tone in tones}) == 1


def test_missing_pictures_name_the_command_that_gets_them(tmp_path, monkeypatch):
    monkeypatch.setenv("XATTN_EDGE_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="run `xattn-edge data fetch emoji`"):
        EmojiCaptions()


@pytest.mark.parametrize("damage", ["index", "drawings", "shape"])
def test_damaged_pictures_are_refused(data, tmp_path, damage):
    folder = tmp_path / "emoji" / "v1"
    if damage == "index":
        (folder / "index.json").write_text('[{"caption": "x"}]')
    elif damage == "drawings":
        (folder / "noto.npy").write_bytes(b"\x93NUMPY")
    else:
        np.save(folder / "noto.npy", np.zeros((1, 2), np.uint8))
    with pytest.raises(DataError, match="fetch again"):
        EmojiCaptions()


ICONS = {"width": 32, "height": 32, "icons": {"sun": {"body": '<rect width="32" height="32" fill="#ff0000"/>'}}}


@pytest.fixture
def fake_npm(tmp_path, monkeypatch):
    """An `npm pack` that delivers one red sun, for every artist."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in (("icons", ICONS), ("chars", {"2600": "sun"})):
            blob = json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{name}.json")
            member.size = len(blob)
            tar.addfile(member, io.BytesIO(blob))
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "set.tgz").write_bytes(archive.getvalue())
    npm = tools / "npm"
    npm.write_text(f"#!/bin/sh\n/bin/cp {tools}/set.tgz set.tgz && echo set.tgz\n")
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("XATTN_EDGE_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256(archive.getvalue()).hexdigest()
    artists = tuple(replace(artist, sha256=digest) for artist in emoji_images.ARTISTS)
    monkeypatch.setattr(emoji_images, "ARTISTS", artists)
    return npm


def test_fetching_renders_every_picture_once(fake_npm):
    told = []
    folder = fetch_emoji(lambda message, share: told.append((message, share)))
    pictures = EmojiImages()
    assert [picture.caption for picture in pictures.images] == ["sun"]
    assert pictures.drawings("noto")[0, 40, 40].tolist() == [255, 0, 0, 255]
    assert told[0] == ("render noto", 0)
    fake_npm.unlink()
    assert fetch_emoji() == folder


def test_another_checksum_is_refused_and_leaves_nothing(fake_npm, tmp_path, monkeypatch):
    artists = tuple(replace(artist, sha256="0" * 64) for artist in emoji_images.ARTISTS)
    monkeypatch.setattr(emoji_images, "ARTISTS", artists)
    with pytest.raises(DataError, match=r"expected SHA-256 0+, found [0-9a-f]{64}"):
        fetch_emoji()
    assert list((tmp_path / "cache" / "emoji").iterdir()) == []


def test_a_failing_npm_is_told_in_one_line(fake_npm):
    fake_npm.write_text("#!/bin/sh\necho 'npm error 404' >&2; exit 1\n")
    with pytest.raises(DataError, match=r"cannot fetch @iconify-json/noto 1.2.9: npm error 404"):
        fetch_emoji()


def test_a_missing_npm_is_told(fake_npm):
    fake_npm.unlink()
    with pytest.raises(DependencyError, match="`npm` is not installed"):
        fetch_emoji()


@pytest.mark.parametrize("variable", ["HOME", "XATTN_EDGE_CACHE"])
def test_no_home_is_no_cache(monkeypatch, variable):
    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "XATTN_EDGE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    if variable == "XATTN_EDGE_CACHE":
        monkeypatch.setenv(variable, "~nobody-of-this-name/cache")
    monkeypatch.setattr(Path, "home", lambda: no_home(None))
    monkeypatch.setattr(Path, "expanduser", no_home)
    assert not any(entry.fetched for entry in data_sets() if entry.name != "easy-vqa")
    with pytest.raises(DataError, match=r"expected a home folder for data sets, found none.*XATTN_EDGE_CACHE"):
        fetch_emoji()
