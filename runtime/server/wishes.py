"""What every protocol's request comes down to: a chat or a text, and how it is to be answered."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...manifests.errors import UsageError
from ..answers.constraint import Constraint
from ..answers.dialect import Calls, Thinking
from ..answers.grammar import Form
from ..answers.message import next_call
from ..generate import Limits
from ..penalties import Penalties
from ..sampling import Sampling

SEEDS = 2**64


class WishError(UsageError):
    """A wish that this pack cannot meet, because of what its `field` asks for."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field = field


@dataclass(frozen=True)
class Wish:
    """`sampling`: the settings that were given, by name. `max_tokens` None: as long as pack and context allow.

    `top_logprobs`: so many alternatives of each token are told, None for no logprobs. `choices`: so many answers, of
    which the `best` are told, all if that is None. `echo`: the prompt is said first. `nothing`: and no more than that.
    """

    sampling: Mapping[str, float | int] = field(default_factory=dict)
    max_tokens: int | None = None
    stops: Sequence[str] = ()
    top_logprobs: int | None = None
    penalties: Penalties = field(default_factory=Penalties)
    choices: int = 1
    best: int | None = None
    echo: bool = False
    nothing: bool = False


@dataclass(frozen=True)
class ChatWish:
    """A chat in OpenAI's form, as templates read it, and the form that its answer must have.

    `called` are the ids of its calls, also of those that no template can write.
    """

    messages: Sequence[Mapping[str, Any]]
    wish: Wish
    form: Form = field(default_factory=Form)
    variables: Mapping[str, Any] = field(default_factory=dict)
    called: Collection[str] = ()

    @property
    def first_call(self) -> int:
        """The number of the answer's first call."""
        return next_call(self.called)


@dataclass(frozen=True)
class Ask:
    """A wish that can be computed. `marks`: see serving.request; `first_call`: the number of the answer's first.

    `echo`: what is said before the answer; then logprobs are told of the prompt, too. `nothing`: there is no answer.
    """

    tokens: Sequence[int]
    sampling: Sampling
    limits: Limits
    marks: frozenset[int] = frozenset()
    calls: Calls | None = None
    thinking: Thinking = "never"
    tools: Sequence[Mapping[str, Any]] = ()
    constraint: Constraint | None = None
    top_logprobs: int | None = None
    penalties: Penalties = field(default_factory=Penalties)
    one_call: bool = False
    first_call: int = 0
    special: bool = False
    choices: int = 1
    best: int | None = None
    echo: str | None = None
    nothing: bool = False

    @property
    def scored(self) -> bool:
        """Whether the prompt's logprobs are told."""
        return self.echo is not None and self.top_logprobs is not None

    @property
    def likely(self) -> int | None:
        """So many alternatives of each token are computed, None for no likelihoods: the best are told by theirs."""
        return 0 if self.top_logprobs is None and self.best is not None else self.top_logprobs
