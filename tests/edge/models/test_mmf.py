"""MMF's co-attention layers, with random weights under MMF's names, beside its equations written out plainly."""

import math

import pytest
import torch

from xattn_edge.attention import Tokens
from xattn_edge.models.mmf import load_mmf_layers, read_mmf_checkpoint
from xattn_runtime.errors import CheckpointError

TEXT, IMAGE, INNER, WIDE, HEADS = 12, 16, 16, 20, 4


def linear(state, name, outputs, inputs):
    state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(outputs, inputs) * 0.3, torch.randn(outputs) * 0.3


def norm(state, name, width):
    state[f"{name}.weight"], state[f"{name}.bias"] = torch.rand(width) + 0.5, torch.randn(width)


def vilbert():
    state = {}
    for number, width in ((1, IMAGE), (2, TEXT)):
        for kind in ("query", "key", "value"):
            linear(state, f"biattention.{kind}{number}", INNER, width)
        linear(state, f"biOutput.dense{number}", width, INNER)
        linear(state, f"biOutput.q_dense{number}", width, INNER)
        norm(state, f"biOutput.LayerNorm{number}", width)
        side = "v" if number == 1 else "t"
        linear(state, f"{side}_intermediate.dense", WIDE, width)
        linear(state, f"{side}_output.dense", width, WIDE)
        norm(state, f"{side}_output.LayerNorm", width)
    return state


def lxmert():
    state = {}
    for name in ("visual_attention.att", "lang_self_att.self", "visn_self_att.self"):
        for kind in ("query", "key", "value"):
            linear(state, f"{name}.{kind}", TEXT, TEXT)
    for name in ("visual_attention", "lang_self_att", "visn_self_att"):
        linear(state, f"{name}.output.dense", TEXT, TEXT)
        norm(state, f"{name}.output.LayerNorm", TEXT)
    for side in ("lang", "visn"):
        linear(state, f"{side}_inter.dense", WIDE, TEXT)
        linear(state, f"{side}_output.dense", TEXT, WIDE)
        norm(state, f"{side}_output.LayerNorm", TEXT)
    return state


def apply(state, name, x):
    return x @ state[f"{name}.weight"].double().T + state[f"{name}.bias"].double()


def normed(state, name, x):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
    return scaled * state[f"{name}.weight"].double() + state[f"{name}.bias"].double()


def attended(state, names, asking, context, mask):
    """A head at a time, with MMF's -10000 for what is masked."""
    query, key, value = (apply(state, name, x) for name, x in zip(names, (asking, context, context), strict=True))
    width = query.shape[-1] // HEADS
    heads = []
    for start in range(0, query.shape[-1], width):
        part = slice(start, start + width)
        scores = query[..., part] @ key[..., part].transpose(-1, -2) / math.sqrt(width)
        scores = scores + (1 - mask.double())[:, None] * -10000
        heads.append(scores.softmax(-1) @ value[..., part])
    return torch.cat(heads, -1)


def fed(state, wide, narrow, x):
    inner = torch.nn.functional.gelu(apply(state, f"{wide}.dense", x))
    return normed(state, f"{narrow}.LayerNorm", x + apply(state, f"{narrow}.dense", inner))


def vilbert_by_hand(state, text, image):
    names = ("query2", "key1", "value1"), ("query1", "key2", "value2")
    names = [[f"biattention.{name}" for name in some] for some in names]
    by_text = attended(state, names[0], text.features, image.features, image.mask)
    by_image = attended(state, names[1], image.features, text.features, text.mask)
    text_now = normed(state, "biOutput.LayerNorm2", apply(state, "biOutput.dense2", by_text) + text.features)
    image_now = normed(state, "biOutput.LayerNorm1", apply(state, "biOutput.dense1", by_image) + image.features)
    return fed(state, "t_intermediate", "t_output", text_now), fed(state, "v_intermediate", "v_output", image_now)


def lxmert_by_hand(state, text, image):
    def block(name, inner, own, other, mask):
        kinds = [f"{name}.{inner}.{kind}" for kind in ("query", "key", "value")]
        read = apply(state, f"{name}.output.dense", attended(state, kinds, own, other, mask))
        return normed(state, f"{name}.output.LayerNorm", read + own)

    crossed = (
        block("visual_attention", "att", text.features, image.features, image.mask),
        block("visual_attention", "att", image.features, text.features, text.mask),
    )
    found = []
    for name, features, mask in zip(("lang", "visn"), crossed, (text.mask, image.mask), strict=True):
        seen = block(f"{name}_self_att", "self", features, features, mask)
        found.append(fed(state, f"{name}_inter", f"{name}_output", seen))
    return found


def tokens(width, count, real):
    mask = torch.arange(count)[None] < torch.tensor([[count], [real]])
    return Tokens(torch.randn(2, count, width, dtype=torch.float64), mask)


CASES = {
    "vilbert": (vilbert, vilbert_by_hand, "model.bert.encoder.c_layer", IMAGE),
    "lxmert": (lxmert, lxmert_by_hand, "module.model.bert.encoder._orig_mod.x_layers", TEXT),
}


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_layers_compute_what_mmf_computes(name, tmp_path):
    torch.manual_seed(0)
    make, by_hand, prefix, width = CASES[name]
    states = [make(), make()]
    stored = {f"{prefix}.{number}.{key}": value for number, state in enumerate(states) for key, value in state.items()}
    torch.save({"model": {**stored, "model.bert.embeddings.weight": torch.zeros(3)}}, tmp_path / "model.pth")
    layers = load_mmf_layers(read_mmf_checkpoint(tmp_path / "model.pth"), name, HEADS)
    assert len(layers) == 2
    text, image = tokens(TEXT, 5, 3), tokens(width, 7, 4)
    for layer, state in zip(layers, states, strict=True):
        expected = by_hand(state, text, image)
        found = layer.double()(text, image)
        for side, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(side.features, wanted, rtol=1e-6, atol=1e-6)


def test_what_does_not_fit_is_named(tmp_path):
    state = {f"encoder.x_layers.0.{name}": tensor for name, tensor in lxmert().items()}
    with pytest.raises(CheckpointError, match="expected co-attention layers of vilbert, found none among"):
        load_mmf_layers(state, "vilbert", HEADS)
    del state["encoder.x_layers.0.visn_inter.dense.weight"]
    with pytest.raises(CheckpointError, match=r"layer 0: missing or of another shape: 'visn_inter.dense.weight'"):
        load_mmf_layers(state, "lxmert", HEADS)


class _Danger:
    def __reduce__(self):
        return (print, ("loaded",))


def test_nothing_but_tensors_is_loaded(tmp_path, capsys):
    torch.save({"model": _Danger()}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="expected a checkpoint of tensors alone"):
        read_mmf_checkpoint(tmp_path / "model.pth")
    assert capsys.readouterr().out == ""
    (tmp_path / "text.pth").write_text("no checkpoint")
    for name in ("text.pth", "absent.pth"):
        with pytest.raises(CheckpointError, match=name):
            read_mmf_checkpoint(tmp_path / name)
