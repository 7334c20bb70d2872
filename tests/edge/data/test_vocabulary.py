"""Word-level tokenizers."""

from tokenizers import Tokenizer

from xattn_edge.data.vocabulary import END, PADDING, START, UNKNOWN, caption_tokenizer, question_tokenizer


def test_captions_round_trip_with_their_case():
    captions = ["OK button", "woman's hat to the left of a violin"]
    tokenizer = Tokenizer.from_str(caption_tokenizer(captions).to_str())
    for caption in captions:
        assert tokenizer.decode(tokenizer.encode(caption).ids) == caption


def test_special_tokens_have_their_ids_and_are_not_decoded():
    tokenizer = caption_tokenizer(["red apple"])
    assert [tokenizer.id_to_token(number) for number in (PADDING, UNKNOWN, START, END)] == [
        "[PAD]",
        "[UNK]",
        "[START]",
        "[END]",
    ]
    assert tokenizer.decode([START, *tokenizer.encode("red apple").ids, END]) == "red apple"
    assert tokenizer.encode("blue apple").ids[0] == UNKNOWN


def test_questions_are_read_whatever_their_case_and_spelling():
    tokenizer = question_tokenizer(["what color is the gray shape?"])
    expected = tokenizer.encode("what color is the gray shape?").ids
    assert UNKNOWN not in expected
    assert tokenizer.encode("What COLOUR is the grey shape ?").ids == expected
