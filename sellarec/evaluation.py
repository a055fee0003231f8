"""AUC and UAUC, and how sure we are of them: a paired bootstrap over users.

Nothing here knows where scores came from. A metric that is undefined is nan, never 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.stats import rankdata

SLICES = ("all", "warm", "cold")

FEWEST_USERS = 10
"""Of fewer users, resampling cannot tell how much the next ones would differ: their intervals say nothing."""

FEWEST_TO_DECIDE = 30
"""Intervals of fewer `UserBootstrap.effective_users` are shown and decide nothing: of so few they are too narrow."""


def auc(label: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve: how often a random liked row outranks a random disliked one; ties count half.

    Args:
        label, score: Aligned, shape (n,). Labels are 0/1; scores any finite real.

    Returns:
        In [0, 1], or nan if one class is missing.

    Raises:
        ValueError: lengths differ, a label is not 0/1, or a score is not finite.
    """
    label, score = _checked(label, score)
    positive = int(label.sum())
    negative = len(label) - positive
    if not positive or not negative:
        return float("nan")
    ranks = rankdata(score)
    return float((ranks[label == 1].sum() - positive * (positive + 1) / 2) / (positive * negative))


def user_aucs(user: np.ndarray, label: np.ndarray, score: np.ndarray) -> pd.Series:
    """The AUC of every user with both classes, indexed by user.

    Users with one row or one class have no ranking to judge and are left out (CoLLM protocol).
    """
    label, score = _checked(label, score)
    frame = pd.DataFrame({"user": np.asarray(user), "label": label, "score": score})
    frame["rank"] = frame.groupby("user")["score"].rank()
    frame["liked_rank"] = frame["rank"] * frame["label"]
    sums = frame.groupby("user").agg(n=("label", "size"), positive=("label", "sum"), ranks=("liked_rank", "sum"))
    sums = sums[(sums["positive"] > 0) & (sums["positive"] < sums["n"])]
    pairs = sums["positive"] * (sums["n"] - sums["positive"])
    return (sums["ranks"] - sums["positive"] * (sums["positive"] + 1) / 2) / pairs


def uauc(user: np.ndarray, label: np.ndarray, score: np.ndarray) -> float:
    """Mean of the per-user AUCs, each user counting once; nan if no user has both classes."""
    values = user_aucs(user, label, score)
    return float(values.mean()) if len(values) else float("nan")


def metrics(rows: pd.DataFrame, score: np.ndarray) -> dict[str, dict[str, float]]:
    """AUC and UAUC on all, warm and cold rows, with the counts they rest on.

    Args:
        rows: Interactions with `user`, `label`, `warm`, shape (n,).
        score: Shape (n,).

    Returns:
        slice → {auc, uauc, rows, users, users_left_out}.
    """
    out = {}
    for name, mask in slice_masks(rows).items():
        part, values = rows[mask], np.asarray(score)[mask]
        per_user = user_aucs(part["user"], part["label"], values)
        out[name] = {
            "auc": auc(part["label"], values),
            "uauc": float(per_user.mean()) if len(per_user) else float("nan"),
            "rows": int(mask.sum()),
            "users": len(per_user),
            "users_left_out": int(part["user"].nunique() - len(per_user)),
        }
    return out


