"""The statistics of one layer, as the packer asks for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...quantize.calibration import Halves, InputStatistics, Moments, input_statistics
from ...quantize.methods import CALIBRATED_METHODS
from .sections import FIT, GROUPS, HELD_OUT, INPUT, Arrays

BY_HESSIAN = ("gptq",)  # those of CALIBRATED_METHODS that need more than the importance of each input


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """What is known of a layer's experts; threads may share it.

    `tokens` are how many the pool of gate's and up's inputs is of; `own` reads what was kept of one expert alone.
    """

    tokens: tuple[int, int]
    arrays: Arrays
    own: Callable[[int], Arrays]

    def of(self, expert: int, methods: Mapping[str, str]) -> dict[str, InputStatistics]:
        """What each projection's method needs to know, by projection; those whose methods need nothing are left out.

        Gate and up share one object, since they see the same. Raises as `own` does.
        """
        wanted = {GROUPS[name]: False for name, method in methods.items() if method in CALIBRATED_METHODS}
        wanted |= {GROUPS[name]: True for name, method in methods.items() if method in BY_HESSIAN}
        own = self.own(expert) if any(wanted.values()) else {}
        found = {
            group: input_statistics(self._own(group, expert, own), self._pool(group), hessians=hessians)
            for group, hessians in wanted.items()
        }
        return {name: found[GROUPS[name]] for name, method in methods.items() if method in CALIBRATED_METHODS}

    def _own(self, group: str, expert: int, own: Arrays) -> Halves:
        correlations = own.get(f"{group}.correlations", (None, None))
        visits, diagonals = self.arrays["visits"], self.arrays[f"{group}.diagonals"]
        fit, held_out = (
            Moments(int(visits[half, expert]), diagonals[half, expert], correlations[half]) for half in (FIT, HELD_OUT)
        )
        return Halves(fit, held_out)

    def _pool(self, group: str) -> Halves:
        visits = self.arrays["visits"].sum(axis=1).tolist()
        counts = self.tokens if group == INPUT else visits
        diagonal, correlations = self.arrays[f"{group}.pool.diagonal"], self.arrays[f"{group}.pool.correlations"]
        fit, held_out = (Moments(counts[half], diagonal[half], correlations[half]) for half in (FIT, HELD_OUT))
        return Halves(fit, held_out)
