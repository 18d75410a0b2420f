"""Finding a question in tokens: spellings of spaces, templates, pieces around an image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from analysis.vision.asked import find_asked, holds_spaces, joined
from analysis.vision.function_words import FUNCTION_WORDS
from analysis.vision.prompt_parts import prompt_parts
from probes.inputs import Batch, Example
from probes.tokens.map import ROLES, TokenMap, TowerTokens, blank_tokens

IMAGE = "<image>"


def row_of(*words: str) -> TowerTokens:
    tokens = blank_tokens("language", [len(words)], [0], "text")
    role = tokens.role.clone()
    for index, word in enumerate(words):
        if word == IMAGE:
            role[index] = ROLES.index("image")
        elif word == "<pad>":
            role[index] = ROLES.index("pad")
        elif word == "<s>":
            role[index] = ROLES.index("bos")
    return replace(tokens, role=role, text=words)


def words_of(tokens: TowerTokens, text: str | None, stop: int | None = None) -> list[tuple]:
    found = find_asked(tokens, 0, Example("0", question=text), stop)
    assert found is not None
    return [(word.text, word.positions, word.content) for word in found.words]


def test_words_of_a_vocabulary_of_words() -> None:
    tokens = row_of("<pad>", "<s>", "user", ":", IMAGE, IMAGE, "is", "there", "a", "cat", "?", "a")
    found = find_asked(tokens, 0, Example("0", question="Is there a Cat ?"))
    assert found is not None
    assert found.positions == (6, 7, 8, 9, 10)
    assert [(w.text, w.positions, w.content) for w in found.words] == [
        ("Is", (6,), False), ("there", (7,), False), ("a", (8,), False), ("Cat", (9,), True),
    ]  # fmt: skip


def test_words_of_pieces_with_their_own_spaces() -> None:
    tokens = row_of("<s>", " USER:", IMAGE, " What", " col", "our", "'s", " the", " umbre", "lla?")
    assert words_of(tokens, "What colour's the umbrella?") == [
        ("What", (3,), False),
        ("colour's", (4, 5, 6), True),
        ("the", (7,), False),
        ("umbrella", (8, 9), True),
    ]


def test_words_of_wordpiece() -> None:
    tokens = row_of("<s>", IMAGE, "tri", "##angle", "or", "star")
    assert words_of(tokens, "triangle or star") == [
        ("triangle", (2, 3), True), ("or", (4,), False), ("star", (5,), True),
    ]  # fmt: skip


def test_the_last_place_before_the_answer_counts() -> None:
    tokens = row_of("a", "cat", IMAGE, "a", "cat", "yes", "a", "cat")
    assert [place for _, place, _ in words_of(tokens, "a cat", stop=5)] == [(3,), (4,)]
    assert [place for _, place, _ in words_of(tokens, "a cat")] == [(6,), (7,)]


def test_text_around_an_image_is_found_in_pieces() -> None:
    tokens = row_of("a", "dog", IMAGE, IMAGE, "a", "cat")
    example = Example("0", text=f"a dog {IMAGE} a cat")
    found = find_asked(tokens, 0, example)
    assert found is not None and found.positions == (0, 1, 4, 5)
    assert find_asked(row_of("a", "dog", IMAGE, "a", "cow"), 0, example) is None


def test_nothing_is_guessed() -> None:
    tokens = row_of("<s>", IMAGE, "what", "is", "it")
    assert find_asked(tokens, 0, Example("0", question="who is it")) is None
    # A question does not run across an image.
    assert find_asked(row_of("what", IMAGE, "is"), 0, Example("0", question="what is")) is None
    assert find_asked(replace(tokens, text=()), 0, Example("0", question="what is it")) is None


def test_unknown_words_stand_where_they_were_asked() -> None:
    tokens = row_of("<s>", IMAGE, "is", "<unk>", "a", "<unk>", "?", "a")
    assert words_of(tokens, "Is there a zebra?") == [
        ("Is", (2,), False), ("there", (3,), False), ("a", (4,), False), ("zebra", (5,), True),
    ]  # fmt: skip
    example = Example("0", question="Is there a grey zebra?")
    assert find_asked(tokens, 0, example) is None


def test_other_function_words() -> None:
    tokens = row_of(IMAGE, "wo", "ist", "die", "katze")
    found = find_asked(tokens, 0, Example("0", question="wo ist die Katze"), None, {"wo", "ist"})
    assert found is not None and [word.content for word in found.words] == [
        False,
        False,
        True,
        True,
    ]
    assert {"the", "don't", "where"} <= FUNCTION_WORDS and "cat" not in FUNCTION_WORDS


def test_texts_are_joined_as_their_tokenizer_would() -> None:
    assert joined([" a", " red", " cr", "oss"], True)[0] == " a red cross"
    text, spans = joined(["a", "red", "cross", ","], False)
    assert text == "a red cross ," and [text[a:b] for a, b in spans] == ["a", "red", "cross", ","]
    assert holds_spaces(["a", " b"]) and not holds_spaces(["a", "b"])


def batch_of(tokens: TowerTokens, starts: tuple[int, ...]) -> Batch:
    ids = torch.zeros(tokens.rows, int(tokens.lengths[0]), dtype=torch.long)
    examples = tuple(Example(str(row), question="cat") for row in range(tokens.rows))
    return Batch({"input_ids": ids}, TokenMap({"language": tokens}), examples, starts)


def places(column: torch.Tensor) -> list[int]:
    return column.nonzero()[:, 0].tolist()


def test_parts_of_a_prompt() -> None:
    tokens = row_of("<pad>", "<s>", "user", IMAGE, "and", IMAGE, "cat", ":", "a", "b", "<pad>")
    parts = prompt_parts(tokens, batch_of(tokens, (8,)))
    assert places(parts.image) == [3, 5]
    assert places(parts.before) == [1, 2]
    assert places(parts.between) == [4]
    assert places(parts.after) == [6, 7]
    assert places(parts.output) == [8, 9]
    assert places(parts.first) == [1]
    assert places(parts.own) == [6]
    assert places(parts.predicting) == [7, 8]
    assert places(parts.deciding) == [7]
    assert places(parts.telling) == [7, 8]


def test_parts_without_an_answer_or_an_image() -> None:
    tokens = row_of("<s>", IMAGE, "cat", ":")
    parts = prompt_parts(tokens, batch_of(tokens, (-1,)))
    assert places(parts.deciding) == [3] and places(parts.telling) == [2, 3]
    assert not bool(parts.predicting.any()) and bool(parts.unanswered.all())
    tokens = row_of("<s>", "cat", "a")
    parts = prompt_parts(tokens, batch_of(tokens, (2,)))
    assert not bool((parts.before | parts.after | parts.image).any())
    assert places(parts.predicting) == [1] and places(parts.telling) == [1]


def test_an_answer_belongs_to_the_tower_that_writes_it() -> None:
    tokens = replace(row_of("a", "b", "c", "d"), tower="encoder")
    batch = batch_of(tokens, (1,))
    tensors = {**batch.tensors, "decoder_input_ids": torch.zeros(1, 3, dtype=torch.long)}
    batch = replace(batch, tensors=tensors)
    assert not bool(prompt_parts(tokens, batch).output.any())
    decoder = replace(row_of("<pad>", "x", "y"), tower="decoder")
    decoder = replace(decoder, role=torch.full((3,), ROLES.index("text")))
    assert places(prompt_parts(decoder, batch).output) == [1, 2]


@pytest.mark.parametrize("count", [1, 3])
def test_generated_positions_are_output(count: int) -> None:
    tokens = row_of("<s>", IMAGE, "cat").with_generated(count)
    parts = prompt_parts(tokens)
    assert places(parts.output) == list(range(3, 3 + count))
    assert places(parts.predicting) == list(range(2, 2 + count))
