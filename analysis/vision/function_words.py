"""English words that say little by themselves: what is not in this list counts as a content word.

GIFT keeps nouns, verbs, adjectives, adverbs and numbers, as a part-of-speech tagger sees them. This
list needs no tagger: articles, pronouns, prepositions, conjunctions, auxiliaries, question words
and the like are in it, adverbs of time and manner are not. Give a list of your own for other
languages.
"""

from __future__ import annotations

FUNCTION_WORDS = frozenset(
    """
    a an the this that these those
    i me my mine myself you your yours yourself yourselves he him his himself she her hers herself
    it its itself we us our ours ourselves they them their theirs themselves one ones
    someone somebody something anyone anybody anything everyone everybody everything
    noone nobody nothing none who whom whose which what whatever whichever whoever
    where when why how whether there here
    am is are was were be been being do does did doing done have has had having
    can could may might must shall should will would ought need
    isn't aren't wasn't weren't don't doesn't didn't haven't hasn't hadn't can't cannot couldn't
    mustn't shouldn't won't wouldn't it's that's there's what's who's where's how's let's
    i'm i've i'd i'll you're you've you'd you'll he's she's we're we've we'll they're they've
    they'll
    about above across after against along among amongst around as at before behind below beneath
    beside besides between beyond by despite down during except for from in inside into like near
    of off on onto out outside over past per since than through throughout till to toward towards
    under underneath until unto up upon via with within without
    and or but nor so yet if because although though while whereas unless once
    not no yes all any both each either every few less many more most much neither
    other others another same several some such own only just very too also even
    please ok okay s t d m re ve ll
    """.split()
)