def slice_masks(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Row masks of the slices: all; warm (user and item both in train); cold (the rest)."""
    warm = rows["warm"].to_numpy(dtype=bool)
    return {"all": np.ones(len(rows), dtype=bool), "warm": warm, "cold": ~warm}


@dataclass(frozen=True)
class Interval:
    """A point estimate with its bootstrap percentile interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def __format__(self, form: str) -> str:
        """As people read it, ".7317 [.7095, .7526]" with a form for each number; bounds that there are none of are left
        out."""
        if math.isnan(self.value):
            return "undefined"
        value, low, high = (format(n, form) for n in (self.value, self.low, self.high))
        return value if math.isnan(self.low) else f"{value} [{low}, {high}]"

    def columns(self, name: str) -> dict[str, float]:
        """As a table holds it: `name`, `name`_low, `name`_high."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


class UserBootstrap:
    """Resamples users with replacement; the same resamples for every system, so that differences are paired.

    Users, not rows, are what a new test set would draw anew: the rows of one user rise and fall together. Where items
    are given, they are resampled too, independently, and a row counts as often as its user times as its item was drawn
    (the pigeonhole bootstrap of Owen, Annals of Applied Statistics 2007; if anything, it is too wide).
    """

    def __init__(
        self,
        user: np.ndarray,
        label: np.ndarray,
        resamples: int = 2000,
        seed: int = 0,
        *,
        item: np.ndarray | None = None,
    ) -> None:
        self.user, self.label = np.asarray(user), np.asarray(label)
        self._users, self._row_user = np.unique(self.user, return_inverse=True)
        self.users = len(self._users)
        random = np.random.default_rng(seed)
        self._weights = _draws(random, self.users, resamples)  # (resamples, users)
        self._of_row = None if item is None else np.unique(item, return_inverse=True)[1]
        if self._of_row is not None:
            self._item_weights = _draws(random, self._of_row.max() + 1, resamples)  # (resamples, items)

    @cached_property
    def effective_users(self) -> dict[str, float]:
        """The effective sample size of each metric: of UAUC, the users with likes and dislikes, each counting once; of
        AUC, as many users of equally many rows as would make as uneven a sample, (sum of n)^2 / (sum of n^2), after
        Kish."""
        rows = np.bincount(self._row_user)
        judged = user_aucs(self.user, self.label, np.zeros(len(self.label)))
        return {"auc": float(rows.sum() ** 2 / (rows**2).sum()), "uauc": float(len(judged))}

    def auc(self, score: np.ndarray) -> np.ndarray:
        """The pooled AUC of every resample, shape (resamples,); nan where a class is missing."""
        label, score = _checked(self.label, score)
        order = np.argsort(score, kind="stable")
        liked = label[order]
        starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])  # first row of each run of ties
        out = np.empty(len(self._weights))
        for lo in range(0, len(out), 250):  # bounds the memory to 250 x n
            weight = self._row_weights(slice(lo, lo + 250), order)
            negative = np.add.reduceat(weight * (1 - liked), starts, axis=1, dtype=np.float64)
            positive = np.add.reduceat(weight * liked, starts, axis=1, dtype=np.float64)
            below = np.cumsum(negative, axis=1) - negative / 2
            pairs = positive.sum(axis=1) * negative.sum(axis=1)
            with np.errstate(invalid="ignore"):
                out[lo : lo + 250] = (positive * below).sum(axis=1) / np.where(pairs > 0, pairs, np.nan)
        return out

    def uauc(self, score: np.ndarray) -> np.ndarray:
        """The UAUC of every resample, shape (resamples,)."""
        per_user = user_aucs(self.user, self.label, score)
        weight = self._weights[:, np.searchsorted(self._users, per_user.index)]
        values = per_user.to_numpy()[None] if self._of_row is None else self._with_items(per_user.index, score)
        weight = weight * np.isfinite(values)
        total = weight.sum(axis=1)
        with np.errstate(invalid="ignore"):
            return (weight * np.nan_to_num(values)).sum(axis=1) / np.where(total > 0, total, np.nan)

    def _row_weights(self, resamples: slice, rows: np.ndarray) -> np.ndarray:
        """How often each of some rows counts in some resamples, shape (resamples, rows)."""
        weight = self._weights[resamples][:, self._row_user[rows]]
        return weight if self._of_row is None else weight * self._item_weights[resamples][:, self._of_row[rows]]

    def _with_items(self, users: np.ndarray, score: np.ndarray) -> np.ndarray:
        """The AUC of each user over the items of every resample, shape (resamples, users); nan without both classes."""
        out = np.empty((len(self._weights), len(users)))
        for column, user in enumerate(np.searchsorted(self._users, users)):
            rows = np.flatnonzero(self._row_user == user)
            liked, disliked = rows[self.label[rows] == 1], rows[self.label[rows] == 0]
            above = np.sign(np.subtract.outer(score[liked], score[disliked])) / 2 + 0.5
            positive, negative = (self._item_weights[:, self._of_row[r]] for r in (liked, disliked))
            pairs = positive.sum(axis=1) * negative.sum(axis=1)
            with np.errstate(invalid="ignore"):
                out[:, column] = ((positive @ above) * negative).sum(axis=1) / np.where(pairs > 0, pairs, np.nan)
        return out

    def sums(self, columns: np.ndarray) -> np.ndarray:
        """Sums of columns (n, k) over the rows of every resample, shape (resamples, k), float64."""
        per_user = np.zeros((self.users, columns.shape[1]))
        np.add.at(per_user, self._row_user, columns)
        return self._weights.astype(np.float64) @ per_user

    def interval(self, metric: str, score: np.ndarray, baseline: np.ndarray | None = None) -> Interval:
        """The 95 % interval of a metric ("auc" or "uauc"), or of its difference to a baseline's scores; without bounds
        (nan) where it rests on fewer than two users.

        Args:
            score, baseline: Shape (n,); or (k, n), of which the mean metric of the k is taken.
        """
        value, samples = self._mean(metric, score)
        if baseline is not None:
            other, others = self._mean(metric, baseline)
            value, samples = value - other, samples - others
        if np.isnan(samples).all() or self.effective_users[metric] < 2:  # every resample of one user is that user
            return Interval(value, float("nan"), float("nan"))
        low, high = np.nanpercentile(samples, [2.5, 97.5])
        return Interval(value, float(low), float(high))

    def _mean(self, metric: str, scores: np.ndarray) -> tuple[float, np.ndarray]:
        """A metric's value and its values under every resample, averaged over the lines of scores."""
        lines = np.atleast_2d(scores)
        value = float(np.mean([self._point(metric, line) for line in lines]))
        return value, np.mean([getattr(self, metric)(line) for line in lines], axis=0)

    def _point(self, metric: str, score: np.ndarray) -> float:
        return auc(self.label, score) if metric == "auc" else uauc(self.user, self.label, score)


def _draws(random: np.random.Generator, n: int, resamples: int) -> np.ndarray:
    """How often each of n is drawn in n draws with replacement, shape (resamples, n), float32."""
    return random.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float32)


