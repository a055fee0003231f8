"""Settings of the data, the three stages, scoring and the analyses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sellarec.errors import SellarecError
from sellarec.settings.checks import Settings, above_zero, at_least, at_most, late, share

TOKENS = ("user", "item", "warm")


@dataclass(frozen=True)
class DataConfig(Settings):
    """How ratings become a dataset. The cut shares are for datasets without published cut dates."""

    valid_from: float = 0.70
    """Share of the calendar span at which validation begins."""
    test_from: float = 0.85
    """Share of the calendar span at which test begins."""
    like_above: float = 3.0
    """A rating strictly above this is a like (Amazon-Book: 4)."""
    strict_history: bool = False
    """Leave likes of the same second out of a history."""
    domain: str = late("movie")
    """The noun for an item of an own table in prompts: "song", "restaurant"."""

    def check(self, group: str) -> None:
        if not 0 < self.valid_from < self.test_from < 1:
            raise SellarecError(
                f"{group}valid_from is {self.valid_from} and {group}test_from {self.test_from}; "
                "two increasing shares between 0 and 1 are needed."
            )


@dataclass(frozen=True)
class PromptConfig(Settings):
    """What the prompt says. The defaults marked *ours* are not in the paper."""

    history: int = 10
    """How many of the latest liked titles are listed (protocol: 10); 0 leaves the sentence out."""
    genres: bool = True
    """Ours: name the target's genres."""
    user_profile: bool = True
    """Ours: say how much of what the user rated in the training part was liked."""
    item_profile: bool = True
    """Ours: say how many of the users who rated the target in the training part liked it."""
    expectation: bool = True
    """Ours: where both of these are said, say what they let one expect: the counting baseline's answer, in percent."""
    natural_titles: bool = True
    """Ours: "The Matrix (1999)" instead of "Matrix, The (1999)"."""

    def check(self, group: str) -> None:
        at_least(self, group, history=0)


@dataclass(frozen=True)
class LoraSettings(Settings):
    """The adapter of stage 1."""

    rank: int = 8
    """Rank of the update (protocol: 8); 0 leaves the backbone as it is."""
    alpha: int = 16
    """Scale; the update is multiplied by alpha / rank."""
    dropout: float = 0.05
    """Dropout before the adapter."""
    targets: str = "all-linear"
    """Comma-separated linear modules, or "all-linear". CoLLM adapts q_proj,v_proj; SeLLa-Rec's code adapts all."""
    checkpointing: bool = False
    """Compute a layer's activations again in the backward pass instead of keeping them: less memory, a third slower."""

    def check(self, group: str) -> None:
        at_least(self, group, rank=0)
        above_zero(self, group, "alpha")
        share(self, group, "dropout")


@dataclass(frozen=True)
class TrainConfig(Settings):
    """How a language-model stage is trained."""

    rows: int | float | None = None
    """Training rows drawn at random from the training part; below 1 a share of them; None takes all."""
    cold_users: float | None = None
    """Ours: share of these rows that show their user as new, without record and vector; None takes the share of new
    users' rows in the validation part, 0 is the paper's way."""
    epochs: int = 1
    """Passes over these rows."""
    batch: int = 32
    """Rows per optimiser step."""
    accumulate: int = 1
    """Split each step into this many smaller batches, to save memory."""
    learning_rate: float = 1e-3
    """Peak of the cosine schedule (AdamW)."""
    warmup: float = 0.03
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 1e-3
    """AdamW's decoupled weight decay."""
    evaluations: int = 2
    """How often validation AUC is measured, evenly spaced; the best checkpoint is kept."""
    checkpoint_seconds: float = field(default=60.0, metadata={"idle": True})
    """Seconds of work that a killed run loses at most."""

    def check(self, group: str) -> None:
        if isinstance(self.rows, float) and not 0 < self.rows < 1:
            raise SellarecError(f"{group}rows is {self.rows}; it must be a whole number, or a share between 0 and 1.")
        at_least(self, group, rows=1 if isinstance(self.rows, int) else 0)
        at_least(self, group, epochs=1, batch=1, accumulate=1, evaluations=1)
        at_least(self, group, cold_users=0, warmup=0, weight_decay=0, checkpoint_seconds=0)
        at_most(self, group, cold_users=1, warmup=1)
        above_zero(self, group, "learning_rate")


