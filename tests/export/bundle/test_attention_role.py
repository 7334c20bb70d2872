"""Attention weights out of the graph are those of torch, in both forms and quantized, and are drawn as they are."""

import dataclasses
import errno
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from xattn_edge.commands.app import app
from xattn_edge.models import load_checkpoint
from xattn_export import export_checkpoint, quantize_bundle
from xattn_export.graph.reading import read_graph
from xattn_runtime.bundle.folder import open_bundle
from xattn_runtime.errors import OutputError, UserError
from xattn_runtime.loader import load
from xattn_runtime.preprocess.pipeline import Pipeline
from xattn_runtime.tasks.shared.attention_maps import grid_of, words_of
from xattn_runtime.tasks.shared.heatmap import draw_html, draw_png, write_heatmap

QUESTION = "what color is the circle?"
KINDS = {"caption": "standard", "lstm": "decomposed"}


@pytest.fixture(scope="module")
def bundles(checkpoints, tmp_path_factory):
    folder = tmp_path_factory.mktemp("attention")
    for kind, form in KINDS.items():
        export_checkpoint(checkpoints[kind], folder / f"{kind}.xattn", attention=form, with_attention=True)
    quantize_bundle(folder / "caption.xattn", folder / "caption-int8.xattn", mode="int8")
    return folder


@pytest.fixture
def picture(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (50, 50, 3), dtype=np.uint8)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def torch_weights(monkeypatch):
    """What softmax of queries and keys is, in every attention of text to image that torch computes."""
    seen: list[np.ndarray] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def record(query, key, value, *others, **settings):
        if key.shape[-2] == 16 and query.shape[-2] != 16:
            scores = query.double() @ key.double().transpose(-1, -2) / query.shape[-1] ** 0.5
            seen.append(scores.softmax(-1)[0].numpy())
        return plain(query, key, value, *others, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    return seen


def pixels(bundle, picture):
    return torch.from_numpy(Pipeline(open_bundle(bundle).manifest.image_steps)(picture))[None]


def test_a_questions_weights_are_those_of_torch(bundles, checkpoints, picture, torch_weights):
    task = load(bundles / "lstm.xattn")
    found = task.attention(picture, QUESTION)
    ids = task._codec.encode_question(QUESTION).ids
    model = load_checkpoint(checkpoints["lstm"]).model.eval()
    torch_weights.clear()
    with torch.inference_mode():
        model(pixels(bundles / "lstm.xattn", picture), torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))
    expected = np.stack(torch_weights[-2:])  # [layers, heads, tokens, image tokens]
    assert expected.shape[2] == len(ids)
    assert list(found.words) == ["what", "color", "is", "the", "circle", "?"]
    assert np.allclose(found.weights, expected.transpose(2, 0, 1, 3).reshape(found.weights.shape), atol=1e-5)
    assert np.allclose(found.weights.sum(axis=(3, 4)), 1, atol=1e-5)
    assert found.weights.std() > 1e-3


def test_a_captions_weights_are_those_of_torch(bundles, checkpoints, picture, torch_weights):
    task = load(bundles / "caption.xattn")
    found, caption = task.attention(picture), task.caption(picture)
    model = load_checkpoint(checkpoints["caption"]).model.eval()
    torch_weights.clear()
    with torch.inference_mode():
        model(pixels(bundles / "caption.xattn", picture), torch.tensor([[2, *caption.token_ids]]))
    expected = np.stack(torch_weights[-2:])[:, :, : len(caption.token_ids)]
    assert found.text == caption.text == " ".join(found.words)
    assert np.allclose(found.weights, expected.transpose(2, 0, 1, 3).reshape(found.weights.shape), atol=1e-5)
    int8 = load(bundles / "caption-int8.xattn").attention(picture)
    assert int8.words == found.words
    assert 0 < np.abs(int8.weights - found.weights).max() < 0.1


def test_the_other_graphs_are_as_they_are_without(bundles, checkpoints, tmp_path):
    export_checkpoint(checkpoints["caption"], tmp_path / "plain.xattn")
    for role in ("image_encoder", "decoder", "generator", "whole"):
        one, other = (
            folder / "graphs" / f"{role}.onnx" for folder in (tmp_path / "plain.xattn", bundles / "caption.xattn")
        )
        assert one.read_bytes() == other.read_bytes()
    weights = bundles / "caption.xattn" / "graphs"
    assert not (weights / "attention.onnx.data").exists()
    assert (weights / "attention.onnx").stat().st_size < (weights / "decoder.onnx.data").stat().st_size / 2
    assert {node.domain for node in read_graph(weights / "attention.onnx").graph.node} == {""}


def test_layers_and_heads(bundles, picture):
    found = load(bundles / "lstm.xattn").attention(picture, QUESTION)
    assert np.allclose(found.mean(), found.weights.mean(axis=(1, 2)))
    assert np.allclose(found.mean(1, 2), found.weights[:, 1, 2])
    assert np.allclose(found.mean(head=3), found.weights[:, :, 3].mean(axis=1))
    with pytest.raises(UserError, match="layer: expected 0 to 1, found 2"):
        found.mean(2)


def test_a_panel_a_word(bundles, picture):
    found = load(bundles / "lstm.xattn").attention(picture, QUESTION)
    image = np.asarray(draw_png(found))
    assert image.shape == (8 + 224 + 24 + 8, 8 + 6 * 232, 3)


