"""The paper's claims, each with a verdict and the interval that it rests on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from sellarec import tables
from sellarec.analysis import alignment, slices, step0
from sellarec.errors import NotComputed
from sellarec.evaluation import FEWEST_TO_DECIDE, Interval, UserBootstrap, auc, mean_interval
from sellarec.profiles import without_additions
from sellarec.systems.base import Workspace
from sellarec.systems.registry import TABLES, find_system, not_fair
from sellarec.systems.variants import ABLATIONS

HOLDS, FAILS, UNDECIDED, NOT_ASKED = "holds", "does not hold", "undecided", "not asked"

FEWEST_ITEMS = 20
"""With fewer items, ten nearest neighbours among them say nothing."""


@dataclass(frozen=True)
class Claim:
    """What the paper says, where, and what these runs say to it."""

    text: str
    source: str
    verdict: str
    evidence: str


def claims(work: Workspace, about: Sequence[str] | None = None) -> list[Claim]:
    """The claims that the runs in the store can be asked about, in the order of the paper.

    Args:
        about: Names of `ASKED`; None asks all of it.
    """
    found = [claim for name in about or ASKED for claim in ASKED[name](work)]
    if without_additions(work.config):
        return found
    # what the paper claims of its method is not what is asked of another one
    return [replace(c, source=c.source if c.source == "ours" else f"after {c.source}") for c in found]


def claims_table(work: Workspace, about: Sequence[str] | None = None) -> pd.DataFrame:
    """The same as a table: `claim`, where the `paper` has it, what it is `here`, and the `evidence`."""
    columns = ["claim", "paper", "here", "evidence"]
    lines = [(c.text, c.source, c.verdict, c.evidence) for c in claims(work, about)]
    return pd.DataFrame(lines, columns=columns).set_index("claim").rename_axis(None)


@dataclass(frozen=True)
class Gain:
    """A difference of AUCs, with that of UAUCs where there is one, and the users that it rests on.

    Attributes:
        effective: The effective number of users, of AUC.
        seeds: The difference of AUCs with other seeds, by seed.
    """

    auc: Interval
    users: int
    effective: float
    uauc: Interval | None = None
    seeds: Mapping[int, float] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """AUC over the users of this seed decides. It is undecided if these are effectively too few, if UAUC's interval
        lies on the other side of 0, or if another seed's difference has the other sign, however small; that signs agree
        is no interval over seeds."""
        found = verdict(self.auc)
        against = {HOLDS: FAILS, FAILS: HOLDS}.get(found)
        other_sign = any(gain * self.auc.value < 0 for gain in self.seeds.values())
        if self.effective < FEWEST_TO_DECIDE or other_sign or (self.uauc and verdict(self.uauc) == against):
            return UNDECIDED
        return found

    def __str__(self) -> str:
        within = f", ΔUAUC {self.uauc:+.4f}" if self.uauc else ""
        few = ": too few" if self.effective < FEWEST_TO_DECIDE else ""
        others = "".join(f"; seed {seed}: {gain:+.4f}" for seed, gain in self.seeds.items())
        rests_on = f"{self.users:,} users, effectively {self.effective:.0f}{few}"
        return f"ΔAUC {self.auc:+.4f}{within}; {rests_on}{others}"


def verdict(interval: Interval) -> str:
    """Of a claim that says that something is above 0."""
    return {"better": HOLDS, "worse": FAILS}.get(tables.verdict(interval), UNDECIDED)


def _gain(work: Workspace, other: str, mask: np.ndarray | None = None) -> Gain:
    rows = work.part("test")
    mask = np.ones(len(rows), dtype=bool) if mask is None else mask
    user = rows["user"].to_numpy()[mask]
    bootstrap = UserBootstrap(user, rows["label"].to_numpy()[mask])
    places = [work.variant({"seed": seed}) for seed in work.seeds() if seed != work.config.seed]
    there = [place for place in places if place.is_done("sella") and place.is_done(other)]
    scores = {p.config.seed: [p.test_scores(name)[mask] for name in ("sella", other)] for p in (work, *there)}
    found = {metric: bootstrap.interval(metric, *scores[work.config.seed]) for metric in ("auc", "uauc")}
    label = rows["label"].to_numpy()[mask]
    gains = {p.config.seed: float(np.subtract(*(auc(label, s) for s in scores[p.config.seed]))) for p in there}
    return Gain(users=bootstrap.users, effective=bootstrap.effective_users["auc"], seeds=gains, **found)


def _beats_systems(work: Workspace) -> Iterator[Claim]:
    paper = [n for n in TABLES["table3"] if n in tables.PUBLISHED_ML_1M]
    ours = [n for n in TABLES["table3"] if n not in tables.PUBLISHED_ML_1M]
    yield _beats(work, "SeLLa-Rec beats all fair baselines of the paper, and loses to no other", "Table 3", paper)
    yield _beats(work, "The same of those that we set beside them", "ours", ours)
    yield from _tokens_help(work)


def _beats(work: Workspace, text: str, source: str, names: list[str]) -> Claim:
    """That SeLLa-Rec is better than each fair one of some systems, and worse than none; the evidence is of the hardest
    of those that decide it. To beat what is handicapped counts for nothing; to lose to it counts."""
    others, unfair = [n for n in names if n != "sella"], not_fair(work.config)
    gains = {name: _gain(work, name) for name in others if work.is_done(name)}
    fair = {name: gain.verdict for name, gain in gains.items() if name not in unfair}
    beaten, all_there = [*fair.values()].count(HOLDS), len(gains) == len(others)
    lost = [name for name, gain in gains.items() if gain.verdict == FAILS]
    total = FAILS if lost else HOLDS if all_there and fair and beaten == len(fair) else UNDECIDED
    not_beaten = [name for name, found in fair.items() if found != HOLDS]
    hardest = min(lost or not_beaten or fair or gains, key=lambda n: gains[n].auc.value)
    there = (
        f"{len(fair)} fair ones" if all_there else f"{len(fair)} fair ones there ({len(gains)} of all {len(others)})"
    )
    evidence = f"better than {beaten} of {there}; hardest is {_label(hardest)}: {gains[hardest]}"
    left_out = ", ".join(_label(n) for n in gains if n in unfair and n not in lost)
    evidence += f". To be better than these counts for nothing, no fair baselines: {left_out}" if left_out else ""
    return Claim(text, source, total, evidence)


def _tokens_help(work: Workspace) -> Iterator[Claim]:
    gain = _gain(work, "tallrec")
    yield Claim("Stage 3, its tokens and its rows, improves on stage 1", "Table 3", gain.verdict, str(gain))
    if work.is_done("tallrec_further"):
        gain = _gain(work, "tallrec_further")
        unfair = not_fair(work.config).get("tallrec_further")
        said = f"{gain}. No fair baseline: {unfair}" if unfair else str(gain)
        decided = UNDECIDED if unfair and gain.verdict == HOLDS else gain.verdict
        yield Claim("Soft tokens improve on text tuned on the same rows", "ours", decided, said)


def _improves_warm_and_cold(work: Workspace) -> Iterator[Claim]:
    masks, rows = slices.warm_masks(work), work.part("test")
    for part in ("warm", "cold"):
        if rows[masks[part]]["label"].nunique() == 2:
            gain = _gain(work, "tallrec", masks[part])
            new = (slices.seen_in_training(work, "user")[masks[part]] == 0).mean()
            said = f"{gain}; {new:.0%} of the rows are of new users" if part == "cold" else str(gain)
            yield Claim(f"Stage 3 improves on stage 1 on {part} rows", "Fig. 5", gain.verdict, said)


def _parts_are_worth_something(work: Workspace) -> Iterator[Claim]:
    asked = {**dict.fromkeys((v.name for v in ABLATIONS), "Table 5"), "unaligned": "ours"}
    for variant, source in asked.items():
        if not work.is_done(variant):
            continue
        gain, changed = _gain(work, variant), _label(variant).split(": ")[-1]
        said = f"SeLLa-Rec minus it: {gain}"
        if work.config.stage3.facts and "warm" not in work.variant(find_system(variant).changes).config.stage3.tokens:
            said += ". Our warm token holds genres and year too, not the title's vector alone"
        yield Claim(f"Worse {'if' if variant == 'unaligned' else 'with'} {changed}", source, gain.verdict, said)


def _vectors_meet(work: Workspace) -> Iterator[Claim]:
    try:
        yield from [*_clouds_meet(work), *_clouds_meet_unseen(work)]
    except NotComputed as missing:
        yield Claim("Whether an item's two vectors meet", "Fig. 6, 7", NOT_ASKED, str(missing))


def _clouds_meet(work: Workspace) -> Iterator[Claim]:
    hits = []
    for place in (work, work.variant(alignment.WITHOUT)):
        clouds = alignment.after_stage_2(place)
        hits.append(alignment.hits_at(alignment.cosines_between(clouds.projected, clouds.distilled)))
    gain = mean_interval(clouds.items, hits[0] - hits[1])  # resamples items
    text = "Contrastive learning brings an item's two vectors together"
    said = f"recall@{alignment.NEIGHBOURS} with CL minus without, items resampled: {gain:+.4f}"
    yield Claim(text, "Fig. 6, 7", verdict(gain), f"{said}; with CL {hits[0].mean():.3f}")


def _clouds_meet_unseen(work: Workspace) -> Iterator[Claim]:
    clouds = alignment.left_out(work)
    text = "It does so for items that it did not see: text and behaviour agree"
    said = f"{len(clouds.items):,} items left out"
    if len(clouds.items) < FEWEST_ITEMS:
        yield Claim(text, "Fig. 6, 7", UNDECIDED, f"{said} (too few)")
        return
    hits = alignment.hits_at(alignment.cosines_between(clouds.projected, clouds.distilled))
    chance = min(1.0, alignment.NEIGHBOURS / len(hits))
    gain = mean_interval(clouds.items, hits - chance)  # resamples items
    said += f", recall@{alignment.NEIGHBOURS} among them minus chance, items resampled: {gain:+.4f}"
    yield Claim(text, "Fig. 6, 7", verdict(gain), f"{said}; chance {chance:.3f}")


def _carries_over(work: Workspace) -> Iterator[Claim]:
    text = "The aligned projection carries over before stage 3 learns"
    try:
        line = step0.step0_table(work).loc["no CL, random projection"]
    except NotComputed as missing:
        yield Claim(text, "Table 6", NOT_ASKED, str(missing))
        return
    if not line["rows"]:
        return
    gained = Interval(line["gain"], line["gain_low"], line["gain_high"])
    gain = Gain(gained, int(line["users"]), line["effective_users"])
    yield Claim(text, "Table 6", gain.verdict, f"warm rows at step 0: {gain}")


def _label(name: str) -> str:
    return find_system(name).label


ASKED: dict[str, Callable[[Workspace], Iterator[Claim]]] = {
    "systems": _beats_systems,
    "warm and cold": _improves_warm_and_cold,
    "ablation": _parts_are_worth_something,
    "alignment": _vectors_meet,
    "step 0": _carries_over,
}
"""What may be asked, by name."""
