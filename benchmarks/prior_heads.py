"""Which heads carry the prior: those without which an absent partner is not expected any more.

Every head of the language tower is taken away alone, by zero and by its mean, on scenes that are
not those on which anything is judged. The rule was fixed before anything was judged:

1. A head *carries the prior* if without it, zeroed and averaged alike, the probability of
   ``, a PARTNER`` after ``there is a CUE`` falls where the partner is absent, and its logarithm
   falls by more than that of the null (the partner of another cue, absent as well). All three
   intervals must leave 0 out at the level 1 - .05 / number of heads.
2. The *prior heads* are found one after the other: of the heads that carry the prior, each time the
   one whose zeroing, beside those chosen already, leaves the lowest probability; as long as it
   takes away at least a tenth of what the intact model gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

LEAST_SHARE = 0.1
REPLICATES = 10_000
ROWS = 60
TOWER = "language"
QUANTITIES = ("probability", "nats", "null", "beyond_null", "present", "caption")
"""What a head's absence changes, each positive where the head makes it larger (`caption`: where it
makes it smaller): probability and log-probability of the absent partner, log-probability of the
null, the difference of the two, probability of a partner that is there, loss of the true caption in
nats per word."""


def search(subject: Any, scenes: Sequence[Any], most: int = 3, say: Any = None) -> dict[str, Any]:
    """Effects of all heads, the heads that carry the prior, and the prior heads, one by one.

    Args:
        most: so many heads are chosen one after the other; ``prior`` has those that the rule takes.
    """
    import headscope as hs

    names = [
        f"{TOWER}.L{site.site.layer}H{head}"
        for site in subject.layout.sites
        if site.site.tower == TOWER
        for head in range(site.heads)
    ]
    means = mean_z(subject, scenes)
    intact = readings(subject, scenes)
    level = 1 - 0.05 / len(names)
    effects = []
    for name in names:
        line: dict[str, Any] = {"head": name}
        for way, edit in (("zero", hs.edits.zero(name)), ("mean", hs.edits.mean(name, means))):
            with hs.edit(subject, edit):
                gone = readings(subject, scenes)
            line[way] = _estimates(scenes, intact, gone, level)
        line["carries"] = _carries(line)
        effects.append(line)
        if say is not None:
            say(f"   {name}: {line['zero']['probability']['value']:+.3f}")
    carrying = [line["head"] for line in effects if line["carries"]]
    chosen = one_after_the_other(subject, scenes, carrying, most)
    whole = _value(scenes, intact)
    count, before = 0, whole
    while count < len(chosen) and before - chosen[count]["left"] >= LEAST_SHARE * whole:
        before = chosen[count]["left"]
        count += 1
    return {
        "scenes": len(scenes),
        "absent": sum(not scene.extra["partner_present"] for scene in scenes),
        "level": level,
        "intact": {
            "probability": whole,
            "present": float(np.nanmean(np.exp(intact["present"]))),
            "caption": float(np.nanmean(intact["caption"])),
        },
        "effects": effects,
        "carrying": carrying,
        "chosen": chosen,
        "prior": [step["head"] for step in chosen[:count]],
    }


def one_after_the_other(
    subject: Any, scenes: Sequence[Any], heads: Sequence[str], most: int
) -> list[dict[str, Any]]:
    """Each time the head whose zeroing leaves the lowest probability of the absent partner."""
    import headscope as hs

    chosen: list[dict[str, Any]] = []
    while len(chosen) < min(most, len(heads)):
        taken = [step["head"] for step in chosen]
        left = {}
        for head in heads:
            if head not in taken:
                with hs.edit(subject, hs.edits.zero([*taken, head])):
                    left[head] = _value(scenes, readings(subject, scenes, ("absent",)))
        best = min(left, key=lambda head: left[head])
        chosen.append({"head": best, "left": left[best]})
    return chosen


def readings(
    subject: Any, scenes: Sequence[Any], wanted: Sequence[str] = ("absent", "present", "caption")
) -> dict[str, np.ndarray]:
    """Log-probabilities, float ``[scene]``, NaN where a scene does not have them.

    ``partner`` and ``other`` where the partner is absent, ``present`` where it is there,
    ``caption`` per word.
    """
    absent = [number for number, s in enumerate(scenes) if not s.extra["partner_present"]]
    there = [number for number, s in enumerate(scenes) if s.extra["partner_present"]]
    every = list(range(len(scenes)))
    begin = "there is a {cue}"
    found = {}
    if "absent" in wanted:
        found["partner"] = _log(subject, scenes, absent, begin, " , a {partner}")
        found["other"] = _log(subject, scenes, absent, begin, " , a {other}")
    if "present" in wanted:
        found["present"] = _log(subject, scenes, there, begin, " , a {partner}")
    if "caption" in wanted:
        words = [len(scene.extra["caption"].split()) - 1 for scene in scenes]
        found["caption"] = _log(subject, scenes, every, "there", "{rest}") / np.array(words)
    return found


def mean_z(subject: Any, scenes: Sequence[Any]) -> dict[Any, Any]:
    """``[head head_width]`` by layer: mean of z over all positions of the true captions."""
    from dataclasses import replace

    import headscope as hs

    totals: dict[Any, Any] = {}
    count = 0
    for rows in _blocks(range(len(scenes))):
        answered = [replace(scenes[row], answer=scenes[row].extra["caption"]) for row in rows]
        batch = subject.prepare(examples=answered)
        real = batch.tensors["attention_mask"].bool()
        seen = hs.capture(subject, batch, patterns=(), z=f"{TOWER}.*")
        for site in subject.layout.sites:
            if site.site.tower == TOWER:
                z = seen.z(site.site)[real].double().sum(0)
                totals[site.site] = totals.get(site.site, 0) + z
        count += int(real.sum())
    return {site: (total / count).float() for site, total in totals.items()}


def text_to_image(subject: Any, scenes: Sequence[Any]) -> np.ndarray:
    """Float ``[layer head]``: weight of text on the image, over prompts and true captions."""
    from dataclasses import replace

    import headscope as hs

    batches = [
        subject.prepare(
            examples=[replace(scenes[row], answer=scenes[row].extra["caption"]) for row in rows]
        )
        for rows in _blocks(range(len(scenes)))
    ]
    table = hs.score(subject, batches, measures=["role_mass"])
    return table.grid("role_mass", tower=TOWER, variant="text->image")


def _log(
    subject: Any, scenes: Sequence[Any], rows: Sequence[int], begin: str, then: str
) -> np.ndarray:
    from probes.continuation import continuation_log_probability

    found = np.full(len(scenes), np.nan)
    for block in _blocks(rows):
        some = [scenes[row] for row in block]
        fields = [scene.extra | {"rest": scene.extra["caption"][5:]} for scene in some]
        found[block] = continuation_log_probability(
            subject,
            some,
            [begin.format(**known) for known in fields],
            [then.format(**known) for known in fields],
        ).numpy()
    return found


def _blocks(rows: Sequence[int]) -> Iterator[list[int]]:
    for start in range(0, len(rows), ROWS):
        yield list(rows[start : start + ROWS])


def _value(scenes: Sequence[Any], found: dict[str, np.ndarray]) -> float:
    return float(np.nanmean(np.exp(found["partner"])))


def _estimates(
    scenes: Sequence[Any], intact: dict[str, Any], gone: dict[str, Any], level: float
) -> dict[str, dict[str, float]]:
    """Value, 95 % interval and the interval at the stricter level of each quantity."""
    from analysis.statistics import RatioSums

    nats = {name: intact[name] - gone[name] for name in intact}
    columns = {
        "probability": np.exp(intact["partner"]) - np.exp(gone["partner"]),
        "nats": nats["partner"],
        "null": nats["other"],
        "beyond_null": nats["partner"] - nats["other"],
        "present": np.exp(intact["present"]) - np.exp(gone["present"]),
        "caption": nats["caption"],
    }
    table = np.stack([columns[name] for name in QUANTITIES], axis=1)
    sums = RatioSums.empty(len(QUANTITIES), replicates=REPLICATES)
    counted = np.isfinite(table)
    sums.add([scene.id for scene in scenes], np.where(counted, table, 0.0), counted.astype(float))
    low, high = sums.interval()
    strict_low, strict_high = sums.interval(level)
    return {
        name: {
            "value": float(sums.value[place]),
            "low": float(low[place]),
            "high": float(high[place]),
            "strict_low": float(strict_low[place]),
            "strict_high": float(strict_high[place]),
        }
        for place, name in enumerate(QUANTITIES)
    }


def _carries(line: dict[str, Any]) -> bool:
    return (
        line["zero"]["probability"]["strict_low"] > 0
        and line["mean"]["probability"]["strict_low"] > 0
        and line["zero"]["beyond_null"]["strict_low"] > 0
    )
