"""Tool calls of 2-bit packs, free and held to a grammar: how many parse, fit their schemas, are right.

The default recipe's pack of each subject answers 200 cases that one call answers, one by one. Ends with 1 unless every
answer of which a strict call was required, and that no limit cut, has calls that all parse and fit.

    python tests/extended/quality/calls.py [CASES]
"""

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from subjects import ROOT, Subject, subjects

from moepack.layout.reader import Pack
from moepack.runtime.answers.constraint import Grammars
from moepack.runtime.answers.dialect import Dialect
from moepack.runtime.answers.grammar import Form
from moepack.runtime.engine import Engine
from moepack.runtime.generate import Generation, Limits
from moepack.runtime.language import Language
from moepack.runtime.prompt import chat_tokens
from moepack.runtime.quality.toolcalls import CHECKS, Case, judge, read_cases
from moepack.runtime.sampling import Sampler, Sampling

PLACE = ROOT / "build" / "calls"
LONGEST = 256


@dataclass(frozen=True)
class Way:
    """A way to ask: `choice` None leaves the answer free. `proven`: whatever is not cut must parse and fit."""

    name: str
    choice: str | None
    temperature: float

    @property
    def proven(self) -> bool:
        return self.choice == "required"


WAYS = (
    Way("free, greedy", None, 0),
    Way("auto, strict, greedy", "auto", 0),
    Way("required, strict, greedy", "required", 0),
    Way("free, temperature 1.5", None, 1.5),
    Way("required, strict, temperature 1.5", "required", 1.5),
)


class Asker:
    """One pack, ready to be asked."""

    def __init__(self, engine: Engine, language: Language) -> None:
        self._engine, self._language, self._grammars = engine, language, Grammars(language.tokenizer)
        assert language.template is not None
        self._template = language.template
        self._calls = Dialect.of(language.template.source(with_tools=True)).calls

    def ask(self, case: Case, way: Way, seed: int) -> Counter[str]:
        """Which checks an answer passes, and whether a limit cut it."""
        tokenizer, held = self._language.tokenizer, None
        if way.choice is not None:
            form = Form(case.chat.tools or (), way.choice, strict=True)  # type: ignore[arg-type]
            held = self._grammars.constraint(form, self._calls, "never")
        limits = Limits(LONGEST, self._engine.context, tokenizer.end_tokens)
        prompt = chat_tokens(case.chat, self._template, tokenizer)
        sampler = Sampler(Sampling(temperature=way.temperature, seed=seed))
        stream = tokenizer.stream(special=True)
        generation = Generation(self._engine.new_session(), prompt, sampler, stream, limits, held)
        text = "".join(piece.text for piece in generation)
        passed = Counter({name: int(is_so) for name, is_so in judge(case, text).items()})
        return passed + Counter(cut=int(generation.result().finish == "length"))


def pack_of(subject: Subject) -> Path:
    """The subject packed by the default recipe, anew: other code may write another pack."""
    pack = PLACE / subject.name / "pack"
    shutil.rmtree(pack, ignore_errors=True)
    subprocess.run([Path(sys.executable).with_name("moe-pack"), "build", subject.checkpoint, pack], check=True)
    return pack


def measure(subject: Subject, count: int) -> bool:
    """Print a subject's table; whether what must hold holds."""
    cases = [case for case in read_cases(subject.tools) if case.expected is not None][:count]
    print(
        f"\n{subject.name}: {len(cases)} cases\n\n| answers | {' | '.join(CHECKS)} | cut |\n|---|---|---|---|---|---|"
    )
    path, held = pack_of(subject), True
    with Pack.open(path) as pack, Engine.of(pack) as engine:
        asker = Asker(engine, Language.of(pack))
        for way in WAYS:
            found = total(asker.ask(case, way, seed) for seed, case in enumerate(cases))
            rates = " | ".join(f"{100 * found[name] / len(cases):.1f} %" for name in CHECKS)
            print(f"| {way.name} | {rates} | {found['cut']} |", flush=True)
            held &= not way.proven or found["schema"] + found["cut"] >= len(cases)
    return held


def total(counts: Iterable[Counter[str]]) -> Counter[str]:
    """Their sum."""
    return sum(counts, Counter())


def main(count: int = 200) -> bool:
    """Measure every subject that is there."""
    results = [measure(subject, count) for subject in subjects(PLACE, 3 * count)]  # some cases have no call
    return all(results)


if __name__ == "__main__":
    sys.exit(0 if main(*map(int, sys.argv[1:])) else 1)
