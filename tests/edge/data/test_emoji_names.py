"""The English of emoji."""

import doctest

import pytest

from xattn_edge.data import emoji_names
from xattn_edge.data.emoji_names import caption_of_name, scene_caption, scene_words, with_article


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(emoji_names).failed == 0


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("red_apple", "red apple"),
        ("woman’s_hat", "woman's hat"),
        ("thumbs_up_light_skin_tone", "thumbs up with light skin tone"),
        ("person_with_veil_dark_skin_tone", "person with veil and dark skin tone"),
        ("man_medium-dark_skin_tone_curly_hair", "man with medium-dark skin tone and curly hair"),
        ("woman_white_hair", "woman with white hair"),
        ("woman_dark_skin_tone_bald", "bald woman with dark skin tone"),
        ("person_medium_skin_tone_beard", "person with medium skin tone and beard"),
    ],
)
def test_captions_of_names(name, caption):
    assert caption_of_name(name) == caption


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        ("violin", "a violin"),
        ("apple core", "an apple core"),
        ("unicorn", "a unicorn"),
        ("hourglass", "an hourglass"),
        ("euro banknote", "a euro banknote"),
        ("grapes", "grapes"),
        ("bus", "a bus"),
        ("glass", "a glass"),
        ("women wrestling", "women wrestling"),
        ("bowl with spoons", "a bowl with spoons"),
        ("SOS button", "an SOS button"),
    ],
)
def test_articles(caption, told):
    assert with_article(caption) == told


def test_scenes_are_told_in_reading_order():
    assert scene_caption("one over two", ["sun", "ant", "dog"]) == "sun above an ant to the left of a dog"
    assert scene_caption("rising", ["sun", "ant"]) == "sun above and to the right of an ant"


def test_every_word_of_a_scene_is_in_the_list():
    known = {word for words in scene_words() for word in words.split()}
    for layout, count in (("row", 2), ("two over one", 3), ("column of three", 3), ("falling", 2)):
        told = scene_caption(layout, ["ox"] * count)
        assert set(told.split()) <= known | {"ox"}
