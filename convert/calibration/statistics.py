"""The statistics of one layer, as the packer asks for them."""

from collections.abc import Mapping
from dataclasses import dataclass

from ...quantize.calibration import Halves, InputStatistics, Moments, input_statistics
from .sections import FIT, GROUPS, HELD_OUT, INPUT, Arrays


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """What is known of a layer's experts. `tokens` are how many the pool of gate's and up's inputs is of."""

    tokens: tuple[int, int]
    arrays: Arrays

    def of(self, expert: int, own: Arrays, *, hessians: bool) -> Mapping[str, InputStatistics]:
        """By projection, what a quantizer needs to know; gate and up share theirs.

        `own` are the arrays of the expert's own section, none if there is no such section.
        """
        by_group = {
            group: input_statistics(self._own(group, expert, own), self._pool(group), hessians=hessians)
            for group in dict.fromkeys(GROUPS.values())
        }
        return {projection: by_group[group] for projection, group in GROUPS.items()}

    def _own(self, group: str, expert: int, own: Arrays) -> Halves:
        visits, diagonals = self.arrays["visits"], self.arrays[f"{group}.diagonals"]
        correlations = own.get(f"{group}.correlations")
        fit, held_out = (
            Moments(
                int(visits[half, expert]), diagonals[half, expert], None if correlations is None else correlations[half]
            )
            for half in (FIT, HELD_OUT)
        )
        return Halves(fit, held_out)

    def _pool(self, group: str) -> Halves:
        visits = self.arrays["visits"].sum(axis=1).tolist()
        counts = self.tokens if group == INPUT else visits
        diagonal, correlations = self.arrays[f"{group}.pool.diagonal"], self.arrays[f"{group}.pool.correlations"]
        fit, held_out = (Moments(counts[half], diagonal[half], correlations[half]) for half in (FIT, HELD_OUT))
        return Halves(fit, held_out)
