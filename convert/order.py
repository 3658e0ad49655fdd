"""Which recipe is wanted: by names, by a file, or by a size that the best recipe must fit."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..manifests.errors import UsageError
from ..manifests.progress import Progress
from ..quantize.methods import CALIBRATED_METHODS
from .calibration.file import CalibrationFile
from .calibration.matching import require_for_choosing, require_same
from .checkpoint import Checkpoint
from .choice import choose
from .plan import Packing, plan_pack, understand
from .recipe import DEFAULT_FORMAT, DEFAULT_METHOD, Recipe, checked_method, checked_trunk_format
from .recipefile import read_recipe
from .tensors import Source
from .wish import Choice, Wish

MOST_BITS = 16.0


@dataclass(frozen=True)
class Order:
    """What says what a pack shall be: options, None for those not given, and `locked`, a lock's recipe.

    `budget` is in bytes.

    Raises UsageError for options that contradict each other, for names that are none, and as `read_recipe` does.
    """

    expert_format: str | None = None
    method: str | None = None
    trunk: str | None = None
    recipe: Path | None = None
    bits: float | None = None
    budget: int | None = None
    locked: Recipe | None = None

    def __post_init__(self) -> None:
        self._require_compatible()
        _ = self.fixed
        checked_method(self._method)
        checked_trunk_format(self.trunk or "source")
        if self.bits is not None and not 0 < self.bits <= MOST_BITS:
            raise UsageError(f"{self.bits} is no number of bits per weight; write one such as 2.5")

    def plan(
        self, checkpoint: Checkpoint, calibration: CalibrationFile | None, *, jobs: int, progress: Progress
    ) -> tuple[Packing, Choice | None]:
        """The pack to be made of a checkpoint, and how its recipe was chosen if it was.

        Raises what `understand`, `settle` and `plan_pack` raise, and UsageError if the calibration is another model's
        or, before anything is read, if choosing needs one and there is none, or none of use.
        """
        if self.fixed is None:
            require_for_choosing(calibration, self._method)
        understood = understand(checkpoint)
        if calibration is not None:
            require_same(calibration, understood)
        recipe, choice = self.settle(understood, calibration, jobs=jobs, progress=progress)
        measured = calibration is not None and calibration.sensitivities is not None
        only_chose = choice is not None and measured and not recipe.calibrated  # the pack's bytes come without it
        return plan_pack(understood, recipe, None if only_chose else calibration), choice

    def settle(
        self, source: Source, calibration: CalibrationFile | None, *, jobs: int, progress: Progress
    ) -> tuple[Recipe, Choice | None]:
        """The recipe, and how it was chosen if it was.

        Raises UsageError as `choose` does, and naming the recipe file if it does not fit the model.
        """
        if self.fixed is not None:
            return self._fitting(self.fixed, source), None
        wish = Wish(self._method, self.bits, self.budget, self.trunk)
        known = calibration.sensitivities if calibration is not None else None
        named = calibration if wish.method in CALIBRATED_METHODS else None
        choice = choose(source, wish, known, jobs=jobs, progress=progress, calibration=named)
        return choice.recipe, choice

    @cached_property
    def fixed(self) -> Recipe | None:
        """The recipe that does not depend on the checkpoint; None if one is to be chosen."""
        if self.locked is not None:
            return self.locked
        if self.recipe is not None:
            return read_recipe(self.recipe)
        if self.bits is not None or self.budget is not None:
            return None
        names = (self.expert_format or DEFAULT_FORMAT.name, self._method, self.trunk or "source")
        return Recipe.parse(*names)

    @property
    def _method(self) -> str:
        return self.method or DEFAULT_METHOD

    def _fitting(self, recipe: Recipe, source: Source) -> Recipe:
        try:
            recipe.codings(source.model)
        except UsageError as error:
            if self.recipe is None:
                raise
            raise UsageError(f"{self.recipe}: {error}") from None
        return recipe

    def _require_compatible(self) -> None:
        ways: dict[str, object] = {"--expert-format": self.expert_format, "--recipe": self.recipe}
        ways |= {"--bits": self.bits, "--budget": self.budget, "--lock": self.locked}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise UsageError(f"{given[0]} and {given[1]} exclude each other; give one of them")
        within = {"--method": self.method, "--trunk": self.trunk}
        inside = [name for name, value in within.items() if value is not None]
        if (self.recipe is not None or self.locked is not None) and inside:
            what = "recipe file" if self.locked is None else "lock"
            raise UsageError(f"a {what} says what {inside[0]} says; leave one of them out")
