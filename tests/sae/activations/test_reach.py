"""Whether data reach every site: by what inputs hold, and by the rows that came."""

import pytest
import torch

from probes.heads import Site
from probes.inputs import Batch, Example
from probes.tokens.map import TokenMap, blank_tokens
from sae.activations.places import PlacedChunk
from sae.activations.reach import Reach, kinds_of

WORDS, EYES = Site("language", 1), Site("vision", 0)
SITES = [WORDS, EYES]
TEXT, PICTURE = Example("a", text="t01"), Example("b", images=["there.png"])


def chunk(words: int, eyes: int) -> PlacedChunk:
    return PlacedChunk(0, {str(WORDS): torch.zeros(words, 3), str(EYES): torch.zeros(eyes, 5)}, {})


def test_inputs_differ_by_what_they_hold():
    assert kinds_of([TEXT, Example("c", text="t02 t03")]) == kinds_of([TEXT])
    assert len(kinds_of([TEXT, PICTURE])) == 2
    tokens = TokenMap({"language": blank_tokens("language", [1], [0], "text")})
    plain, seeing = (
        Batch({name: torch.zeros(1) for name in names}, tokens, (TEXT,))
        for names in (["input_ids"], ["input_ids", "pixel_values"])
    )
    assert len(kinds_of([plain, seeing])) == 2
    assert kinds_of([plain, plain]) == kinds_of([plain])


def test_a_site_may_be_silent_until_every_kind_of_input_was_met():
    reach = Reach(SITES, kinds_of([TEXT, PICTURE]))
    reach.meet([TEXT], {WORDS}, chunk(2, 0))
    reach.refuse_unheard()
    reach.meet([PICTURE], {WORDS}, chunk(1, 0))
    with pytest.raises(ValueError, match=r"reached by some example, vision\.L0 is not\. Give data"):
        reach.refuse_unheard()


def test_two_silent_sites_are_named_together():
    reach = Reach([EYES, Site("vision", 2)], kinds_of([TEXT]))
    reach.meet([TEXT], set(), PlacedChunk(0, {}, {}))
    with pytest.raises(ValueError, match=r"example, vision\.L0, vision\.L2 are not\."):
        reach.refuse_unheard()


def test_a_pass_that_ran_nothing_says_why():
    reach = Reach(SITES, kinds_of([TEXT]))
    with pytest.raises(ValueError, match="one of the 2 examples must be .* none was; 'b': no file"):
        reach.refuse_nothing(["a", "b"], [("b", "no file")], None)


def test_a_site_without_a_position_that_counts():
    reach = Reach(SITES, kinds_of([TEXT]))
    reach.meet([TEXT], {WORDS, EYES}, chunk(4, 0))
    with pytest.raises(ValueError, match=r"position of vision\.L0 must have a role among cls, bos"):
        reach.refuse_nothing(["a"], [], ("cls", "bos"))
    reach.meet([TEXT], {WORDS, EYES}, chunk(0, 1))
    reach.refuse_nothing(["a"], [], ("cls", "bos"))
