"""`retrieve` with an index: made once, brought up to date, refused where it does not fit."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.edge.conftest import small_retrieval
from xattn_edge.data.vocabulary import piece_tokenizer
from xattn_edge.models import Checkpoint, build_model, save_checkpoint
from xattn_edge.training.pixels import image_preprocessing
from xattn_export import export_checkpoint
from xattn_runtime import default_bundle, load
from xattn_runtime.retrieval import index as index_module
from xattn_runtime.retrieval import search
from xattn_runtime.retrieval.index import open_index
from xattn_runtime.retrieval.search import search_index

QUERY = "a red circle"


def write_bundle(place, seed):
    """A bundle of random weights that re-ranks."""
    import torch

    torch.manual_seed(seed)
    tokenizer = piece_tokenizer(["a red circle", "a blue square"], 20)
    config = small_retrieval()
    config = replace(config, text=replace(config.text, vocabulary=tokenizer.get_vocab_size()))
    checkpoint = Checkpoint(
        path=place / f"checkpoint{seed}",
        task="retrieval",
        name=f"small-{seed}",
        license="Apache-2.0",
        config=config,
        model=build_model(config).eval(),
        tokenizer_json=tokenizer.to_str(),
        image_preprocessing=image_preprocessing(16),
        recipe={},
    )
    save_checkpoint(checkpoint)
    export_checkpoint(checkpoint.path, place / f"small-{seed}.xattn")
    return place / f"small-{seed}.xattn"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    place = tmp_path_factory.mktemp("bundles")
    return [write_bundle(place, 0), default_bundle("retrieval")]


@pytest.fixture
def folder(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(20):
        write_picture(pictures / f"{number:02}.png", number)
    return pictures


def write_picture(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize((20, 20), Image.Resampling.NEAREST).save(path)


def results(answer):
    assert answer.exit_code == 0, answer.stderr
    return json.loads(answer.stdout)["results"]


def test_an_index_finds_what_the_folder_gives(invoke, bundles, folder, tmp_path):
    index = tmp_path / "pictures.xindex"
    arguments = ("retrieve", QUERY, "--bundle", bundles[0], "--json", "--top-k", "20")
    without = results(invoke(*arguments, "--in", folder))
    made = invoke(*arguments, "--in", folder, "--index", index)
    assert "20 images, 20 of them new or altered, 0 gone" in made.stderr
    assert [found["image"] for found in results(made)] == [found["image"] for found in without]
    assert [found["cosine"] for found in results(made)] == pytest.approx([found["cosine"] for found in without])
    assert results(invoke(*arguments, "--index", index)) == results(made)
    assert isinstance(open_index(index, load(bundles[0]).bundle).embeddings, np.memmap)
    image = invoke("retrieve", folder / "07.png", "-b", bundles[0], "--index", index, "--json", "--top-k", "1")
    assert Path(results(image)[0]["image"]).name == "07.png"
    assert results(image)[0]["cosine"] == pytest.approx(1, abs=1e-5)


def test_an_index_follows_its_folder(invoke, bundles, folder, tmp_path):
    index = tmp_path / "pictures.xindex"
    arguments = ("retrieve", QUERY, "--bundle", bundles[0], "--in", folder, "--json", "--top-k", "30")
    invoke(*arguments, "--index", index)
    (folder / "00.png").unlink()
    write_picture(folder / "new.png", 77)
    write_picture(folder / "05.png", 78)
    os.utime(folder / "05.png", ns=(1, 1))
    again = invoke(*arguments, "--index", index)
    assert "20 images, 2 of them new or altered, 2 gone" in again.stderr
    assert [found["cosine"] for found in results(again)] == pytest.approx(
        [found["cosine"] for found in results(invoke(*arguments))]
    )


def test_a_broken_picture_is_named_and_the_others_are_found(invoke, bundles, folder, tmp_path):
    (folder / "broken.png").write_bytes((folder / "00.png").read_bytes()[:60])
    found = invoke("retrieve", QUERY, "-b", bundles[0], "--in", folder, "--index", tmp_path / "i", "--json")
    assert found.exit_code == 2
    assert "broken.png" in found.stderr
    assert len(json.loads(found.stdout)["results"]) == 10


def test_a_folder_that_changes_meanwhile(invoke, bundles, folder, tmp_path, monkeypatch):
    embed = index_module._embed

    def change(*arguments):
        write_picture(folder / "late.png", 1)
        (folder / "03.png").unlink()
        os.utime(folder / "04.png", ns=(1, 1))
        return embed(*arguments)

    monkeypatch.setattr(index_module, "_embed", change)
    (tmp_path / "kept").write_text("x")
    answer = invoke("retrieve", QUERY, "-b", bundles[0], "--in", folder, "--index", tmp_path / "pictures.xindex")
    assert answer.exit_code == 2
    assert answer.stderr.count("\n") == 1
    # A picture that is gone cannot be opened either; what is reported is that the folder moved.
    assert "1 added ('late.png'); 1 gone ('03.png'); 1 altered ('04.png')" in answer.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "pictures"]


def test_an_index_of_another_bundle_or_folder_is_refused(invoke, bundles, folder, tmp_path):
    index = tmp_path / "pictures.xindex"
    invoke("retrieve", QUERY, "-b", bundles[0], "--in", folder, "--index", index)
    before = index.read_bytes()
    for arguments in (("--index", index), ("--in", folder, "--index", index)):
        answer = invoke("retrieve", QUERY, "-b", bundles[1], *arguments)
        assert answer.exit_code == 2
        assert "found one made by the bundle 'small-0'" in answer.stderr
    other = shutil.copytree(folder, tmp_path / "other")
    answer = invoke("retrieve", QUERY, "-b", bundles[0], "--in", other, "--index", index)
    assert (answer.exit_code, "expected the index of" in answer.stderr) == (2, True)
    assert index.read_bytes() == before


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-4], lambda data: b"x" * 50, lambda data: data[:20], lambda _: b""]
)
def test_a_damaged_index_is_refused_and_kept(invoke, bundles, folder, tmp_path, damage):
    index = tmp_path / "pictures.xindex"
    invoke("retrieve", QUERY, "-b", bundles[0], "--in", folder, "--index", index)
    index.write_bytes(damage(index.read_bytes()))
    before = index.read_bytes()
    for more in ((), ("--in", folder)):
        answer = invoke("retrieve", QUERY, "-b", bundles[0], "--index", index, *more)
        assert answer.exit_code == 2
        assert f"{index}: expected an index" in answer.stderr
    assert index.read_bytes() == before


def test_neither_folder_nor_index(invoke, bundles):
    answer = invoke("retrieve", QUERY, "-b", bundles[0])
    assert (answer.exit_code, "use --in or --index" in answer.stderr) == (2, True)


def test_reranking_orders_by_the_model_itself(invoke, bundles, folder):
    arguments = ("retrieve", QUERY, "-b", bundles[0], "--in", folder, "--json", "--top-k", "20")
    plain, again = results(invoke(*arguments)), results(invoke(*arguments, "--rerank", "5"))
    assert {found["image"] for found in again[:5]} == {found["image"] for found in plain[:5]}
    assert [found["image"] for found in again[5:]] == [found["image"] for found in plain[5:]]
    scores = [found["score"] for found in again[:5]]
    assert scores == sorted(scores, reverse=True)
    task = load(bundles[0])
    images, cosines = [found["image"] for found in plain[:5]], [found["cosine"] for found in plain[:5]]
    np.testing.assert_allclose(sorted(task.rerank(QUERY, images, cosines)), sorted(scores), rtol=1e-5)
    refused = invoke("retrieve", folder / "01.png", "-b", bundles[0], "--in", folder, "--rerank", "5")
    assert (refused.exit_code, "leave --rerank out" in refused.stderr) == (2, True)


def test_approximate_search_finds_the_nearest(bundles, folder, tmp_path):
    pytest.importorskip("usearch")
    task = load(bundles[0])
    index = index_module.update_index(task, folder, tmp_path / "pictures.xindex").index
    for row in (0, 7, 19):
        found = search_index(task, index, np.asarray(index.embeddings[row]), 3, "approximate")
        exact = search_index(task, index, np.asarray(index.embeddings[row]), 3, "exact")
        assert found[0].cosine == pytest.approx(exact[0].cosine, abs=1e-4)
    kept = tmp_path / "pictures.xindex.usearch"
    assert kept.exists()
    search_index(task, index, np.asarray(index.embeddings[0]), 3, "approximate")


@pytest.mark.parametrize("content", [b"", b"my own notes", bytes(1000)])
def test_a_file_that_lies_where_the_graph_is_kept_stays(invoke, bundles, folder, tmp_path, content):
    pytest.importorskip("usearch")
    own = tmp_path / "i.usearch"
    own.write_bytes(content)
    arguments = ("retrieve", QUERY, "-b", bundles[0], "--in", folder, "--index", tmp_path / "i")
    refused = invoke(*arguments, "--search", "approximate")
    assert (refused.exit_code, own.read_bytes()) == (2, content)
    assert "error: " in refused.stderr
    assert "i.usearch: expected the graph that approximate search keeps beside its index" in refused.stderr
    assert invoke(*arguments, "--search", "exact").exit_code == 0


def test_an_index_that_is_not_there_is_not_to_be_removed(invoke, bundles, tmp_path):
    refused = invoke("retrieve", QUERY, "-b", bundles[0], "--index", tmp_path / "i")
    assert (refused.exit_code, "found no such file; make it with --in" in refused.stderr) == (2, True)


def test_approximate_search_without_its_package(invoke, bundles, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    monkeypatch.setattr(search, "EXACT_AT_MOST", 5)
    monkeypatch.setattr(search, "has_usearch", lambda: False)
    arguments = ("retrieve", QUERY, "-b", bundles[0], "--in", folder, "--index", tmp_path / "i")
    refused = invoke(*arguments, "--search", "approximate")
    assert refused.exit_code == 2
    assert 'pip install "xattn-edge[ann]", or use --search exact' in refused.stderr
    fallen_back = invoke(*arguments)
    assert fallen_back.exit_code == 0
    assert "comparing all of 20 images" in fallen_back.stderr
