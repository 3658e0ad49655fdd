"""What an answer is made of, in the order it is said. Joined texts are the same however the answer came in pieces."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Thinking:
    """Some of the reasoning, without its tags and the blanks around it."""

    text: str


@dataclass(frozen=True)
class Content:
    """Some of what is for the user."""

    text: str


@dataclass(frozen=True)
class CallBegan:
    """A call of the tool `name`; calls are counted from 0."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """Some of a call's arguments. Joined they are a JSON object if `CallEnded` follows, else the beginning of one."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnded:
    """The call is whole."""

    index: int


@dataclass(frozen=True)
class Malformed:
    """Markup that came to nothing: `text` is all of it, `index` the call that had begun, if any, `why` a reason.

    It is no content, since users should not see markup; and no whole call, since clients run those. What had been said
    of a call that began stays: OpenAI's own API gives the beginning of arguments, too, when an answer is cut.
    """

    index: int | None
    text: str
    why: str


Event = Thinking | Content | CallBegan | CallArguments | CallEnded | Malformed
