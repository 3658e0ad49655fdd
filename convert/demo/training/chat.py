"""Synthetic tool-call conversations, drawn without end from the tables in tools.json.

Every tool is offered under varying names, descriptions and parameter names, so the model has to read the schema in
its prompt; every value is drawn afresh, so it has to copy. One tool in four is made up from a verb and a noun.
Values are split by hash into those seen in training and those kept for evaluation.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TABLES: dict[str, Any] = json.loads((HERE / "tools.json").read_text())
Slot = tuple[str, Any]
ONSETS = "b br c ch d dr f g gr h j k kl l m n p pr qu r s sh st t tr v w z".split()
VOWELS = "a e i o u ai ea ou".split()
CODAS = ["", "", "n", "r", "l", "s", "m", "nd", "rt", "x", "ck", "th"]
TYPES = {"int": "integer", "float": "number", "money": "number", "flag": "boolean", "userobj": "object"}
TYPES |= {"address": "object", "size": "object", "people": "array", "words": "array", "foods": "array"}
TYPES |= {"paths": "array", "ints": "array"}
ITEMS = {"ints": "integer"}
FIELDS = {
    "userobj": {"name": "string", "age": "integer", "email": "string"},
    "address": {"street": "string", "city": "string", "zip": "string"},
    "size": {"width": "integer", "height": "integer"},
}


def table(name: str) -> list[str]:
    """One of the word lists of tools.json; lists of phrases are separated by bars."""
    text = TABLES[name]
    return text.split("|") if "|" in text else text.split()


def held_out(text: str) -> bool:
    """Whether a list entry is kept for evaluation (about one in seven)."""
    return zlib.crc32(text.encode()) % 7 == 0


class Values:
    """Draws slot values: each draw is the text a user would write and the JSON value it stands for."""

    def __init__(self, rng: random.Random, words: list[str], evaluation: bool = False) -> None:
        self.rng = rng
        self.words = [w for w in words if held_out(w) == evaluation]
        lists = {name: table(name) for name, text in TABLES.items() if isinstance(text, str)}
        lists["cities"] += lists.pop("long_cities")
        split = ("cities", "names", "surnames", "things", "foods")
        self.lists = {n: [x for x in v if n not in split or held_out(x) == evaluation] for n, v in lists.items()}

    def pick(self, name: str) -> str:
        return self.rng.choice(self.lists[name])

    def fake(self) -> str:
        """A pronounceable word that is in no dictionary."""
        r = self.rng
        return "".join(r.choice(ONSETS) + r.choice(VOWELS) + r.choice(CODAS) for _ in range(r.randint(2, 3)))

    def word(self) -> str:
        return self.fake() if self.rng.random() < 0.2 else self.rng.choice(self.words)

    def phrase(self, low: int = 2, high: int = 6) -> str:
        return " ".join(self.word() for _ in range(self.rng.randint(low, high)))

    def digits(self, count: int) -> str:
        return "".join(self.rng.choice("0123456789") for _ in range(count))

    def name(self, known: str) -> str:
        return self.fake().capitalize() if self.rng.random() < 0.35 else self.pick(known)

    def several(self, kind: str, low: int, high: int, joiner: str = " and ") -> Slot:
        """A list in the user's words ("a, b and c") and as JSON."""
        items = [self.draw(kind) for _ in range(self.rng.randint(low, high))]
        texts = [text for text, _ in items]
        head = ", ".join(texts[:-1])
        return (head + joiner if head else "") + texts[-1], [value for _, value in items]

    def draw(self, kind: str) -> Slot:
        """One value of a kind such as city, int:1:9, enum:a:b or flag:yes:no."""
        base, *args = kind.split(":")
        if base == "int":
            value = self.rng.randint(int(args[0]), int(args[1]))
            return str(value), value
        if base == "float":
            number = round(self.rng.uniform(float(args[0]), float(args[1])), int(args[2]))
            return str(number), number
        if base == "money":
            number = round(10 ** self.rng.uniform(0, 4), 2)
            amount = int(number) if self.rng.random() < 0.5 else number
            return str(amount), amount
        if base == "enum":
            choice = self.rng.choice(args)
            return choice, choice
        if base == "flag":
            yes = self.rng.random() < 0.5
            return args[0 if yes else 1], yes
        if base == "true":
            return "true", True
        made = getattr(self, "kind_" + base)()
        return made if isinstance(made, tuple) else (made, made)

    def kind_city(self) -> str:
        return self.name("cities")

    def kind_person(self) -> str:
        return self.name("names")

    def kind_fullname(self) -> str:
        return f"{self.name('names')} {self.name('surnames')}"

    def kind_email(self) -> str:
        user = self.name("names").lower() + self.rng.choice(["", "." + self.word(), self.digits(2), "_" + self.word()])
        return f"{user}@{self.word()}.{self.rng.choice(['com', 'org', 'net', 'de', 'io'])}"

    def kind_phone(self) -> str:
        d = self.digits
        shapes = (f"+{d(2)} {d(3)} {d(6)}", f"{d(3)}-{d(4)}", f"0{d(2)} {d(7)}", f"{d(3)}-{d(3)}-{d(4)}", d(8))
        return self.rng.choice(shapes)

    def kind_currency(self) -> str:
        return self.pick("currencies")

    def kind_thing(self) -> str:
        return self.pick("things") if self.rng.random() < 0.4 else self.phrase(1, 3)

    def kind_date(self) -> str:
        r = self.rng
        return f"{r.randint(2023, 2031)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}"

    def kind_time(self) -> str:
        return f"{self.rng.randint(0, 23):02d}:{self.rng.randint(0, 59):02d}"

    def kind_day(self) -> Slot:
        day = self.pick("days")
        return day, day.removeprefix("on ")

    def kind_people(self) -> Slot:
        return self.several("person", 1, 4)

    def kind_words(self) -> Slot:
        return self.several("word", 1, 4)

    def kind_foods(self) -> Slot:
        return self.several("food", 1, 3)

    def kind_food(self) -> str:
        return self.pick("foods")

    def kind_paths(self) -> Slot:
        return self.several("path", 1, 3)

    def kind_ints(self) -> Slot:
        return self.several("int:0:999", 2, 6, self.rng.choice([" and ", ", "]))

    def kind_title(self) -> str:
        title = self.phrase(1, 5)
        return title.title() if self.rng.random() < 0.5 else title.capitalize()

    def kind_phrase(self) -> str:
        return self.phrase()

    def kind_sentence(self) -> str:
        return self.phrase(3, 10).capitalize() + self.rng.choice([".", "!", ""])

    def kind_word(self) -> str:
        return self.word()

    def kind_fake(self) -> str:
        return " ".join(self.fake() for _ in range(self.rng.randint(1, 4)))

    def kind_glob(self) -> str:
        return self.rng.choice([f"*.{self.pick('extensions')}", f"{self.word()}*", self.word(), f"*{self.word()}*"])

    def kind_dir(self) -> str:
        parts = [self.word() for _ in range(self.rng.randint(1, 3))]
        return self.rng.choice(["/", "", "~/", "./", "/home/", "/var/"]) + "/".join(parts)

    def kind_path(self) -> str:
        stem = self.word() + self.rng.choice(["", "_" + self.word(), "-" + self.word(), self.digits(1)])
        return self.rng.choice(["", self.kind_dir() + "/"]) + f"{stem}.{self.pick('extensions')}"

    def kind_url(self) -> str:
        host = self.rng.choice(["www.", "", "docs."]) + self.word() + self.rng.choice([".com", ".org", ".net", ".io"])
        return f"http{self.rng.choice(['s', ''])}://{host}" + "".join(
            "/" + self.word() for _ in range(self.rng.randint(0, 3))
        )

    def kind_command(self) -> str:
        fields = {"d": self.kind_dir(), "p": self.kind_path(), "w": self.word(), "w2": self.word()}
        return self.pick("commands").format(**fields, i=self.rng.randint(1, 99))

    def kind_expr(self) -> str:
        r = self.rng
        parts = [str(r.randint(0, 10 ** r.randint(1, 4)))]
        for _ in range(r.randint(1, 3)):
            parts += [r.choice("+-*/"), str(r.randint(1, 10 ** r.randint(1, 3)))]
        if len(parts) > 3 and r.random() < 0.4:
            parts[2], parts[4] = "(" + parts[2], parts[4] + ")"
        return " ".join(parts)

    def kind_lang(self) -> str:
        return self.pick("languages")

    def kind_ticker(self) -> str:
        return "".join(self.rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(self.rng.randint(2, 5)))

    def kind_code(self) -> str:
        shape = self.rng.choice([(2, 4), (3, 3), (1, 6), (0, 7)])
        letters = "".join(self.rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(shape[0]))
        return letters + self.rng.choice(["-", ""]) * bool(letters) + self.digits(shape[1])

    def kind_sha(self) -> str:
        return "".join(self.rng.choice("0123456789abcdef") for _ in range(7))

    def kind_hex(self) -> str:
        return "#" + "".join(self.rng.choice("0123456789abcdef") for _ in range(6))

    def kind_room(self) -> str:
        return self.pick("rooms")

    def kind_unit(self) -> str:
        return self.pick("units")

    def kind_sql(self) -> str:
        name, column = self.word(), self.word()
        ends = (f" WHERE {self.word()} = {self.rng.randint(0, 999)}", f" ORDER BY {self.word()}", "")
        return f"SELECT {self.rng.choice([column, '*', 'COUNT(*)'])} FROM {name}{self.rng.choice(ends)}"

    def kind_userobj(self) -> Slot:
        name, age, mail = self.kind_fullname(), self.rng.randint(18, 90), self.kind_email()
        return f"named {name}, age {age}, email {mail}", {"name": name, "age": age, "email": mail}

    def kind_address(self) -> Slot:
        street = f"{self.rng.randint(1, 250)} {self.name('surnames')} {self.rng.choice(['Street', 'Road', 'Lane'])}"
        city, code = self.kind_city(), self.digits(5)
        return f"{street}, {city}, {code}", {"street": street, "city": city, "zip": code}

    def kind_size(self) -> Slot:
        width, height = self.rng.randint(16, 4000), self.rng.randint(16, 4000)
        return f"{width} by {height}{self.rng.choice(['', ' pixels'])}", {"width": width, "height": height}


