"""How tables and figures mark what is no fair baseline."""

from __future__ import annotations

import pandas as pd

MARK = "†"

UNFAIR = f"{MARK} No fair baseline, as MovieLens-1M has shown."


def marked_labels(table: pd.DataFrame) -> list[str]:
    """The labels of a table of systems, with a † behind those that its `attrs["not_fair"]` names."""
    not_fair = table.attrs.get("not_fair", ())
    return [f"{label} {MARK}" if name in not_fair else label for label, name in table["system"].items()]
