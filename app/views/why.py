"""What the answer looks at, and what it depends on."""

import textwrap

import pandas as pd
import streamlit as st
from shared import attention_of, choose_case, current_work, effects_of, needs, show

from sellarec import figures
from sellarec.analysis.attention import grouped

work = current_work()
st.title("Why")
needs(work, "sella")
case = choose_case(work)
st.write(
    "Attention describes where the model looks; it does not explain the answer. Leaving a part out tests whether the "
    "answer depends on it."
)
effects = effects_of(work, case)
shorter = effects.index.map(lambda change: textwrap.shorten(change, 42, placeholder=" …"))
effects = effects.set_axis(shorter) if shorter.is_unique else effects
show(figures.effects_figure(effects, "delta", "What the answer depends on", "each part left out or swapped, alone"))

attention = attention_of(work, case)
lines = [
    {"layer": n, "segment": segment, "share": share}
    for segment, shares in grouped(attention.by_segment()).items()
    for n, share in enumerate(shares.tolist(), start=1)
]
show(figures.attention_layers_figure(pd.DataFrame(lines)))
a, b = st.columns(2)
layer = 1
if attention.layers > 1:
    layer = a.slider("layer", 1, attention.layers, attention.layers, key="layer", bind="query-params")
heads = attention.weights.shape[1]
head = b.selectbox("head", ["mean", *range(1, heads + 1)])
chosen = attention.layer(layer) if head == "mean" else attention.weights[layer - 1, head - 1]
show(
    figures.attention_map_figure(attention.tokens, attention.segments, {f"layer {layer}, head {head}": chosen}),
)