class Tool:
    """One tool as offered in one conversation: its schema and a way to ask for it."""

    def __init__(self, entry: dict[str, Any], rng: random.Random) -> None:
        self.entry, self.rng = entry, rng
        usual = rng.random() < 0.4
        first = (lambda options: options[0]) if usual else rng.choice
        self.name = first(entry["names"])
        taken: set[str] = set()
        self.params: dict[str, dict[str, Any]] = {}
        for key, spec in entry["params"].items():
            name = next(n for n in (first(spec["as"]), *spec["as"]) if n not in taken)
            taken.add(name)
            self.params[key] = {"name": name, **spec}
        self.schema = self._schema(first(entry["descriptions"]), rng.random() < 0.3)

    def _schema(self, description: str, explain: bool) -> dict[str, Any]:
        properties = {p["name"]: self._property(p, explain) for p in self.params.values()}
        required = [p["name"] for p in self.params.values() if p.get("required")]
        parameters = {"type": "object", "properties": properties, "required": required}
        function = {"name": self.name, "description": description, "parameters": parameters}
        return {"type": "function", "function": function}

    def _property(self, param: dict[str, Any], explain: bool) -> dict[str, Any]:
        base, *args = param["kind"].split(":")
        schema: dict[str, Any] = {"type": TYPES.get(base, "string")}
        if explain:
            schema["description"] = "The " + param["name"].replace("_", " ")
        if base == "enum":
            schema["enum"] = args
        if schema["type"] == "array":
            schema["items"] = {"type": ITEMS.get(base, "string")}
        if base in FIELDS:
            schema["properties"] = {name: {"type": kind} for name, kind in FIELDS[base].items()}
        return schema

    def turn(self, values: Values, plain: bool = False) -> tuple[str, dict[str, Any], dict[str, Any], str]:
        """A question, the call it needs, the tool's result and the closing answer."""
        asks = self.entry["ask"]
        ask = self.rng.choice([a for a in asks if not plain or a[-1] in ".?"])
        used = [key for key in self.params if "{" + key + "}" in ask]
        drawn = {key: values.draw(self.params[key]["kind"]) for key in used}
        texts = {key: text for key, (text, _) in drawn.items()}
        question = ask.format(**texts)
        if not plain and not ask.endswith("}"):
            question = vary(question, self.rng)
        arguments = {self.params[key]["name"]: drawn[key][1] for key in used}
        results = {key: values.draw(kind) for key, kind in self.entry["result"].items()}
        result = {key: value for key, (_, value) in results.items()}
        texts |= {key: text for key, (text, _) in results.items()}
        replies = [r for r in self.entry["reply"] if all(f in texts for f in re.findall(r"{(\w+)}", r))]
        answer = self.rng.choice(replies or ["Done."]).format(**texts)
        return question, {"name": self.name, "arguments": arguments}, result, answer[:1].upper() + answer[1:]


