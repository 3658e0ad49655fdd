"""All mutants. To add some: a file with a list MUTANTS, and its name here."""

from extended.mutants import choosing, codes, host, matmul, mixing, models, norms, rows
from extended.mutants.mutant import Mutant

ALL: list[Mutant] = [
    mutant for subject in (norms, codes, rows, matmul, mixing, choosing, host, models) for mutant in subject.MUTANTS
]
