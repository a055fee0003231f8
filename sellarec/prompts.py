"""The text that the language model reads, and where the three soft tokens stand.

A prompt is a prefix that depends only on the user and the history, and a suffix that holds the target, the soft
tokens and the answer cue. Rows with the same history share the prefix, so that the engine computes it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sellarec.data.dataset import Dataset, natural_title, shrunk_rate
from sellarec.settings import PromptConfig

USER, ITEM, WARM = "<User_ID>", "<Item_ID>", "<Warm_ID>"
SOFT_TOKENS = (USER, ITEM, WARM)
INSTRUCTION = "instruction"


@dataclass(frozen=True)
class Prompt:
    """One row's text: `prefix + suffix` is what the model reads.

    Attributes:
        spans: Which characters of the whole text say what: (segment, start, end), in order and without gaps. A segment
            is "instruction", "title 1" for the oldest listed title and so on, "user record", "target", "genres",
            "item record", "expectation", or a soft token's name. Empty for prompts that a `PromptWriter` did not write.
    """

    prefix: str
    suffix: str
    spans: tuple[tuple[str, int, int], ...] = ()

    @property
    def text(self) -> str:
        return self.prefix + self.suffix


Pieces = list[tuple[str, str]]
"""(segment, text), in order."""


def _joined(prefix: Pieces, suffix: Pieces) -> Prompt:
    spans, end = [], 0
    for segment, text in prefix + suffix:
        spans.append((segment, end, end + len(text)))
        end += len(text)
    return Prompt("".join(t for _, t in prefix), "".join(t for _, t in suffix), tuple(spans))


class PromptWriter:
    """Writes the prompts of a dataset's rows.

    `soft_tokens` names the ones that the hybrid prompt holds, in their order; empty writes the text-only prompt.
    A token that is left out takes its words with it, so that no sentence dangles.
    """

    def __init__(self, dataset: Dataset, config: PromptConfig, soft_tokens: tuple[str, ...] = ()) -> None:
        self.dataset = dataset
        self.config = config
        self.soft_tokens = soft_tokens
        names = [natural_title(t) if config.natural_titles else t for t in dataset.titles]
        self._titles = [f'"{name}"' for name in names]
        self._genres = ["", *dataset.catalogue["genres"].str.replace("|", ", ").str.lower()]
        self._item = dataset.interactions["item"].to_numpy()
        self._usual = float(dataset.part("train")["label"].mean())
        self._of_user = dataset.training_counts("user")
        self._of_item = dataset.training_counts("item")

    def write(self, row: int, new_user: bool = False) -> Prompt:
        """The prompt of an interaction row, or what it would be if the training part did not know its user."""
        item = int(self._item[row])
        of_user = (0, 0) if new_user else self._of_user[row]
        return self.compose(self.dataset.history(row, self.config.history), item, of_user, self._of_item[row])

    def compose(
        self, history: np.ndarray, item: int, of_user: Sequence[int] = (0, 0), of_item: Sequence[int] = (0, 0)
    ) -> Prompt:
        """The prompt for any history and target.

        Args:
            of_user, of_item: How many training ratings the user gave and the item got, and how many of them were
                likes, as in `Dataset.training_counts`.
        """
        noun = self.dataset.domain
        prefix: Pieces = []
        if self.config.history:
            prefix += self._history(history[-self.config.history :])
        if self.config.user_profile:
            known = f"likes {_share(*of_user)} {noun}s" if of_user[0] else f"is new to {noun}s here"
            prefix.append(("user record", f"{' ' if prefix else ''}The user {known}."))
        suffix = [(INSTRUCTION, f" Will the user like the {noun} "), ("target", self._titles[item])]
        if self.config.genres and self._genres[item]:
            suffix.append(("genres", f" ({self._genres[item]})"))
        suffix.append((INSTRUCTION, "?"))
        if self.config.item_profile:
            known = f"liked by {_share(*of_item)} users" if of_item[0] else "new here"
            suffix.append(("item record", f" It is {known}."))
        if self.config.expectation and self.config.user_profile and self.config.item_profile:
            suffix.append(("expectation", f" Expected from both: {self._expected(of_user, of_item):.0f}%."))
        return _joined(prefix, [*suffix, *self._features(), (INSTRUCTION, " Answer Yes or No. Answer:")])

    def _expected(self, of_user: Sequence[int], of_item: Sequence[int]) -> float:
        """Percentage of likes that the counting baseline expects; every deviation from the usual rate counts once."""
        rate = shrunk_rate(*of_user, self._usual) + shrunk_rate(*of_item, self._usual) - self._usual
        return 100 * min(max(rate, 0.01), 0.99)

    def _history(self, items: np.ndarray) -> Pieces:
        pieces = [(INSTRUCTION, f"The user rated these {self.dataset.domain}s highly: ")]
        for n, item in enumerate(items, start=1):
            pieces += [(INSTRUCTION, ", ")] * (n > 1) + [(f"title {n}", self._titles[item])]
        return [*pieces, (INSTRUCTION, "." if len(items) else "none.")]

    def _features(self) -> Pieces:
        noun = self.dataset.domain
        about_item = [t for t in self.soft_tokens if t != USER]
        pieces: Pieces = []
        if USER in self.soft_tokens:
            pieces += [(INSTRUCTION, " The user's collaborative feature is "), (USER, USER), (INSTRUCTION, ".")]
        if about_item:
            pieces.append((INSTRUCTION, f" The target {noun}'s feature is "))
            for n, token in enumerate(about_item):
                pieces += [(INSTRUCTION, ", ")] * (n > 0) + [(token, token)]
            pieces.append((INSTRUCTION, "."))
        return pieces


def item_prompt(dataset: Dataset, item: int, natural: bool = True) -> str:
    """The prompt whose last hidden state is an item's semantic embedding (paper Fig. 3)."""
    title = dataset.titles[item]
    return f"{dataset.domain.capitalize()}: {natural_title(title) if natural else title}"


def _share(rated: int, liked: int) -> str:
    return f"{100 * liked / rated:.0f}% of {rated}"
