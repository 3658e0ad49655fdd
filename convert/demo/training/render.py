"""Renders conversations with chat_template.jinja, set up as transformers does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

_environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
_environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
_template = _environment.from_string((Path(__file__).resolve().parent / "chat_template.jinja").read_text())


def render(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, prompt: bool = False) -> str:
    """The text of a conversation; with prompt=True, up to where the assistant answers."""
    return _template.render(messages=messages, tools=tools, add_generation_prompt=prompt)