def vary(question: str, rng: random.Random) -> str:
    """Small differences of manner: a greeting, a please, a missing full stop."""
    draw = rng.random()
    if draw < 0.12:
        start = ["Hi! ", "Please help: ", "Hey, ", "Could you help me? ", "Next: ", "OK. "]
        return rng.choice(start) + question
    if draw < 0.2:
        return question + rng.choice([" Thanks.", " Thank you!", " It is urgent."])
    if draw < 0.26 and question[-1] in ".?":
        return question[:-1]
    if draw < 0.3 and question[1:2].islower():
        return question[0].lower() + question[1:]
    return question


def made_up(rng: random.Random) -> dict[str, Any]:
    """A tool entry put together from a verb, a noun and one to three generic parameters."""
    verb, noun = rng.choice(TABLES["verbs"]), rng.choice(TABLES["nouns"])
    kinds = rng.sample(list(TABLES["generic"]), rng.randint(1, 3))
    params: dict[str, Any] = {}
    for kind in kinds:
        name = rng.choice(TABLES["generic"][kind])
        params.setdefault(name, {"as": [name], "kind": kind, "required": rng.random() < 0.6})
    parts = [f"{rng.choice(['', 'the '])}{name.replace('_', ' ')} {{{name}}}" for name in params]
    ask = [
        f"{verb.capitalize()} the {noun} with {' and '.join(parts)}.",
        f"{verb.capitalize()} a {noun}, {', '.join(parts)}.",
    ]
    ask.append(f"I want to {verb} the {noun}: {', '.join(parts)}.")
    name = rng.choice([f"{verb}_{noun}", f"{noun}_{verb}", f"{verb}{noun.capitalize()}"])
    description = rng.choice([f"{verb.capitalize()} a {noun}", f"{verb.capitalize()} the {noun} given"])
    reply = [f"The {noun} request is done.", f"I used the {verb} tool on the {noun}."]
    return {
        "names": [name],
        "descriptions": [description],
        "params": params,
        "ask": ask,
        "result": {"ok": "true"},
        "reply": reply,
    }


