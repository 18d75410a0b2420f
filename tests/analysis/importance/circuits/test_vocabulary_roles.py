"""Copy and successor scores against loops over the model's own modules, and planted heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from analysis.head_table import HeadTable
from analysis.importance.circuits.ordinals import single_token, successions
from analysis.importance.circuits.vocabulary_roles import VocabularyRoles, vocabulary_roles
from analysis.importance.study import StudyOptions
from analysis.scores import BatchScores
from analysis.tally import Tally
from probes.inputs import Batch
from probes.loading import load
from probes.subject import Subject
from probes.weights.first_block import effective_embedding
from probes.weights.vocabulary import Vocabulary, vocabulary_of
from tests import tiny_models as tiny

NUMBERS = 26


def studied(subject: Subject, batch: Batch) -> tuple[VocabularyRoles, BatchScores]:
    study = vocabulary_roles(StudyOptions())
    study.begin(subject, lambda: [batch])
    return study, study.score(subject, batch)


def column(scores: BatchScores, measure: str, layer: int, head: int) -> int:
    found = [(c.measure, c.layer, c.head) for c in scores.columns]
    return found.index((measure, layer, head))


@torch.no_grad()
def hits_by_hand(model: Any, ids: list[int], layer: int, head: int, sign: float) -> int:
    """How many tokens of one unpadded sequence the head brings into the top 5, token by token."""
    after_first: list[torch.Tensor] = []
    handle = model.model.layers[0].register_forward_hook(
        lambda module, args, output: after_first.append(output)
    )
    model(torch.tensor([ids]))
    handle.remove()
    block = model.model.layers[layer]
    kv = slice(10 * (head // 3), 10 * (head // 3) + 10)
    own = slice(10 * head, 10 * head + 10)
    hits = 0
    for place, token in enumerate(ids):
        if token <= 4:  # specials
            continue
        read = block.input_layernorm(after_first[0][0, place])
        value = block.self_attn.v_proj.weight[kv] @ read
        written = sign * (block.self_attn.o_proj.weight[:, own] @ value)
        logits = model.lm_head(model.model.norm(written))
        hits += token in logits.topk(5).indices.tolist()
    return hits


@pytest.mark.parametrize("side", ["left", "right"])
def test_copy_scores_are_those_of_a_loop_whatever_the_padding(side: str) -> None:
    model = tiny.llama()
    subject = Subject(model, tiny.tokenizer(side))
    texts = ["a b c d e", "the cat sat on a mat . the cat", "f"]
    batch = subject.prepare(text=texts, padding_side=side)
    study, scores = studied(subject, batch)
    for row, text in enumerate(texts):
        ids = subject.tokenizer(text)["input_ids"]
        words = sum(token > 4 for token in ids)
        for layer, head in ((1, 0), (1, 4), (2, 5)):
            for measure, sign in (("copy_score", 1.0), ("negative_copy_score", -1.0)):
                place = column(scores, measure, layer, head)
                expected = hits_by_hand(model, ids, layer, head, sign)
                assert scores.numerator[row, place] == expected
                assert scores.denominator[row, place] == words
    assert {c.layer for c in scores.columns} == {1, 2}
    assert "0 ordinal words" in study.reasons["language", "successor_score"]


def test_another_token_of_the_example_is_the_null() -> None:
    subject = load("repeat-lm")
    batch = subject.prepare(text=["t01 t02 t03 t04 t05 t06 t07", "t11 t11 t11"])
    _, scores = studied(subject, batch)
    place = column(scores, "copy_score", 1, 0)
    assert scores.denominator[:, place].tolist() == [7, 3]
    assert scores.numerator[0, place] >= 6
    assert scores.null_numerator[0, place] <= 2
    assert scores.null_numerator[1, place] == 0  # there is no other token


def test_induction_heads_of_the_bundled_model_are_copying_heads() -> None:
    subject = load("repeat-lm")
    words = [f"t{(7 * i + 3) % 62:02d}" for i in range(31)]
    batch = subject.prepare(text=[" ".join(words), " ".join(reversed(words))])
    _, scores = studied(subject, batch)
    tally = Tally()
    tally.add(scores)
    table = tally.heads()
    copies = table.grid("copy_score")[1]
    neither = copies[3]
    others = [value for head, value in enumerate(copies) if head != 3]
    assert min(others) > 0.7 and neither < min(others)
    assert table.grid("negative_copy_score")[1].max() < 0.05


def counting_model() -> tuple[Any, Any]:
    """One head that adds one, one that repeats, written into a Llama that knows 26 numbers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *(str(n) for n in range(1, NUMBERS + 1))]
    inner = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", unk_token="<unk>"
    )
    torch.manual_seed(1)
    config = tiny.llama_config(
        vocab_size=30,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=30,
    )
    model = LlamaForCausalLM(config).eval()
    one_on = torch.roll(torch.eye(30), 1, dims=0)  # column i has its 1 in row i + 1
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(30))
        model.lm_head.weight.copy_(torch.eye(30))
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.layers[1].self_attn.v_proj.weight.copy_(torch.eye(30).repeat(2, 1))
        model.model.layers[1].self_attn.o_proj.weight.copy_(
            torch.cat([one_on, torch.eye(30)], dim=1)
        )
    return model, tokenizer


