"""What a system is, and the workspace in which systems find data, backbone and each other's results."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sellarec.backbone.language_model import LanguageModel, open_language_model
from sellarec.backbone.loading import choose_placement, identity
from sellarec.backbone.lora import merge_lora
from sellarec.config import change_config, words_of
from sellarec.data.dataset import Dataset, sample_rows, sample_users
from sellarec.data.open import open_dataset
from sellarec.distributed import agreed, is_main, wait, world
from sellarec.errors import NotComputed, SellarecError
from sellarec.evaluation import metrics
from sellarec.runs import FITTED, Run, RunKey, ensure_run, folder_name, is_begun, is_there, last_failure
from sellarec.settings import Config

NO_LLM = "no-llm"
"""Where the run store has the runs of systems without a backbone."""


@dataclasses.dataclass(frozen=True)
class System:
    """One row of the tables, or a step that rows grow from.

    Attributes:
        name, label: For the command line and folders; for tables and figures.
        settings: The part of the configuration that decides this system's result. All else may change without a
            new run.
        fit: Trains and writes what `score` needs into the run. What takes longer than minutes goes on from what an
            interrupted try left there.
        score: Probabilities of a like, in [0, 1], for dataset row ids (n,). None for steps without scores.
        needs: Systems whose runs this one grows from.
        uses_backbone: False keeps the language model out of the run's place and key.
        version: Raised when the same settings come to give another result; part of the key from 2 on.
        uses_seed: False for systems without randomness; they have one run whatever the seed.
        changes: Settings by dotted name under which this system and all that it needs are computed: a variant of
            another system is that system with another name and some changes.
    """

    name: str
    label: str
    settings: Callable[[Config], dict[str, Any]]
    fit: Callable[[Workspace, Run], None]
    score: Callable[[Workspace, Run, np.ndarray], np.ndarray] | None = None
    needs: tuple[str, ...] = ()
    uses_backbone: bool = False
    version: int = 1
    uses_seed: bool = True
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Workspace:
    """One configuration at work: opens what is there, brings about what is missing.

    Example:
        >>> work = Workspace(make_config("quick", "ml-100k"))
        >>> work.run("sella").metrics["test"]["all"]["auc"]
    """

    def __init__(self, config: Config, root: str | Path = "runs", *, computes: bool = True) -> None:
        """
        Args:
            root: The run store.
            computes: False makes a missing run an error instead.
        """
        self.config = config
        self.root = Path(root)
        self.computes = computes
        self._runs: dict[str, Run] = {}
        self._opened: dict[str, Run] = {}  # by key; variants share it, so that no file is hashed twice
        self._parent: Workspace | None = None

    @cached_property
    def dataset(self) -> Dataset:
        parent = self._parent
        if parent and (parent.config.dataset, parent.config.data) == (self.config.dataset, self.config.data):
            return parent.dataset
        return open_dataset(self.config.dataset, self.config.data)

    def part(self, split: str) -> pd.DataFrame:
        """The rows of a split that this configuration scores: the same for every system and seed."""
        rows, chosen = self.dataset.part(split), self.config.evaluation
        if split == "test":
            return sample_users(rows, chosen.test_rows, seed=0)
        return sample_rows(rows, chosen.valid_rows, seed=0) if split == "valid" else rows

    @cached_property
    def base_model(self) -> LanguageModel:
        """The untuned backbone in its working dtype."""
        parent, decides = self._parent, ("backbone", "dtype", "split")
        if parent and all(getattr(parent.config, name) == getattr(self.config, name) for name in decides):
            return parent.base_model
        lm = self.fresh_model()
        return lm.with_model(lm.placement.cast(lm.model))

    def fresh_model(self) -> LanguageModel:
        """A new copy of the backbone, for training or merging."""
        return open_language_model(self.config.backbone, self.config.dtype, split=self.config.split)

    @cached_property
    def tuned_model(self) -> LanguageModel:
        """The backbone with the stage-1 adapter merged; frozen."""
        parent, stage1 = self._parent, _find("tallrec")
        if not self.config.lora.rank:
            return self.base_model
        if parent and parent.key(stage1).digest == self.key(stage1).digest:
            return parent.tuned_model
        return merge_lora(self.fresh_model(), self.with_weights("tallrec").weights("adapter"))

    def run(self, name: str) -> Run:
        """The finished run of a system; it and what it needs are computed if they are missing."""
        return self.run_of(_find(name))

    def with_weights(self, name: str) -> Run:
        """As `run`, with the run's weights: one that was published without them is computed again in its place, and how
        far its scores then are from the published ones is said.
        """
        run, system = self.run(name), _find(name)
        if not run.has_weights:
            published = run.scores["score"] if system.score else None  # read before it is replaced
            run = self._runs[name] = self._ensure(system, weights=True)
            if published is not None and is_main():
                gap = (run.scores["score"] - published).abs()
                print(
                    f"{system.label} was computed again: its scores are {gap.mean():.4f} from the published ones on "
                    f"average, {gap.max():.4f} at most.",
                    flush=True,
                )
        return run

    def run_of(self, system: System) -> Run:
        """As `run`, also for a step that is not in the registry, such as an analysis."""
        if system.name not in self._runs:
            self._runs[system.name] = self._ensure(system)
        return self._runs[system.name]

    def _ensure(self, system: System, *, weights: bool = False) -> Run:
        variant, key = self.variant(system.changes), self.key(system)
        opened = self._opened.get(key.digest)
        if opened and (opened.has_weights or not weights):
            return opened
        if not self.computes and not is_there(self.root, key, weights=weights):
            if weights:
                way = f"Compute them with: {self.command('run', system.name, '--weights')}"
                raise NotComputed(f"{system.label} was published without its weights. {way}")
            raise NotComputed(f"{system.label} is not in the run store {self.root}. {self.way_to(system)}")
        for name in system.needs:
            variant.run(name)
        run = ensure_run(self.root, key, lambda run: variant._compute(system, run), weights=weights)
        self._opened[key.digest] = run
        return run

    def computed_since(self, name: str) -> list[str]:
        """What a system's run needs and did not grow from as it is now: runs that were computed again, and rounded
        otherwise. Nothing is known of older runs, nor of what is not in the store."""
        place, then = self.variant(_find(name).changes), self.run(name).config.get("grew_from", {})
        there = {need: made for need, made in then.items() if place.is_done(need)}
        return [need for need, made in there.items() if place.run(need).fingerprint != made]

    def way_to(self, system: System) -> str:
        """What to do about a run that is not in the store."""
        if dtype := self.other_format(system):
            return f'It is there in {dtype}: add --dtype {dtype}, in a notebook changes = {{"dtype": "{dtype}"}}.'
        how = ("run", system.name) if _is_registered(system) else ("report",)  # an analysis is a notebook's
        return f"To compute it: {self.command(*how)}"

    def other_format(self, system: System) -> str | None:
        """The number format in which a missing run is in the store: adopted ones may be in another than this machine
        would choose."""
        others = [d for d in ("bfloat16", "float32", "float16") if d != self.base_dtype] if system.uses_backbone else []
        return next((d for d in others if self.variant({"dtype": d}).has(system)), None)

    def command(self, *words: str) -> str:
        """A command line of `sellarec` for this workspace's settings and store, as one would type it."""
        store = () if self.root == Path("runs") else ("--runs", str(self.root))
        return shlex.join(["sellarec", *words, *words_of(self.config), *store])

    def test_scores(self, name: str) -> np.ndarray:
        """A system's probabilities of the scored test rows, in the order of `part("test")`, shape (n,)."""
        return self.run(name).scores.set_index("row")["score"].loc[self.part("test").index].to_numpy()

    def variant(self, changes: Mapping[str, Any]) -> Workspace:
        """The workspace under changed settings; it shares this one's dataset and language models where they agree."""
        if not changes:
            return self
        variant = Workspace(change_config(self.config, changes), self.root, computes=self.computes)
        variant._parent, variant._opened = self, self._opened
        return variant

    def is_done(self, name: str) -> bool:
        """Whether a system's run, and all that it needs, is in the store."""
        return self.has(_find(name))

    def has(self, system: System) -> bool:
        """As `is_done`, also for a step that is not in the registry."""
        key = self._key_if_valid(system)
        there = key is not None and key.folder(self.root).exists()
        return there and all(self.variant(system.changes).is_done(name) for name in system.needs)

    def key(self, system: System) -> RunKey:
        """The identity of a system's run under these settings; nothing is computed for it.

        Raises:
            SellarecError: the system, or one that it needs, refuses these settings.
        """
        place = self.variant(system.changes)
        shared: dict[str, Any] = {"data": place.config.data}
        if system.version > 1:
            shared["version"] = system.version
        if system.uses_backbone:
            shared["dtype"] = place.base_dtype
            if place.backbone_identity[1]:
                shared["weights"] = place.backbone_identity[1]
        if system.score:
            shared["evaluation"] = place.config.evaluation
        return RunKey(
            dataset=place.dataset.name,
            backbone=place.backbone_identity[0] if system.uses_backbone else NO_LLM,
            system=system.name,
            seed=place.config.seed if system.uses_seed else 0,
            settings=_as_dict(shared | system.settings(place.config)),
            data_hash=place.dataset.hash,
            upstream={name: place.key(_find(name)).digest for name in system.needs},
        )

    def _key_if_valid(self, system: System) -> RunKey | None:
        """A system's key; None if it refuses these settings: to compute it says why."""
        self.dataset.hash  # noqa: B018  errors of data and backbone are none of the system's own, and are raised here
        if system.uses_backbone:
            self.backbone_identity  # noqa: B018
        try:
            return self.key(system)
        except SellarecError:
            return None

    @property
    def places(self) -> list[Path]:
        """The folders of the run store that hold this dataset's runs under this backbone and without one."""
        return [
            self.root / folder_name(self.dataset.name) / folder_name(n) for n in (self.backbone_identity[0], NO_LLM)
        ]

    def seeds(self) -> list[int]:
        """Seeds of which the store has runs of this dataset, and this workspace's own."""
        named = (folder.name.split("-")[0] for place in self.places for folder in place.glob("*/*-*"))
        return sorted({self.config.seed, *(int(seed) for seed in named if seed.isdecimal())})

    @property
    def prefix_folder(self) -> Path:
        """Where keys and values of prompts' beginnings are kept."""
        return self.root / ".prefixes"

    @cached_property
    def backbone_identity(self) -> tuple[str, str | None]:
        """Name and fingerprint, see `identity`."""
        parent = self._parent
        same = parent and parent.config.backbone == self.config.backbone
        return parent.backbone_identity if same else identity(self.config.backbone)

    @cached_property
    def base_dtype(self) -> str:
        return choose_placement(self.config.dtype).number_format

    def failure(self, name: str) -> str | None:
        """Why the last try to compute a system failed; None if it did not."""
        key = self._key_if_valid(_find(name))
        return last_failure(self.root, key) if key else None

    def begun(self, name: str) -> list[str]:
        """Of a missing system and all that it needs, the ones whose computation was begun and is not finished."""
        system = _find(name)
        key = self._key_if_valid(system)
        if key is None:
            return []
        found = [n for need in system.needs for n in self.variant(system.changes).begun(need)]
        return [*dict.fromkeys(found), *([name] if is_begun(self.root, key) else [])]

    def _compute(self, system: System, run: Run) -> None:
        """Of several processes all take part where there is a language model; the others wait otherwise."""
        takes_part = is_main() or system.uses_backbone
        if is_main():
            together = f", {world()} processes" if world() > 1 and system.uses_backbone else ""
            print(f"[{self.dataset.name}] {system.label}{together}", flush=True)
            run.describe("grew_from", {name: self.run(name).fingerprint for name in system.needs})
        fitted = run.folder / FITTED
        if not agreed(fitted.exists()):
            if is_main():
                (run.folder / "log.jsonl").unlink(missing_ok=True)
            if takes_part:
                system.fit(self, run)
            wait()
            if is_main():
                fitted.touch()
        run.clear_scratch()
        scored = agreed((run.folder / "metrics.json").exists())
        if system.score and takes_part and not scored:
            self._score(system, run)
        wait()

    def _score(self, system: System, run: Run) -> None:
        """Write the per-row scores of the validation and test rows, and the metrics made of them."""
        parts = {split: self.part(split) for split in ("valid", "test")}
        rows = pd.concat(parts.values())
        score = system.score(self, run, rows.index.to_numpy())
        rows = rows[["split", "user", "item", "label", "warm"]].assign(score=score)
        run.save_table("scores", rows.rename_axis("row").reset_index())
        by_split = {split: metrics(part, rows.loc[part.index, "score"].to_numpy()) for split, part in parts.items()}
        run.write_json("metrics", by_split)


def _find(name: str) -> System:
    from sellarec.systems.registry import find_system  # late: the registry imports every system, and these this module

    return find_system(name)


def _is_registered(system: System) -> bool:
    from sellarec.systems.registry import SYSTEMS  # late, as above

    return SYSTEMS.get(system.name) is system


def _as_dict(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as a key holds them. One that was added later is left out at its default, so that older runs keep their
    keys; one that changes no result, `idle`, counts as its default."""
    return {k: _values(v) if dataclasses.is_dataclass(v) else v for k, v in settings.items()}


def _values(settings: Any) -> dict[str, Any]:
    late, idle = (
        {f.name: f.default for f in dataclasses.fields(settings) if f.metadata.get(kind)} for kind in ("late", "idle")
    )
    return {k: v for k, v in (dataclasses.asdict(settings) | idle).items() if k not in late or v != late[k]}