@dataclass(frozen=True)
class Stage3Config(TrainConfig):
    """How stage 3 is trained, and what its soft tokens are made of."""

    embedding_learning_rate: float = 1e-4
    """Peak for embeddings and biases. AdamW moves every entry of a row by several times this each time the row is seen
    (its momentum goes on in later steps), however little the row says, and the entries of a table are small."""
    projection_learning_rate: float = 1e-4
    """Peak for the projections of collaborative and semantic vectors; `learning_rate` is that of the records'. A few
    thousand rows cannot steer half a million weights, and at a high rate these wander."""
    records: bool = True
    """Ours: add to the user and item token how much of their training ratings were likes, and how many there were."""
    facts: bool = True
    """Ours: add genres and year to the warm token."""
    fact_norm: float = 1.0
    """Mean norm at which projected facts start, in norms of a token embedding; records start at 1."""
    vector_norm: float = 0.25
    """Mean norm at which projected collaborative and semantic vectors start, in norms of a token embedding."""
    tokens: str = "user,item,warm"
    """The soft tokens that the prompt holds; a token that is left out takes its sentence with it."""
    projection: Literal["aligned", "random"] = "aligned"
    """"aligned" starts from stage 2's projection (paper), "random" from a fresh one."""
    order: Literal["together", "warm,user+item", "user+item,warm"] = "together"
    """"together" (paper), or one group of tokens after the other, the first one frozen then."""

    def check(self, group: str) -> None:
        super().check(group)
        at_least(self, group, embedding_learning_rate=0, projection_learning_rate=0)
        above_zero(self, group, "fact_norm", "vector_norm")
        if not {*self.token_names} <= {*TOKENS}:
            raise SellarecError(f"{group}tokens '{self.tokens}' is not known. Valid: some of {', '.join(TOKENS)}.")
        if self.order != "together" and {*self.token_names} != {*TOKENS}:
            raise SellarecError(f"{group}order '{self.order}' needs all of {group}tokens, not '{self.tokens}'.")

    @property
    def token_names(self) -> list[str]:
        return [name.strip() for name in self.tokens.split(",")]


@dataclass(frozen=True)
class FitConfig(Settings):
    """How a collaborative model is trained."""

    dim: int = 64
    """Length of user and item embeddings (paper d_C)."""
    loss: Literal["bce", "mse"] = "bce"
    """Cross-entropy, or the squared error (Eq. 6 with its sign corrected)."""
    learning_rate: float = 1e-3
    """Adam's step size."""
    weight_decay: float = 1e-4
    """Adam's coupled L2 on all parameters of the model."""
    batch: int = 2048
    """Rows per step."""
    epochs: int = 500
    """Passes over the training part, at most."""
    patience: int = 20
    """Stop after this many epochs without a better validation AUC."""

    def check(self, group: str) -> None:
        at_least(self, group, dim=1, batch=1, epochs=1, patience=1, weight_decay=0)
        above_zero(self, group, *(n for n in ("learning_rate", "init_std") if hasattr(self, n)))


@dataclass(frozen=True)
class CollabConfig(FitConfig):
    """Matrix factorisation and its alignment with the language model (stage 2)."""

    init_std: float = 0.1
    """Standard deviation of the initial embeddings."""
    bias: bool = True
    """User, item and global biases; the paper's model has none."""
    alignment: float = 1.0
    """Weight of the InfoNCE loss (paper lambda); 0 trains plain MF."""
    temperature: float = 0.2
    """InfoNCE temperature (paper tau)."""
    symmetric: bool = True
    """Align in both directions."""
    standardize: bool = late(True)
    """Ours: centre the semantic vectors and scale them to a mean norm of 1; without it they stay as the language model
    gave them, whose last hidden states share one large direction."""
    frozen_semantic: bool = False
    """Leave the semantic vectors as they were distilled, here and in stage 3 (paper: they are trained)."""
    without_contrast: float = late(0.0)
    """Ours: share of items, drawn at random, that InfoNCE does not see. On them an alignment shows what it learnt about
    other items than its own."""
    hold_out: bool = True
    """Ours: leave the rows on which stage 3 is trained out of stage 2. Vectors that have memorised a row's label teach
    stage 3 to trust them too much. Has no effect when stage 3 takes all rows (paper)."""

    def check(self, group: str) -> None:
        super().check(group)
        at_least(self, group, alignment=0)
        above_zero(self, group, "temperature")
        share(self, group, "without_contrast")


@dataclass(frozen=True)
class EvaluationConfig(Settings):
    """Which rows are scored, and how."""

    test_rows: int | None = None
    """Score whole users up to about this many test rows; None scores all. Every system scores the same rows."""
    valid_rows: int | None = 500
    """Validation rows, drawn at random, on which the language-model stages are selected."""
    raw_yes: bool = False
    """Score and select with the raw Yes logit (CoLLM) instead of the log-odds of Yes against No."""

    def check(self, group: str) -> None:
        at_least(self, group, test_rows=1, valid_rows=1)


@dataclass(frozen=True)
class AnalysisConfig(Settings):
    """How much the analyses look at."""

    attention_rows: int = 48
    """Test rows, drawn at random, over which attention and the effects of interventions are averaged."""
    step0_rows: int = 1500
    """Warm test rows, of whole users, that are scored before stage 3 has learnt anything."""

    def check(self, group: str) -> None:
        at_least(self, group, attention_rows=1, step0_rows=1)
