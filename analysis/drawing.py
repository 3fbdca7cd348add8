"""Figures of the repository: where each comes from, and a summary of what it shows, as numbers.

A test compares `drawn` with the committed summary: data and words, not pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

RESULTS = Path(__file__).parent / "results"
COMPUTE = "training compute C (FLOPs)"  # the axis label
METHODS = {"nuts": "NUTS", "laplace": "Laplace's approximation"}
DIGITS = 5


@dataclass(frozen=True)
class Drawing:
    """A figure, and the command that wrote the tables it is drawn from."""

    draw: Callable[[], Figure]
    source: str


def drawn(figure: Figure) -> list[dict]:
    """For each panel, its words, and five numbers each for its lines, areas and bars.

    The numbers: how many artists, how many points, and the means of x, y and y^2.
    """
    return [_panel(ax) for ax in figure.axes if ax.get_visible()]


def _panel(ax: Axes) -> dict:
    key = ax.get_legend()
    words = [ax.get_title(loc="left"), ax.get_xlabel(), ax.get_ylabel()]
    words += [text.get_text() for text in [*ax.texts, *(key.get_texts() if key else [])]]
    words += [label.get_text() for label in ax.get_yticklabels()] if _named(ax) else []
    marks = {
        "lines": [np.asarray(line.get_xydata(), float) for line in ax.lines],
        "areas": [path.vertices for c in ax.collections for path in c.get_paths()],
        "bars": [_box(patch) for patch in ax.patches],
    }
    return {"words": [w for w in words if w]} | {k: _where(v) for k, v in marks.items() if v}


def _box(patch: Patch) -> NDArray:
    """Corners of a bar or a shaded span, in data coordinates."""
    return patch.get_path().transformed(patch.get_patch_transform()).get_extents().get_points()


def _named(ax: Axes) -> bool:
    """Whether the rows of the panel have names."""
    return any(text.get_text().strip("−-.0123456789 %") for text in ax.get_yticklabels())


def _where(parts: Iterable[NDArray]) -> list[float]:
    parts = list(parts)
    x, y = np.concatenate([part.reshape(-1, 2) for part in parts]).T
    means = [np.nanmean(v[np.isfinite(v)]) if len(v) else 0.0 for v in (x, y, y**2)]
    return [len(parts), len(x), *(float(f"{m:.{DIGITS}g}") for m in means)]
