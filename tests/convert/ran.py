"""What a run of the command line came to."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    def refused(self, code: int, *culprits: object) -> None:
        """It failed with this code and one sentence that names every culprit."""
        sentence = self.err.strip().splitlines()[-1]
        assert self.code == code, self.err
        assert sentence.startswith("error: ")
        assert self.err.count("error: ") == 1
        assert "Traceback" not in self.err
        for culprit in culprits:
            assert str(culprit) in sentence
