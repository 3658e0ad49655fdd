"""One picture of an evaluation: the divergence that each layer's experts cause, and SQNR per projection and layer."""

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ...layout.atomic import replace
from ...layout.record import PROJECTIONS
from ...manifests.errors import UsageError
from .evaluation import Evaluation, WeightFacts

SUFFIXES = (".svg", ".png")
MARKERS = dict(zip(PROJECTIONS, ("o", "s", "^"), strict=True))


def check(path: Path) -> None:
    """Raise UsageError, before any work, if no picture can be drawn there."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path} is neither {' nor '.join(SUFFIXES)}; name the picture so")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a folder to write into; make it or choose another")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is there and is no file; name another for the picture")
    if not all(os.access(place, os.W_OK) for place in (path.parent, path) if place.exists()):
        raise UsageError(f"{path} may not be written by you; name another for the picture")
    _matplotlib()


def draw(evaluation: Evaluation, path: Path) -> None:
    """Write the picture; the same evaluation gives the same SVG."""
    library, figures = _matplotlib()
    with library.rc_context({"svg.hashsalt": "moepack", "font.size": 9}):
        figure = figures.Figure(figsize=(9, 6), layout="constrained")
        upper, lower = figure.subplots(2, sharex=True)
        for number, (where, facts) in enumerate(evaluation.weights.items()):
            _draw_layers(upper, facts, evaluation.names[where], f"C{number}")
            _draw_noise(lower, facts, evaluation.names[where], f"C{number}")
        upper.set(ylabel="KL of the text, nats", title="Only this layer's experts from the pack")
        lower.set(xlabel="layer", ylabel="SQNR, dB", title="Experts' weights against the reference")
        for axes in (upper, lower):
            axes.grid(alpha=0.3)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=7)
        _save(figure, path)


def _draw_layers(axes: Any, facts: WeightFacts, name: str, colour: str) -> None:
    if not facts.layers:
        return
    means, errors = ([getattr(layer, part) for layer in facts.layers] for part in ("mean", "error"))
    axes.errorbar(range(len(means)), means, yerr=errors, color=colour, marker="o", markersize=3, label=name)
    axes.set_ylim(bottom=0)


def _draw_noise(axes: Any, facts: WeightFacts, name: str, colour: str) -> None:
    if facts.noise is None:
        return
    found = np.where(np.isfinite(facts.noise.decibels()), facts.noise.decibels(), np.nan)
    for index, projection in enumerate(PROJECTIONS):
        marker = MARKERS[projection]
        axes.plot(found[:, index], color=colour, marker=marker, markersize=3, lw=0.8, label=f"{name}, {projection}")


def _save(figure: Any, path: Path) -> None:
    metadata, drawn = {"Date": None} if path.suffix == ".svg" else {}, BytesIO()
    figure.savefig(drawn, format=path.suffix[1:], dpi=150, metadata=metadata)
    replace(path, drawn.getbuffer())


def _matplotlib() -> tuple[Any, Any]:
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise UsageError("the picture needs matplotlib; install it with `pip install '.[quality]'`") from error
    return matplotlib, matplotlib.figure
