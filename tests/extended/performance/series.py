"""Figures of `make bench`, kept as JSON from run to run: what was measured of whom, round by round."""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Series:
    """One contender in one case: a value for each round, in turn with the others', and what else was seen."""

    case: str
    side: str
    values: list[float]
    seen: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return median(self.values)


def keep(path: Path, series: Iterable[Series], code: str) -> None:
    """Write one part's series in place of what was kept of it before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {"measured": time.strftime("%Y-%m-%d"), "code": code, "series": [asdict(each) for each in series]}
    path.write_text(json.dumps(kept, indent=1))


def kept(path: Path) -> list[Series]:
    """What was kept of a part; nothing if it was never measured."""
    return [Series(**each) for each in json.loads(path.read_text())["series"]] if path.exists() else []
