"""Metrics and floors, on cases that can be reckoned by hand."""

import numpy as np
import pytest

from xattn_edge.data.easy_vqa import EasyVqa, VqaSample
from xattn_edge.evaluation.floors import NearestPixels, question_only_accuracy
from xattn_edge.evaluation.metrics import caption_metrics


def test_perfect_captions():
    captions = ["a red apple above a violin", "the big dog to the left of a cat"]
    scores = caption_metrics(captions, captions)
    assert scores["exact_match"] == 100
    assert scores["bleu"] == pytest.approx(100)
    assert scores["cider"] == pytest.approx(10)


def test_wrong_captions():
    scores = caption_metrics(["x y z w", "red apple tree house"], ["a b c d", "red apple tree garden"])
    assert scores["exact_match"] == 0
    assert 0 < scores["bleu"] < 60
    assert 0 < scores["cider"] < 5


def test_numbers_must_agree():
    with pytest.raises(ValueError, match="1 captions for 2 references"):
        caption_metrics(["a"], ["a", "b"])


def test_the_question_alone(tmp_path):
    def asked(question, *answers):
        return [VqaSample(tmp_path, question, answer) for answer in answers]

    train = asked("red?", "yes", "yes", "no") + asked("shape?", "circle")
    test = asked("red?", "yes", "no") + asked("shape?", "circle", "square") + asked("new?", "yes")
    assert question_only_accuracy(train, test) == pytest.approx(40)


def test_the_floor_of_easy_vqa_is_the_published_one():
    data = EasyVqa()
    assert question_only_accuracy(data.samples("train"), data.samples("test")) == pytest.approx(67.0, abs=0.05)


class TwoPictures:
    """A memory of a dark and a bright picture."""

    class Sample:
        def __init__(self, value, caption):
            self.pixels, self.caption = np.full((96, 96, 3), value, np.uint8), caption

    def training_images(self):
        return iter([self.Sample(20, "dark"), self.Sample(220, "bright")])

    def training_scenes(self, count):
        return iter([self.Sample(120, "grey")])


def test_the_nearest_picture_by_pixels():
    samples = [TwoPictures.Sample(value, "") for value in (0, 255, 130)]
    assert NearestPixels(TwoPictures()).captions(samples) == ["dark", "bright", "grey"]
