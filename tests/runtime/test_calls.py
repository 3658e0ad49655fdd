"""A real 2-bit pack, at its wildest, held to tools drawn at random; `make calls` asks 200 cases of each model."""

import json
import random
from pathlib import Path
from typing import Any

import jsonschema

from moepack.layout.reader import Pack
from moepack.runtime.answers.constraint import Grammars
from moepack.runtime.answers.dialect import Dialect
from moepack.runtime.answers.grammar import Form
from moepack.runtime.answers.message import Assembly
from moepack.runtime.answers.reader import AnswerReader
from moepack.runtime.engine import Engine, EngineOptions
from moepack.runtime.generate import Generation, Limits
from moepack.runtime.language import Language
from moepack.runtime.prompt import Chat, chat_tokens
from moepack.runtime.sampling import Sampler, Sampling

KINDS: list[dict[str, Any]] = [
    {"type": "string", "maxLength": 12},
    {"type": "integer", "minimum": -9, "maximum": 999},
    {"type": "boolean"},
    {"enum": ["north", "south"]},
    {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
    {"anyOf": [{"type": "string", "maxLength": 4}, {"type": "null"}]},
]


def drawn_tool(draw: random.Random, name: str) -> dict[str, Any]:
    properties = {key: draw.choice(KINDS) for key in draw.sample(["city", "when", "how_many", "way"], 3)}
    required = draw.sample(sorted(properties), 2)
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "parameters": schema, "strict": True}}


def test_ten_conversations_at_temperature_1_5_have_only_calls_that_fit(pack: Path) -> None:
    draw, whole = random.Random(7), 0
    with Pack.open(pack) as opened, Engine.of(opened, EngineOptions(backend="cpu")) as engine:
        language = Language.of(opened)
        assert language.template is not None
        grammars, calls = Grammars(language.tokenizer), Dialect.of(language.template.source(with_tools=True)).calls
        for number in range(10):
            tools = [drawn_tool(draw, name) for name in draw.sample(["look_up", "send", "move", "count"], 2)]
            chat = Chat([{"role": "user", "content": "What is in Oslo tomorrow?"}], tools)
            held = grammars.constraint(Form(tools, "required"), calls, "never")
            sampler = Sampler(Sampling(temperature=1.5, seed=number))
            limits = Limits(400, engine.context, language.tokenizer.end_tokens)
            prompt = chat_tokens(chat, language.template, language.tokenizer)
            stream = language.tokenizer.stream(special=True)
            answer = Generation(engine.new_session(), prompt, sampler, stream, limits, held)
            reader, assembly = AnswerReader(calls, "never", tools), Assembly()
            for piece in answer:
                assembly.add(reader.push(piece.text))
            assembly.add(reader.finish())
            said, schemas = assembly.message(), {each["function"]["name"]: each["function"] for each in tools}
            assert answer.result().finish == "stop"
            assert said.calls
            assert said.content is None
            for call in said.calls:
                jsonschema.Draft202012Validator(schemas[call.name]["parameters"]).validate(json.loads(call.arguments))
                whole += call.whole
    assert whole >= 10