def test_a_planted_successor_head_is_found() -> None:
    model, tokenizer = counting_model()
    subject = Subject(model, tokenizer)
    batch = subject.prepare(text="1 2 3")
    study, _ = studied(subject, batch)
    table = HeadTable(study.lines(subject, ""))
    lines = table.lines("successor_score")
    assert lines["layer"].tolist() == [1, 1] and lines["value"].tolist() == [1.0, 0.0]
    assert lines["n"].tolist() == [NUMBERS - 1] * 2
    assert lines["ci_low"].tolist() == [1.0, 0.0]
    assert not model.model.layers[0]._forward_hooks


def test_the_effective_embedding_is_the_word_and_what_the_first_mlp_makes_of_it() -> None:
    model = tiny.gpt2()
    subject = Subject(model)
    found = effective_embedding(subject, "language", torch.tensor([7, 3]))
    block = model.transformer.h[0]
    with torch.no_grad():
        word = model.transformer.wte.weight[[7, 3]] + model.transformer.wpe.weight[1]
        stream = word + block.attn.c_proj.bias  # the heads are silent, their common bias is not
        expected = stream + block.mlp(block.ln_2(stream))
    torch.testing.assert_close(found, expected)


def test_single_tokens_and_their_successors() -> None:
    _, tokenizer = counting_model()
    assert single_token(tokenizer, "5") == 8 and single_token(tokenizer, "Monday") is None
    pairs = successions(tokenizer)
    assert [pair.word for pair in pairs] == [str(n) for n in range(1, NUMBERS)]
    assert all(pair.members[pair.successor] == pair.members[pair.token] + 1 for pair in pairs)


def test_models_without_words_are_refused_with_the_reason() -> None:
    subject = Subject(tiny.vit())
    batch = subject.prepare(pixel_values=torch.zeros(1, 3, 20, 20))
    with pytest.raises(ValueError, match=r"No map from the residual stream .* to words"):
        vocabulary_roles(StudyOptions()).begin(subject, lambda: [batch])


@pytest.mark.parametrize("make", [tiny.gpt2, tiny.llama])
def test_logits_of_the_vocabulary_are_those_of_the_model(make: Any) -> None:
    subject = Subject(make())
    found = vocabulary_of(subject)
    assert isinstance(found, Vocabulary) and found.tower == "language" and found.words == 31
    ids = torch.tensor([[5, 9, 11]])
    states: list[torch.Tensor] = []
    handle = found.norm.register_forward_pre_hook(lambda module, args: states.append(args[0]))
    batch = subject.prepare(input_ids=ids)
    expected = subject.forward(batch).logits
    handle.remove()
    torch.testing.assert_close(found.logits(states[0]), expected)
    words = torch.tensor([3, 17])
    torch.testing.assert_close(found.logits(states[0], words), expected[..., words])
    matrix = found.unembedding.weight.detach()
    assert found.gain is not None
    folded = found.gain.fold(matrix.T)
    torch.testing.assert_close(found.between, folded @ found.embedding, atol=1e-6, rtol=1e-4)
