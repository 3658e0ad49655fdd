"""Chats as tool cases: NUL-separated documents become the JSON lines that `moe-pack quality --tools` reads.

Each assistant turn that calls a tool (or, after a user's turn, does not) is a case: the messages before it, the tools,
and the call it makes. A document counts only if rendering messages and tools with the model's own template gives its
text back, character for character, so a case's prompt is exactly what the model was trained on.

    python tests/extended/quality/cases.py CHECKPOINT CHATS OUT [MOST]
"""

import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moepack.runtime.template import ChatTemplate

TOOLS = re.compile(r"<tools>\n(.*?)</tools>", re.DOTALL)
TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n?", re.DOTALL)
CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)


def cases(document: str, template: ChatTemplate) -> Iterator[dict[str, Any]]:
    """The cases of one document; none if it is not a chat with tools that the template renders back."""
    turns = TURN.findall(document)
    listed = TOOLS.search(turns[0][1]) if turns and turns[0][0] == "system" else None
    if listed is None:
        return
    tools = [json.loads(line) for line in listed[1].splitlines()]
    messages = [message(role, content) for role, content in turns[1:]]
    if template.render(messages, tools=tools, add_generation_prompt=False).rstrip("\n") != document.rstrip("\n"):
        return
    for index, (before, answer) in enumerate(itertools.pairwise(messages), 1):
        if before["role"] == "user" and answer["role"] == "assistant":
            prompt = template.render(messages[:index], tools=tools)
            assert document.startswith(prompt)
            yield {"messages": messages[:index], "tools": tools, "expected": expected(answer)}


def message(role: str, content: str) -> dict[str, Any]:
    calls = [json.loads(text) for text in CALL.findall(content)] if role == "assistant" else []
    if not calls:
        return {"role": role, "content": content}
    return {"role": role, "content": "", "tool_calls": [{"type": "function", "function": call} for call in calls]}


def expected(answer: dict[str, Any]) -> dict[str, Any] | None:
    calls = [call["function"] for call in answer.get("tool_calls", ())]
    return calls[0] if len(calls) == 1 else None


def main(checkpoint: Path, chats: Path, out: Path, most: int = sys.maxsize) -> None:
    template = ChatTemplate({"default": (checkpoint / "chat_template.jinja").read_text()}, {}, str(checkpoint))
    documents = chats.read_text().split("\0")
    found = [case for document in documents for case in cases(document, template)][:most]
    out.write_text("".join(json.dumps(case) + "\n" for case in found))
    abstentions = sum(case["expected"] is None for case in found)
    print(f"{len(found)} cases of {len(documents)} documents, {abstentions} of them abstentions")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:]))
