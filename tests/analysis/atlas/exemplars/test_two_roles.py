"""A head with two roles, by constructed weights: its components are the roles."""

from __future__ import annotations

import torch
from exemplar_batches import Texts, built_call, feed, text_batch
from synthetic_calls import Anatomy

from analysis.atlas.exemplars import ExemplarCollector, ExemplarOptions
from probes.attention_call import AttentionCall
from probes.inputs import Batch

COPY, LOCAL = 1, 2
NOUNS, VERBS = range(3, 13), range(13, 23)
TOKENS, LENGTH = 23, 33


def _texts(count: int) -> Texts:
    """BOS, then ``copy NOUN`` and ``VERB local`` in random order."""
    draw = torch.Generator().manual_seed(2)
    found = {}
    for number in range(count):
        ids = [0]
        while len(ids) < LENGTH:
            kind, word = (
                torch.randint(2, (1,), generator=draw),
                torch.randint(10, (1,), generator=draw),
            )
            ids += [COPY, NOUNS[int(word)]] if kind else [VERBS[int(word)], LOCAL]
        found[f"text-{number}"] = ids[:LENGTH]
    return found


def _one_head(batch: Batch) -> AttentionCall:
    """Residual: token, token before, position. All of W_Q, W_K, W_V is linear in it.

    After ``copy`` the head reads the token after the last ``copy``; after ``local`` the token just
    before; else it rests on BOS.
    """
    ids = batch.tokens["language"].ids.view(-1, LENGTH)
    token = torch.nn.functional.one_hot(ids, TOKENS).float()
    before = torch.nn.functional.pad(token, (0, 0, 1, 0))[:, :-1]
    place = torch.eye(LENGTH).expand(ids.shape[0], -1, -1)
    residual = torch.cat([token, before, place], -1)
    width = residual.shape[-1]
    query, key = torch.zeros(width, 3 + LENGTH), torch.zeros(width, 3 + LENGTH)
    was_copy, recent, bos, at = 0, 1, 2, slice(3, None)
    position = slice(2 * TOKENS, None)
    query[COPY, was_copy], key[TOKENS + COPY, was_copy] = 200.0, 1.0
    query[COPY, recent], key[position, recent] = 3.0, torch.arange(LENGTH).float()
    query[:TOKENS, bos], query[COPY, bos], query[LOCAL, bos], key[0, bos] = 12.0, 120.0, 0.0, 1.0
    query[position, at] = 8 * torch.eye(LENGTH).roll(-1, 1)
    key[position, at] = torch.eye(LENGTH)
    value = torch.zeros(width, 7)
    draw = torch.Generator().manual_seed(0)
    value[list(NOUNS), 0], value[list(VERBS), 1] = 2.0, 1.0
    value[list(NOUNS), 2:5] = 0.3 * torch.randn(10, 3, generator=draw)
    value[list(VERBS), 4:] = 0.3 * torch.randn(10, 3, generator=draw)
    parts = (residual @ matrix for matrix in (query, key, value))
    return built_call(batch, *(part[:, None] for part in parts))


def test_two_components_whose_exemplars_are_the_two_roles():
    given = _texts(40)
    how = ExemplarOptions(component_events=10, fewest_queries=20)
    collector = ExemplarCollector(Anatomy(torch.eye(7)[None]), how)
    names = list(given)
    for start in range(0, 40, 8):
        batch = text_batch({name: given[name] for name in names[start : start + 8]})
        feed(collector, batch, [_one_head(batch)])
    found = collector.exemplars()

    shares = found.components["explained"]
    assert shares[0] + shares[1] > 0.8 and shares[1] > 3 * shares[2]
    ends = found.component_events.query("sign == 1")
    copies, locals_ = (ends[ends["component"] == number] for number in (0, 1))
    assert len(copies) == len(locals_) == 10
    assert set(copies["query_token"]) == {f"w{COPY}"}
    for line in copies.itertuples():
        ids = given[line.example]
        last = max(k for k in range(1, line.query_position) if ids[k] == COPY)
        assert line.key_position == last + 1 and ids[last + 1] in NOUNS
        assert line.weight > 0.9
    assert set(locals_["query_token"]) == {f"w{LOCAL}"}
    assert (locals_["key_position"] == locals_["query_position"] - 1).all()
    assert {int(token[1:]) for token in locals_["key_token"]} <= set(VERBS)

    # The pairs say the same: which tokens are read far above chance, and by whom.
    pairs = found.pairs.query("not sink").sort_values("lift", ascending=False)
    readers = pairs.groupby("query")["share"].sum()
    assert set(readers.nlargest(2).index) == {f"w{COPY}", f"w{LOCAL}"}
    from_local = pairs[pairs["query"] == f"w{LOCAL}"]
    verbs = {f"w{verb}" for verb in VERBS}
    assert set(from_local[from_local["lift"] > 2]["key"]) == verbs
    # By weight alone the strongest list would show the one role that is sharper.
    strongest = found.events.query("kind == 'strongest' and by == 'weight'")
    assert set(strongest["query_token"]) == {f"w{COPY}"}