class Conversations:
    """An endless stream of conversations as (messages, tools)."""

    def __init__(self, seed: int, words: list[str], questions: list[tuple[str, str]], evaluation: bool = False) -> None:
        self.rng = random.Random(seed)
        self.values = Values(self.rng, words, evaluation)
        self.plain = [tuple(pair) for pair in TABLES["answers"]]
        self.questions = [q for q in questions if held_out(q[0]) == evaluation] or list(questions)

    def offer(self, count: int) -> list[Tool]:
        """Some tools with distinct names."""
        tools: dict[str, Tool] = {}
        while len(tools) < count:
            entry = made_up(self.rng) if self.rng.random() < 0.25 else self.rng.choice(TABLES["tools"])
            tool = Tool(entry, self.rng)
            if not any(t.entry is entry for t in tools.values()):
                tools.setdefault(tool.name, tool)
        return list(tools.values())

    def small_talk(self) -> tuple[str, str]:
        return self.rng.choice(self.plain if self.rng.random() < 0.6 or not self.questions else self.questions)

    def call_turn(self, tools: list[Tool]) -> list[dict[str, Any]]:
        """User, call, result, answer; now and then two calls at once."""
        count = 2 if self.rng.random() < 0.06 else 1
        turns = [self.rng.choice(tools).turn(self.values, plain=count > 1) for _ in range(count)]
        calls = [{"type": "function", "function": call} for _, call, _, _ in turns]
        joined = " ".join(question for question, _, _, _ in turns)
        messages = [{"role": "user", "content": joined}, {"role": "assistant", "content": "", "tool_calls": calls}]
        messages += [{"role": "tool", "content": json.dumps(result)} for _, _, result, _ in turns]
        return [*messages, {"role": "assistant", "content": " ".join(answer for *_, answer in turns)}]

    def refusal_turn(self, tools: list[Tool]) -> list[dict[str, Any]]:
        """A question for a tool that is not on offer."""
        offered = [tool.entry for tool in tools]
        entry = self.rng.choice([e for e in TABLES["tools"] if e not in offered])
        question = Tool(entry, self.rng).turn(self.values)[0]
        return [
            {"role": "user", "content": question},
            {"role": "assistant", "content": self.rng.choice(TABLES["refusals"])},
        ]

    def echo(self) -> tuple[str, str]:
        """An exercise in copying: something to repeat, or to write as a list in JSON."""
        if self.rng.random() < 0.4:
            text, items = self.values.several(self.rng.choice(["word", "city", "fullname", "path", "email"]), 2, 6)
            start = self.rng.choice(["Write as a JSON list: ", "Make a JSON list of ", "As JSON, please: "])
            return start + text, json.dumps(items)
        text = self.values.phrase(4, 16)
        form = self.rng.choice(['Repeat: "{}"', "Say {}", 'Please write "{}"', "Repeat after me: {}", 'Echo "{}".'])
        return form.format(text), text

    def talk_turn(self) -> list[dict[str, Any]]:
        question, answer = self.echo() if self.rng.random() < 0.5 else self.small_talk()
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def draw(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
        """One conversation of one to five turns."""
        rng = self.rng
        messages: list[dict[str, Any]] = []
        if rng.random() < 0.25:
            messages.append({"role": "system", "content": rng.choice(TABLES["systems"])})
        if rng.random() < 0.12:
            return messages + [m for _ in range(rng.randint(1, 4)) for m in self.talk_turn()], None
        tools = self.offer(rng.choice([1, 2, 3, 3, 3, 4, 4, 5, 6]))
        for _ in range(rng.choice([1, 2, 3, 4, 5])):
            draw = rng.random()
            if draw < 0.1:
                messages += self.talk_turn()
            elif draw < 0.16:
                messages += self.refusal_turn(tools)
            else:
                messages += self.call_turn(tools)
        return messages, [tool.schema for tool in tools]
