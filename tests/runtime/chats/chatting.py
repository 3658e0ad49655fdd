"""A chat without a terminal: typed lines from a list, what was shown as texts, answers of the model or of a script."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moepack.layout.reader import Pack
from moepack.manifests.manifest import pack_digest
from moepack.runtime.chat.conversation import Conversation
from moepack.runtime.chat.keyboard import Keyboard
from moepack.runtime.chat.opening import reserving
from moepack.runtime.chat.partner import Partner, Settings
from moepack.runtime.chat.screen import Looks, Terminal
from moepack.runtime.chat.talk import Talk
from moepack.runtime.engine import Engine, EngineOptions
from moepack.runtime.language import Language
from moepack.runtime.sampling import Sampling
from moepack.runtime.sessions.identity import identity

GREEDY = Settings(Sampling(), 24)
OPTIONS = EngineOptions(threads=2, context=512, chunk=64)
THINKING = """
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.reasoning_content and loop.index0 > ns.last %}
{{- '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' }}
{%- endif %}
{{- m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""  # Qwen3.5's manner: earlier answers are rendered without their thinking
QUESTION = Path(__file__).parents[3] / "convert/demo/question.json"


class Typed:
    """A keyboard: lines, or what is raised instead of one; `prompts` are what it was asked with."""

    def __init__(self, *lines: str | BaseException) -> None:
        self._lines = iter(lines)
        self.prompts: list[str] = []

    def read(self, prompt: str, *, kept: bool = True) -> str:
        self.prompts.append(prompt)
        line = next(self._lines, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line


@dataclass
class Chatted:
    """A chat; `shown` is what was on the screen since the last time."""

    talk: Talk
    language: Language
    out: io.StringIO

    @property
    def roles(self) -> list[str]:
        return [entry.role for entry in self.talk.conversation.entries]

    @property
    def said(self) -> str:
        return self.talk.conversation.entries[-1].content or ""

    @property
    def computed(self) -> int:
        return self.talk.partner.recall.computed

    def shown(self) -> str:
        text = self.out.getvalue()
        self.out.seek(0)
        self.out.truncate()
        return text

    def type(self, *lines: str | BaseException) -> str:
        self.talk.keyboard = Typed(*lines)
        self.talk.run()
        return self.shown()

    def prompt(self) -> list[int]:
        """What the whole conversation is for the model, up to an answer."""
        template, chat = self.language.template, self.talk.conversation.chat()
        assert template is not None
        text = template.render(chat.messages, tools=chat.tools, variables=chat.variables)
        return self.language.tokenizer.encode(text, add_special_tokens=False)


@contextmanager
def chatted(
    pack: Path,
    settings: Settings = GREEDY,
    options: EngineOptions = OPTIONS,
    *,
    looks: Looks | None = None,
    keyboard: Keyboard | None = None,
    person: bool = True,
) -> Iterator[Chatted]:
    out = io.StringIO()
    with Pack.open(pack) as opened, Engine.of(opened, reserving(options, opened.model)) as engine:
        language, root = Language.of(opened), pack_digest(pack)
        screen = Terminal(out, looks or Looks(colours=False, lines=False))
        partner = Partner(engine, language, settings)
        talk = Talk(Conversation(), partner, keyboard or Typed(), screen, root, identity(root, engine), person)
        yield Chatted(talk, language, out)


def with_tools(chat: Chatted) -> None:
    """Let it have tools, and room to call them."""
    chat.talk.partner.settings = Settings(Sampling(), 100)
    chat.talk.conversation.tools = json.loads(QUESTION.read_text())["tools"]


CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
Script = Callable[..., None]
