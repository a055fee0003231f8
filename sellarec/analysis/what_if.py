"""SeLLa-Rec on rows that nobody rated: another history, a token that is missing, somebody else's vector.

The soft tokens and the prompt are made as for the rows of the dataset, so that a row that is not changed gets the score
that its run holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sellarec.analysis.catalogue import row_of_pair
from sellarec.backbone.attention import answer_and_attention, attention_weights
from sellarec.backbone.engine import score_rows
from sellarec.backbone.language_model import LanguageModel
from sellarec.backbone.token_rows import TokenRow
from sellarec.collab.records import records_of_counts
from sellarec.errors import SellarecError
from sellarec.prompts import INSTRUCTION, ITEM, SOFT_TOKENS, USER, WARM, Prompt, PromptWriter
from sellarec.systems.base import Workspace
from sellarec.systems.sella import SoftTokens, load_soft_tokens, phases

Counts = tuple[int, int]

KEPT_PREFIXES = 32
"""Prefixes of prompts whose keys and values stay in memory; 6 MB each of SmolLM2-135M and 130 tokens."""


@dataclass(frozen=True)
class Case:
    """A row, real or made up.

    Attributes:
        user: 0 for a user whom the training part does not know.
        item: The target.
        history: Liked items, oldest first; the prompt lists the last few.
        of_user, of_item: Training ratings of user and item, and likes among them; of a training row as in
            `Dataset.training_counts`.
        tokens: The soft tokens that the prompt holds.
        user_token, item_token, warm_token: Of whom and what these tokens are made instead.
        of_user_token, of_item_token: Training ratings of these, and likes among them.
    """

    user: int
    item: int
    history: tuple[int, ...]
    of_user: Counts = (0, 0)
    of_item: Counts = (0, 0)
    tokens: tuple[str, ...] = SOFT_TOKENS
    user_token: int | None = None
    of_user_token: Counts = (0, 0)
    item_token: int | None = None
    of_item_token: Counts = (0, 0)
    warm_token: int | None = None

    def listed(self, most: int) -> tuple[int, ...]:
        """The likes that a prompt of at most so many titles lists. Of a longer history, an earlier like would take the
        place of one that is left out."""
        return self.history[max(0, len(self.history) - most) :]

    def without_title(self, position: int) -> Case:
        """The case without one liked item."""
        return dataclasses.replace(self, history=self.history[:position] + self.history[position + 1 :])

    def without_token(self, token: str) -> Case:
        """The case without a soft token and its words."""
        return dataclasses.replace(self, tokens=tuple(t for t in self.tokens if t != token))


@dataclass(frozen=True)
class Attention:
    """What each token of one prompt attends to.

    Attributes:
        tokens: The T tokens as text.
        segments: What part of the prompt each token belongs to.
        weights: Shape (layers, heads, T, T), float32; [..., i, j] is how much i attends to j.
    """

    tokens: list[str]
    segments: list[str]
    weights: np.ndarray

    @property
    def layers(self) -> int:
        return len(self.weights)

    def layer(self, number: int) -> np.ndarray:
        """The map of one layer, counted from 1, averaged over heads, (T, T).

        Raises:
            SellarecError: there is no such layer.
        """
        if not 1 <= number <= self.layers:
            raise SellarecError(f"layer {number} does not exist; this backbone has layers 1 to {self.layers}.")
        return self.weights[number - 1].mean(axis=0)

    def from_answer(self) -> np.ndarray:
        """Attention of the position that decides the answer to all tokens, averaged over heads, (layers, T)."""
        return self.weights[:, :, -1].mean(axis=1)

    def by_segment(self) -> dict[str, np.ndarray]:
        """Attention of the answer position to each segment, (layers,); see `shares`."""
        return shares(self.from_answer(), self.segments)


def shares(from_answer: np.ndarray, segments: list[str]) -> dict[str, np.ndarray]:
    """Attention (layers, T) summed over each segment's tokens, (layers,); the first token apart.

    A causal model rests on its first token when it looks for nothing; that "sink" is a segment of its own.
    """
    names = ["sink", *segments[1:]]
    return {n: from_answer[:, [m == n for m in names]].sum(axis=1) for n in dict.fromkeys(names)}


class Explorer:
    """The trained SeLLa-Rec of a workspace. Cases and their prompts need the data only; the first answer loads the
    model, or raises SellarecError if the run was published without weights and the workspace does not compute."""

    def __init__(self, work: Workspace) -> None:
        if work.config.evaluation.raw_yes:
            raise SellarecError("What-ifs are told in log-odds; runs with evaluation.raw_yes score something else.")
        self.work, self.dataset = work, work.dataset
        self.tokens = phases(work.config.stage3)[-1][0]
        self._prefixes: dict[tuple[int, ...], object] = {}
        self._writers: dict[tuple[str, ...], PromptWriter] = {}

    @cached_property
    def _soft(self) -> SoftTokens:
        return load_soft_tokens(self.work, self.work.with_weights("sella"))

    @cached_property
    def _lm(self) -> LanguageModel:
        self.load()
        return self.work.tuned_model

    def load(self) -> None:
        """Load what answers, now."""
        _ = self._soft, self.work.tuned_model  # in this order: of missing weights SeLLa-Rec's are to be named

    def case_of_row(self, row: int) -> Case:
        """A row of the dataset as SeLLa-Rec scores it: with the history before it and, of a training row, with counts
        that leave its own label out."""
        user, item = (int(self.dataset.interactions[c].iat[row]) for c in ("user", "item"))
        case = self.case(user, item, tuple(int(i) for i in self.dataset.history(row)))
        of_user, of_item = (tuple(self.dataset.training_counts(c)[row].tolist()) for c in ("user", "item"))
        return dataclasses.replace(case, of_user=of_user, of_item=of_item)

    def find_case(self, user: int | None = None, item: str | int | None = None) -> Case:
        """A user by id and an item by title or id; what is not named is taken from the first warm test row whose
        history fills the prompt.

        Raises:
            SellarecError: an id that the dataset does not have; a title that no item or more than one item has.
        """
        test = self.dataset.part("test")
        if user is not None and not 1 <= user <= self.dataset.n_users:
            raise SellarecError(f"user {user} is not in {self.dataset.name}; ids go from 1 to {self.dataset.n_users}.")
        if user is not None:
            test = test[test["user"] == user]
        full = self.dataset.history_lengths(test.index.to_numpy()) >= self.work.config.prompt.history
        good = test.index[full & test["warm"].to_numpy()]
        rows = good if len(good) else test.index
        if item is not None:
            whose = int(test.loc[rows[0], "user"]) if user is None else user
            return self.case_of_pair(whose, self.dataset.item_by_title(item) if isinstance(item, str) else item)
        if not len(rows):
            raise SellarecError(f"user {user} has no test row; name an item as well.")
        return self.case_of_row(int(rows[0]))

    def name(self, case: Case) -> str:
        """Whom and what a case is about."""
        whose = f"user {case.user}" if case.user else "a new user"
        return f"{whose} and {self.dataset.distinct_titles[case.item]}"

    def strangers(self, case: Case) -> tuple[int, int]:
        """Another user and another item of the training part, always the same ones for a case."""
        train = self.dataset.part("train")
        others = train[(train["user"] != case.user) & (train["item"] != case.item)]
        row = others.iloc[np.random.default_rng([case.user, case.item]).integers(len(others))]
        return int(row["user"]), int(row["item"])

    def case_of_pair(self, user: int, item: int) -> Case:
        """A user and a target: the case of their row, see `row_of_pair`, if they have one; otherwise with all likes."""
        row = row_of_pair(self.work, user, item)
        if row is not None:
            return self.case_of_row(row)
        rows = self.dataset.interactions
        liked = rows[(rows["user"] == user) & (rows["label"] == 1)]["item"]
        return self.case(user, item, tuple(int(i) for i in liked))

    def case(self, user: int, item: int, history: tuple[int, ...]) -> Case:
        """Any user (0: a new one) and target, with what the training part knows of both.

        Raises:
            SellarecError: an id that the dataset does not have.
        """
        for what, value, least, most in (
            ("user", user, 0, self.dataset.n_users),
            ("item", item, 1, self.dataset.n_items),
        ):
            if not least <= value <= most:
                raise SellarecError(f"{what} {value} is not in {self.dataset.name}; ids go from 1 to {most}.")
        of_user, of_item = self.counts("user", user), self.counts("item", item)
        return Case(user if of_user[0] else 0, item, history, of_user, of_item, self.tokens)

    def counts(self, column: str, index: int) -> Counts:
        """Training ratings of a user or item, and likes among them."""
        return tuple(self.dataset.training_totals(column)[index].tolist())

    def prompt(self, case: Case) -> Prompt:
        writer = self._writers.get(case.tokens)
        if writer is None:
            writer = self._writers[case.tokens] = PromptWriter(self.dataset, self.work.config.prompt, case.tokens)
        return writer.compose(np.array(case.history, dtype=np.int64), case.item, case.of_user, case.of_item)

    def log_odds(self, cases: Sequence[Case], label: str = "") -> np.ndarray:
        """Log-odds of a like, shape (n,), float32."""
        rows = [self._row(c) for c in cases]
        return score_rows(self._lm, rows, lambda batch: self._vectors([cases[i] for i in batch]), label=label)

    def attention(self, case: Case) -> Attention:
        """What each token of the case's prompt attends to."""
        row = self._row(case)
        names = {i: t for t, i in self._lm.soft_ids.items()}
        texts = [names.get(i) or self._lm.tokenizer.decode([i]) for i in row.prefix + row.suffix]
        return Attention(texts, self._segments(case), attention_weights(self._lm, row, self._vectors([case])))

    def look(self, case: Case) -> tuple[float, dict[str, np.ndarray]]:
        """The log-odds of one case and `Attention.by_segment`, fast for cases that begin as one before did."""
        found, weights = answer_and_attention(self._lm, self._row(case), self._vectors([case]), self._prefixes)
        while len(self._prefixes) > KEPT_PREFIXES:
            self._prefixes.pop(next(iter(self._prefixes)))
        return found, shares(weights, self._segments(case))

    def _segments(self, case: Case) -> list[str]:
        """The part of the prompt that each token belongs to."""
        prompt = self.prompt(case)
        return [_segment_at(prompt, end) for end in self._lm.token_ends(prompt, case.tokens)]

    def _row(self, case: Case) -> TokenRow:
        return self._lm.tokenize(self.prompt(case), case.tokens)

    @torch.inference_mode()
    def _vectors(self, cases: Sequence[Case]) -> dict[str, Tensor]:
        """For each soft token the vectors of those cases that show it, in order."""
        device = self._lm.placement.device
        users = [(c.user, c.of_user) if c.user_token is None else (c.user_token, c.of_user_token) for c in cases]
        items = [(c.item, c.of_item) if c.item_token is None else (c.item_token, c.of_item_token) for c in cases]
        ids = [torch.tensor([i for i, _ in of], device=device) for of in (users, items)]
        records = [
            records_of_counts(self.dataset, column, np.array([counts for _, counts in of])).to(device)
            for column, of in (("user", users), ("item", items))
        ]
        made = self._soft(*ids, *records)
        if WARM in made:
            warm = [c.item if c.warm_token is None else c.warm_token for c in cases]
            made[WARM] = self._soft.warm(torch.tensor(warm, device=device))
        return {t: v[[n for n, c in enumerate(cases) if t in c.tokens]] for t, v in made.items()}


