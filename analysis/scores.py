"""Figure of `python -m experiments.calibration sets=all`: scores of every rule's forecasts.

Drawn from scores.csv by `python -m analysis.all only=scored`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.drawing import Drawing
from rlx.scaling.style import (
    COLORS,
    FAINT,
    SHADE,
    canvas,
    dot,
    key_below,
    log_ticks,
    percent_ticks,
    rows_axis,
)

LABELS = {  # the rules drawn; `chosen` differs from the posterior in five of 63 forecasts
    "posterior": "posterior with its doubt beyond the data",
    "curve": "posterior of the curve alone",
    "grid": "the paper's grid fit, ±0.02",
    "bootstrap": "bootstrap of least squares",
    "last": "last value, random walk",
    "line": "line in log C",
}
GROUPS = {  # as the figure calls them
    **{"default": "rlx: default study", "choices": "rlx: design choices"},
    **{"one at a time": "rlx: leave one out", "hard_mix": "rlx: hard_mix", "tasks": "rlx: tasks"},
    "Fig. 1a": "ScaleRL, Fig. 1a",
    "simulated well": "simulated sigmoid, three seeds",
    "simulated one_seed": "simulated sigmoid, one seed",
    "simulated short": "simulated sigmoid, short",
    "simulated weibull": "simulated Weibull",
}
BAND = (0.86, 0.94)  # of coverage
MARKERS = "os^vDx"


def draw(means: pd.DataFrame) -> Figure:
    """Coverage and interval score of the rules, a row per group of sets."""
    groups = list(dict.fromkeys(means["group"]))
    parts = [[g for g in groups if not g.startswith(("all ", "simulated "))]]
    parts += [[g for g in groups if g.startswith("simulated ")]]
    means_of = {"all measured": 0, "all simulated": 1}
    for name, part in means_of.items():
        parts[part] = [name, *parts[part]] if name in groups else parts[part]
    order = parts[0] + parts[1]
    y_N = -(np.arange(len(order)) + 0.6 * (np.arange(len(order)) >= len(parts[0])))
    figure = canvas(10, 0.34 * len(order) + 1.6)
    left, right = figure.subplots(1, 2, sharey=True)
    left.axvspan(*BAND, color=SHADE, linewidth=0, zorder=0)
    left.axvline(0.9, color=FAINT, linewidth=0.8, zorder=1)
    handles = []
    for i, rule in enumerate(LABELS):
        rows = means[means["rule"] == rule].set_index("group").reindex(order)
        style = {"linestyle": "none", "marker": MARKERS[i], "color": COLORS[i], "markersize": 4.5}
        for ax, score in ((left, "coverage"), (right, "interval")):
            ax.plot(rows[score], y_N + 0.09 * (2.5 - i), **style)
        handles.append(dot(COLORS[i], marker=MARKERS[i], label=LABELS[rule]))
    handles.append(Patch(color=SHADE, label="86 to 94 %"))
    right.set_xscale("log")
    log_ticks(right)
    for ax in (left, right):
        rows_axis(ax, y_N, [GROUPS.get(name, name.replace("_", " ")) for name in order])
    for text in left.get_yticklabels():
        text.set_fontweight("bold" if text.get_text().startswith("all ") else "normal")
    percent_ticks(left.xaxis)
    left.set_xlabel("later evaluations inside 90 % intervals", fontsize=9)
    right.set_xlabel("interval score (pass rate; lower is better)", fontsize=9)
    key_below(figure, handles)
    return figure


def figures(results: Path) -> dict[str, Drawing]:
    path = results / "scored" / "scores.csv"
    source = "scored/scores.csv, by python -m experiments.calibration sets=all"
    return {"scored/scores": Drawing(lambda: draw(pd.read_csv(path)), source)}
