"""BUTD's decoder and Pythia's head, with random weights under MMF's names, beside MMF's equations written out."""

import pytest
import torch

from xattn_edge.models.mmf import read_mmf_checkpoint
from xattn_edge.models.mmf_heads import load_mmf_butd, load_mmf_pythia
from xattn_runtime.errors import CheckpointError

REGION, HIDDEN, INNER, WORD, VOCABULARY, QUESTION, ANSWERS = 10, 8, 6, 5, 11, 7, 4
ATTENTION = "image_feature_embeddings_list.{}.0.image_attention_model.module"


def normed_layer(state, name, outputs, inputs, *, by_row=False):
    """As `weight_norm` stores it: with `dim=None` the size is one number, else one for each row."""
    state[f"{name}.weight_v"] = torch.randn(outputs, inputs)
    state[f"{name}.weight_g"] = torch.rand(outputs, 1) + 0.5 if by_row else torch.rand(()) * 5 + 1
    state[f"{name}.bias"] = torch.randn(outputs)


def lstm(state, name, inputs):
    for part, shape in (("ih", (4 * HIDDEN, inputs)), ("hh", (4 * HIDDEN, HIDDEN))):
        state[f"{name}.weight_{part}"], state[f"{name}.bias_{part}"] = (
            torch.randn(shape) * 0.4,
            torch.randn(4 * HIDDEN),
        )


def butd():
    state = {
        "word_embedding.weight": torch.randn(VOCABULARY, WORD),
        "image_feature_encoders.0.lc.weight": torch.ones(1),
    }
    combination = ATTENTION.format(0) + ".combination_layer.module"
    normed_layer(state, f"{combination}.fa_image", INNER, REGION, by_row=True)
    normed_layer(state, f"{combination}.fa_hidden", INNER, HIDDEN, by_row=True)
    lstm(state, f"{combination}.top_down_lstm", WORD + REGION + HIDDEN)
    normed_layer(state, ATTENTION.format(0) + ".transform.module.lc", 1, INNER)
    lstm(state, "classifier.module.language_lstm", REGION + HIDDEN)
    normed_layer(state, "classifier.module.fc", VOCABULARY, HIDDEN, by_row=True)
    return state


def pythia():
    state = {}
    for number in range(2):
        combination = ATTENTION.format(number) + ".combination_layer.module"
        normed_layer(state, f"{combination}.fa_image.layers.0", INNER, REGION)
        normed_layer(state, f"{combination}.fa_txt.layers.0", INNER, QUESTION)
        normed_layer(state, ATTENTION.format(number) + ".transform.module.lc", 1, INNER)
    normed_layer(state, "image_text_multi_modal_combine_layer.module.fa_image.layers.0", INNER, 2 * REGION)
    normed_layer(state, "image_text_multi_modal_combine_layer.module.fa_txt.layers.0", INNER, QUESTION)
    for side, width in (("text", 3), ("image", 9)):
        normed_layer(state, f"classifier.module.f_o_{side}.layers.0", width, INNER)
        state[f"classifier.module.linear_{side}.weight"] = torch.randn(ANSWERS, width)
        state[f"classifier.module.linear_{side}.bias"] = torch.randn(ANSWERS)
    return state


def apply(state, name, x):
    weight = state.get(f"{name}.weight")
    if weight is None:
        direction, size = state[f"{name}.weight_v"].double(), state[f"{name}.weight_g"].double()
        rows = [
            (size[row, 0] / direction[row].square().sum().sqrt()) * direction[row]
            if size.dim()
            else (size / direction.square().sum().sqrt()) * direction[row]
            for row in range(len(direction))
        ]
        weight = torch.stack(rows)
    return x @ weight.double().T + state[f"{name}.bias"].double()


def shares(scores, present):
    """Softmax over all regions; those left out are then set to 0, and the others shared out anew: MMF's order."""
    weights = scores.softmax(1) * present
    return weights / (weights.sum(1, keepdim=True) + 1e-8)


def lstm_by_hand(state, name, x, hidden, cell):
    gates = x @ state[f"{name}.weight_ih"].double().T + state[f"{name}.bias_ih"].double()
    gates = gates + hidden @ state[f"{name}.weight_hh"].double().T + state[f"{name}.bias_hh"].double()
    take, forget, new, give = gates.chunk(4, 1)
    cell = forget.sigmoid() * cell + take.sigmoid() * new.tanh()
    return give.sigmoid() * cell.tanh(), cell