def interventions(explorer: Explorer, case: Case, swap_user: int, swap_item: int) -> dict[str, Case]:
    """The changes whose effect on the log-odds is worth a look: each listed title and each soft token left out, and
    the user and item tokens made of another user and item, in this order."""
    case = dataclasses.replace(case, history=case.listed(explorer.work.config.prompt.history))
    names = [explorer.dataset.distinct_titles[item] for item in case.history]
    names = [name if names.count(name) == 1 else f"{name}, title {n}" for n, name in enumerate(names, start=1)]
    out = {f"without {name}": case.without_title(n) for n, name in enumerate(names)}
    out |= {f"without {token}": case.without_token(token) for token in case.tokens}
    of_user, of_item = explorer.counts("user", swap_user), explorer.counts("item", swap_item)
    if USER in case.tokens:
        user = swap_user if of_user[0] else 0
        out["another user's token"] = dataclasses.replace(case, user_token=user, of_user_token=of_user)
    if ITEM in case.tokens:
        out["another item's token"] = dataclasses.replace(case, item_token=swap_item, of_item_token=of_item)
    if WARM in case.tokens:
        out["another item's warm token"] = dataclasses.replace(case, warm_token=swap_item)
    return out


def _segment_at(prompt: Prompt, character: int) -> str:
    return next((name for name, start, end in prompt.spans if start <= character < end), INSTRUCTION)