def mean_interval(user: np.ndarray, value: np.ndarray, resamples: int = 2000, seed: int = 0) -> Interval:
    """The mean of values (n,) with the 95 % interval of resampling their users (n,); without bounds (nan) where they
    have fewer than two, and nan of nothing."""
    _, at = np.unique(user, return_inverse=True)
    total, count = np.bincount(at, weights=value), np.bincount(at)
    if len(count) < 2:
        return Interval(float(np.mean(value)) if len(value) else float("nan"), float("nan"), float("nan"))
    draws = np.random.default_rng(seed).multinomial(len(count), np.full(len(count), 1 / len(count)), size=resamples)
    low, high = np.percentile(draws @ total / (draws @ count), [2.5, 97.5])
    return Interval(float(np.mean(value)), float(low), float(high))


def _checked(label: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    label, score = np.asarray(label), np.asarray(score, dtype=np.float64)
    if label.shape != score.shape:
        raise ValueError(f"{len(label)} labels and {len(score)} scores")
    if not np.isin(label, (0, 1)).all():
        raise ValueError(f"label {label[~np.isin(label, (0, 1))][0]!r} is neither 0 nor 1")
    if not np.isfinite(score).all():
        raise ValueError(f"score of row {np.flatnonzero(~np.isfinite(score))[0]} is not finite")
    return label.astype(np.int64), score