@pytest.mark.parametrize(("word", "peak"), [(0, (2, 1)), (3, (0, 3))])
def test_a_panel_is_brightest_where_the_word_looked(bundles, picture, word, peak):
    found = load(bundles / "lstm.xattn").attention(picture, QUESTION)
    weights = np.full_like(found.weights, 0.01)
    weights[word, :, :, *peak] = 1
    drawn, even = (
        np.asarray(draw_png(dataclasses.replace(found, weights=each))).astype(int)
        for each in (weights, np.ones_like(weights))
    )
    left = 8 + 232 * word
    cells = np.abs(drawn - even)[8:232, left : left + 224].sum(axis=2).reshape(4, 56, 4, 56).mean(axis=(1, 3))
    # Where most attention lies the panel is as opaque as one with the same everywhere; elsewhere less.
    assert np.unravel_index(cells.argmin(), (4, 4)) == peak


def test_a_page_holds_all_that_it_needs(bundles, picture):
    found = load(bundles / "lstm.xattn").attention(picture, "is there a </script> circle")
    page = draw_html(found, layer=1)
    assert page.count("</script>") == 1
    assert not re.search(r"(src|href)=\"?http", page)
    assert "&lt;/script&gt;" in page
    assert '"layer": 1' in page


def test_words_of_several_tokens():
    texts = {(): "", (1,): "un", (1, 2): "unseen", (1, 2, 3): "unseen", (1, 2, 3, 4): "unseen cat"}
    weights = np.arange(4, dtype=np.float32)[:, None]
    words, found = words_of([1, 2, 3, 4], lambda ids: texts[tuple(ids)], weights)
    assert words == ("unseen", "cat")
    assert found.tolist() == [[0.5], [3.0]]


@pytest.mark.parametrize(
    ("tokens", "size", "grid"),
    [(64, (64, 64), (8, 8)), (577, (384, 384), (24, 24)), (198, (224, 224), (14, 14)), (18, (60, 120), (3, 6))],
)
def test_the_grid_of_image_tokens(tokens, size, grid):
    assert grid_of(tokens, size) == grid


def test_image_tokens_without_a_grid():
    with pytest.raises(UserError, match="expected image tokens in a grid of 64 to 64, found 31"):
        grid_of(31, (64, 64))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("map.jpg", "expected a name that ends in .png or .html, found .jpg"),
        ("map", "expected a name that ends in .png or .html, found none"),
        ("none/map.png", "expected a folder to write in, found none at"),
        ("folder.png", "expected a file to write, found a folder"),
    ],
)
def test_places_that_cannot_be_written(bundles, picture, tmp_path, name, message):
    (tmp_path / "folder.png").mkdir()
    arguments = ["vqa", str(picture), QUESTION, "-b", str(bundles / "lstm.xattn"), "--heatmap", str(tmp_path / name)]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert message in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"picture.png", "folder.png"}
    with pytest.raises(OutputError, match=message):
        write_heatmap(tmp_path / name, load(bundles / "lstm.xattn").attention(picture, QUESTION))


def test_a_place_that_refuses_the_file(bundles, picture, tmp_path, monkeypatch):
    found, out = load(bundles / "lstm.xattn").attention(picture, QUESTION), tmp_path / "map.png"

    def refuse(self, content):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(OutputError) as refused:
        write_heatmap(out, found)
    assert str(refused.value) == f"{out}: expected a file that can be written, found: Permission denied; name another"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(OutputError, match=f"expected a folder to write in, found {tmp_path} closed to writing"):
        write_heatmap(out, found)
    assert not out.exists()


def test_the_command_line_draws(bundles, picture, tmp_path):
    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.stderr
        return result

    out = tmp_path / "map.png"
    vqa = run("vqa", picture, QUESTION, "-b", bundles / "lstm.xattn", "--heatmap", out, "--heatmap-layer", "0")
    assert vqa.stderr == f"{out}: 6 words\n"
    assert out.read_bytes().startswith(b"\x89PNG")
    mean = out.read_bytes()
    run("vqa", picture, QUESTION, "-b", bundles / "lstm.xattn", "--heatmap", out)
    assert out.read_bytes() != mean
    run("caption", picture, "-b", bundles / "caption-int8.xattn", "--heatmap", tmp_path / "map.html", "--json")
    assert (tmp_path / "map.html").read_text().startswith("<!doctype html>")


def test_a_bundle_without_the_graph_says_what_to_do(exported, picture):
    arguments = ["caption", str(picture), "-b", str(exported["caption"]), "--heatmap", "map.png"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "found none; export it again with --with-attention" in result.stderr
    assert not Path("map.png").exists()


def test_a_model_without_cross_attention_is_refused(bundles):
    from xattn_export.bundle.attention_role import attention_graph

    graph = read_graph(bundles / "caption.xattn" / "graphs" / "image_encoder.onnx")
    assert not [
        output
        for output in attention_graph(graph, "cross", keeps_logits=False).graph.output
        if "attention" in output.name
    ]
    decoder = read_graph(bundles / "caption.xattn" / "graphs" / "decoder.onnx")
    kept = [node for node in decoder.graph.node if node.op_type != "Attention"]
    del decoder.graph.node[:]
    decoder.graph.node.extend(kept)
    with pytest.raises(UserError, match="cross_value_0: expected an attention that these values are for, found none"):
        attention_graph(decoder, "cross", keeps_logits=True)