def butd_by_hand(state, words, regions, present):
    combination = ATTENTION.format(0) + ".combination_layer.module"
    h1 = c1 = h2 = c2 = torch.zeros(len(regions), HIDDEN, dtype=torch.float64)
    found = []
    for step in range(words.shape[1]):
        embedding = state["word_embedding.weight"].double()[words[:, step]]
        seen = torch.cat([h2, regions.mean(1), embedding], 1)
        h1, c1 = lstm_by_hand(state, f"{combination}.top_down_lstm", seen, h1, c1)
        joint = apply(state, f"{combination}.fa_image", regions) + apply(state, f"{combination}.fa_hidden", h1)[:, None]
        scores = apply(state, ATTENTION.format(0) + ".transform.module.lc", joint.clamp(min=0))[..., 0]
        read = (shares(scores, present)[..., None] * regions).sum(1)
        h2, c2 = lstm_by_hand(state, "classifier.module.language_lstm", torch.cat([read, h1], 1), h2, c2)
        found.append(apply(state, "classifier.module.fc", h2))
    return torch.stack(found, 1)


def pythia_by_hand(state, kinds, question, masks):
    def met(name, image):
        text = apply(state, f"{name}.fa_txt.layers.0", question).clamp(min=0)
        seen = apply(state, f"{name}.fa_image.layers.0", image).clamp(min=0)
        return seen * (text[:, None] if image.dim() == 3 else text)

    read = []
    for number, (regions, present) in enumerate(zip(kinds, masks, strict=True)):
        joint = met(ATTENTION.format(number) + ".combination_layer.module", regions)
        scores = apply(state, ATTENTION.format(number) + ".transform.module.lc", joint)[..., 0]
        read.append((shares(scores, present)[..., None] * regions).sum(1))
    joint = met("image_text_multi_modal_combine_layer.module", torch.cat(read, 1))
    return sum(
        apply(
            state,
            f"classifier.module.linear_{side}",
            apply(state, f"classifier.module.f_o_{side}.layers.0", joint).clamp(min=0),
        )
        for side in ("text", "image")
    )


def regions_of(count, real):
    present = torch.arange(count)[None] < torch.tensor([[count], [real]])
    return torch.randn(2, count, REGION, dtype=torch.float64), present


@pytest.mark.parametrize("prefix", ["model.", "module.model.", "module._orig_mod.", ""])
@torch.inference_mode()
def test_butd_says_what_mmf_says(tmp_path, prefix):
    torch.manual_seed(3)
    state = butd()
    torch.save({"model": {f"{prefix}{name}": tensor for name, tensor in state.items()}}, tmp_path / "butd.pth")
    decoder = load_mmf_butd(read_mmf_checkpoint(tmp_path / "butd.pth")).double()
    words, (regions, present) = torch.randint(0, VOCABULARY, (2, 5)), regions_of(6, 4)
    expected = butd_by_hand(state, words, regions, present)
    torch.testing.assert_close(decoder(words, regions, present), expected, rtol=1e-6, atol=1e-6)
    everything = torch.ones_like(present)
    torch.testing.assert_close(
        decoder(words, regions), butd_by_hand(state, words, regions, everything), rtol=1e-6, atol=1e-6
    )


@torch.inference_mode()
def test_pythia_answers_what_mmf_answers():
    torch.manual_seed(4)
    state = pythia()
    head = load_mmf_pythia(state).double()
    kinds, masks = zip(regions_of(6, 4), regions_of(9, 9), strict=True)
    question = torch.randn(2, QUESTION, dtype=torch.float64)
    expected = pythia_by_hand(state, kinds, question, masks)
    torch.testing.assert_close(head(kinds, question, masks), expected, rtol=1e-6, atol=1e-6)


@torch.inference_mode()
def test_what_is_masked_does_not_matter():
    torch.manual_seed(5)
    head, (regions, present) = load_mmf_pythia(pythia()), regions_of(6, 4)
    question, others = torch.randn(2, QUESTION), torch.randn(2, 3, REGION)
    changed = regions.float().masked_fill(~present[..., None], 99.0)
    found = [head([each, others], question, [present, None]) for each in (regions.float(), changed)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("load", "make", "gone"),
    [
        (load_mmf_butd, butd, "classifier.module.language_lstm.weight_hh"),
        (load_mmf_pythia, pythia, "classifier.module.linear_image.bias"),
    ],
)
def test_what_is_missing_or_misshapen_is_named(load, make, gone):
    state = make()
    shape = state.pop(gone).shape
    with pytest.raises(CheckpointError, match=f"a tensor is missing, or of another shape: '{gone}'"):
        load(state)
    with pytest.raises(CheckpointError, match="of another shape"):
        load({**state, gone: torch.zeros(*shape, 2)})


def test_shapes_that_do_not_fit_are_named():
    head = load_mmf_pythia(pythia())
    with pytest.raises(ValueError, match="expected 2 kinds of regions, found 1"):
        head([torch.randn(1, 3, REGION)], torch.randn(1, QUESTION))
    with pytest.raises(ValueError, match="regions"):
        head([torch.randn(1, 0, REGION), torch.randn(1, 3, REGION)], torch.randn(1, QUESTION))
