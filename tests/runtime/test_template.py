"""Chat templates against transformers' apply_chat_template, and against templates that mean harm."""

from pathlib import Path
from typing import Any

import pytest
from front import TRAINED, byte_level, needs_trained_model, small_files
from transformers import PreTrainedTokenizerFast

from moepack.convert.shipped import CHECKPOINT
from moepack.manifests.errors import CorruptInputError, MoepackError, UsageError
from moepack.runtime.template import BUILT_INS, ChatTemplate, _compile

TOKENS = {"bos_token": "<s>", "eos_token": "<|end|>", "pad_token": "<pad>"}

# A template in the style of current thinking and tool-calling models, written for this test.
QWEN_STYLE = """\
{%- macro shown(content) -%}
    {%- if content is string -%}{{- content -}}
    {%- elif content is iterable and content is not mapping -%}
        {%- for part in content -%}
            {%- if part.type == 'text' -%}{{- part.text -}}
            {%- else -%}{{- raise_exception('only text parts are understood, not ' ~ part.type) -}}{%- endif -%}
        {%- endfor -%}
    {%- elif content is none or content is undefined -%}
    {%- else -%}{{- raise_exception('unexpected content') -}}{%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last_query=-1, multi_step=true, calls=0) %}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- shown(messages[0].content) + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n<|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + shown(messages[0].content) + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == 'user' and not shown(message.content).startswith('<tool_response>') %}
        {%- set ns.multi_step = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- if ns.last_query < 0 %}{{- raise_exception('No user query found in messages.') }}{%- endif %}
{%- for message in messages %}
    {%- set content = shown(message.content) | trim %}
    {%- if message.role == 'system' %}
        {%- if not loop.first %}{{- raise_exception('System message must be at the beginning.') }}{%- endif %}
    {%- elif message.role == 'user' %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip() + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls and message.tool_calls is iterable %}
            {%- for call in message.tool_calls %}
                {%- if call.function is defined %}{%- set call = call.function %}{%- endif %}
                {%- set ns.calls = ns.calls + 1 %}
                {{- '\\n<tool_call>\\n<function=' ~ call.name ~ '>\\n' }}
                {%- for name, value in call.arguments | items %}
                    {{- '<parameter=' ~ name ~ '>\\n' }}
                    {%- set nested = value is mapping or value is sequence and value is not string %}
                    {{- value | tojson | safe if nested else value | string }}
                    {{- '\\n</parameter>\\n' }}
                {%- endfor %}
                {{- '</function>\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.previtem and loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- else %}
        {{- raise_exception('Unexpected message role ' ~ message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- else %}
        {{- '<think>\\n' }}
    {%- endif %}
{%- endif %}
"""

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'Größe & <b>"wetter"</b>',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": [1, {"a": None}]}}}
QUESTION = [{"role": "user", "content": "  Hi <there> & 'you' 🙂 "}]
LONG = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Earlier?"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes.", "tool_calls": None},
    {"role": "user", "content": [{"type": "text", "text": "Weather "}, {"type": "text", "text": "now?"}]},
    {"role": "assistant", "content": "", "reasoning": "ask the tool", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "12 degrees"},
    {"role": "tool", "content": "13 degrees"},
    {"role": "assistant", "content": "It is mild.", "thinking": "easy"},
]


def theirs(template: Any, messages: Any, tools: Any = None, prompt: bool = True, **variables: Any) -> str:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(), **TOKENS)
    tokenizer.chat_template = template
    text = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=prompt, **variables
    )
    assert isinstance(text, str)
    return text


def ours(template: Any, messages: Any, tools: Any = None, prompt: bool = True, **variables: Any) -> str:
    sources = template if isinstance(template, dict) else {"default": template}
    chat = ChatTemplate(sources, TOKENS, "chat_template.jinja")
    return chat.render(messages, tools=tools, add_generation_prompt=prompt, variables=variables)


@pytest.mark.parametrize("messages", [QUESTION, LONG], ids=["question", "long"])
@pytest.mark.parametrize("tools", [None, [WEATHER], [WEATHER, WEATHER], []], ids=["none", "one", "two", "empty"])
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False}, {"enable_thinking": True}])
def test_a_long_thinking_and_tool_calling_template(messages: Any, tools: Any, prompt: bool, variables: Any) -> None:
    expected = theirs(QWEN_STYLE, messages, tools, prompt, **variables)
    assert ours(QWEN_STYLE, messages, tools, prompt, **variables) == expected
    assert "<|im_start|>" in expected


@needs_trained_model
@pytest.mark.parametrize("tools", [None, [WEATHER]])
def test_the_trained_models_template(tools: Any) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TRAINED)
    source = (TRAINED / "chat_template.jinja").read_text()
    messages = [{"role": "system", "content": "s"}, *QUESTION, {"role": "assistant", "tool_calls": [CALL]}, *QUESTION]
    expected = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
    assert ours(source, messages, tools) == expected


@pytest.mark.parametrize("tools", [None, [WEATHER, WEATHER]])
@pytest.mark.parametrize("prompt", [True, False])
def test_the_shipped_models_template(tools: Any, prompt: bool) -> None:
    source = (CHECKPOINT / "chat_template.jinja").read_text()
    messages = [message for message in LONG if isinstance(message.get("content"), str)]  # it knows no parts
    expected = theirs(source, messages, tools, prompt)
    assert ours(source, messages, tools, prompt) == expected
    assert "<tool_call>" in expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ tools | tojson }}",
        "{{ messages | tojson(indent=2) }}",
        "{{ messages | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=True) }}",
        "{{ messages[0] | tojson(indent=4, sort_keys=true) | safe }}",
        "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}|{{ documents is none }}|{{ tools is none }}",
        "  {% if true %}\n  x\n  {% endif %}\n y {#- c -#} \n\n z\n",
        "{% for m in messages %}\n  {{ m.role }}\n  {% if loop.index > 1 %}{% break %}{% endif %}\n{% endfor %}",
        "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
        "a{% generation %}\n b {{ messages[0].role }}\n{% endgeneration %}\nc",
        "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
        "{% for m in messages %}{% generation %}{{ loop.index }}{% endgeneration %}{% endfor %}",
        "{% set d = dict(a=1, b='x') %}{{ d.a }}{{ dict([('k', 2)]).k }}{{ dict.fromkeys(['p', 'q'], 0) }}",
        "{% set ns = namespace(a=1, self=2) %}{% set ns.b = ns.a + 1 %}{{ ns.b }}{{ ns.self }}",
        "{% set ns = namespace({'a': 1}) %}{{ ns.a }}{{ namespace().x is undefined }}",
        "{{ range(3) | list }}{{ range(2, 9, 3) | join(',') }}{% for i in range(2) %}{{ loop.length }}{% endfor %}",
        "{{ strftime_now('%Y-%m-%d') }}",
        "{{ 'ab' * 3 }}{{ [1] * 2 }}{{ 2 ** 10 }}{{ 2.5 * 2 }}{{ 3 * 'x' }}{{ 7 // 2 }}{{ 7 % 4 }}{{ 'a' ~ 1 }}",
        "{{ missing }}|{{ messages[0].missing is defined }}|{{ messages[9] is defined }}",
        "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{% set j = joiner(', ') %}{{ j() }}{{ j() }}",
        "{{ messages | map(attribute='role') | list | unique | join('+') }}{{ '<&>' }}{{ '<' | e }}",
        "{% macro m(x, y=2) %}{{ x }}{{ y }}{{ caller() if caller }}{% endmacro %}{% call m(1) %}c{% endcall %}",
        "{{ messages[0].content.strip().upper().replace('I', 'j') }}{{ 'a,b'.split(',')[-1] }}",
        "{{ enable_thinking }}{{ nested.a[0] }}",
    ],
)
def test_every_helper_as_in_transformers(template: str) -> None:
    variables = {"enable_thinking": False, "nested": {"a": ["ü"]}}
    assert ours(template, LONG, [WEATHER], **variables) == theirs(template, LONG, [WEATHER], **variables)


def test_reasoning_is_found_under_each_of_its_names() -> None:
    template = "{% for m in messages %}{{ m.reasoning_content }}/{{ m.thinking }}/{{ m.reasoning }};{% endfor %}"
    names: list[dict[str, str]] = [{"reasoning": "a"}, {"thinking": "b"}, {"reasoning_content": "c", "thinking": "d"}]
    messages = [{"role": "assistant", "content": "", **fields} for fields in names]
    assert ours(template, messages) == theirs(template, messages)


@pytest.mark.parametrize("tools", [None, [WEATHER], []])
@pytest.mark.parametrize("names", [("default",), ("default", "tool_use"), ("default", "rag")])
def test_named_templates_are_chosen_as_in_transformers(tools: Any, names: tuple[str, ...]) -> None:
    named = {name: name + "{{ tools }}" for name in names}
    assert ours(named, QUESTION, tools) == theirs(named, QUESTION, tools)


def test_named_templates_without_a_default_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no default chat template, only rag, tool_use"):
        ours({"tool_use": "", "rag": ""}, QUESTION)


def test_where_templates_come_from(tmp_path: Path) -> None:
    config = {"chat_template": "from the config"}
    files = small_files(tmp_path, tokenizer_config__json=config)
    assert _opened(files) == "from the config"
    both = small_files(tmp_path, tokenizer_config__json=config, chat_template__jinja="from the file")
    assert _opened(both) == "from the file"
    named = {"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]}
    assert _opened(small_files(tmp_path, tokenizer_config__json=named)) == "d"
    assert ChatTemplate.open(small_files(tmp_path), {}) is None


def _opened(files: Any) -> str:
    template = ChatTemplate.open(files, {})
    assert template is not None
    return template.render(QUESTION)


@pytest.mark.parametrize("value", [3, {"default": "x"}, [{"name": "default"}], ["x"], [{"name": "d", "template": 3}]])
def test_a_config_with_something_else_for_a_template_is_corrupt(tmp_path: Path, value: Any) -> None:
    with pytest.raises(CorruptInputError, match=r"chat.template"):
        ChatTemplate.open(small_files(tmp_path, tokenizer_config__json={"chat_template": value}), {})


@pytest.mark.parametrize(
    "content", [b"{% if %}", b"{% nonsense %}", b"{{ x", b"\xff", b"{% for x in y %}", b"{{ 1 | no }}"]
)
def test_a_template_that_is_none_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CorruptInputError, match=r"chat_template\.jinja is not") as caught:
        ChatTemplate.open(small_files(tmp_path, chat_template__jinja=content), {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("template", ["{{ 1 + 'a' }}", "{{ messages.__class__ }}"])
@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_what_fails_in_a_chat_is_told_without_the_pack_s_path(tmp_path: Path, name: str, template: str) -> None:
    content: Any = template.encode() if name.endswith("jinja") else {"chat_template": template}
    opened = ChatTemplate.open(small_files(tmp_path, **{name.replace(".", "__"): content}), {})
    assert opened is not None
    with pytest.raises(MoepackError, match=f"^{name} ") as caught:
        opened.render(QUESTION)
    assert str(tmp_path) not in str(caught.value)


def test_an_oversized_template_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(CorruptInputError, match="at most 65536"):
        ChatTemplate.open(small_files(tmp_path, chat_template__jinja=b" " * (2**16 + 1)), {})


@pytest.mark.parametrize(
    ("template", "messages", "sentence"),
    [
        ("{{ raise_exception('roles must\n alternate') }}", QUESTION, "refuses these messages: roles must alternate"),
        (QWEN_STYLE, [{"role": "system", "content": "x"}], "No user query found in messages"),
        (QWEN_STYLE, [*QUESTION, {"role": "robot", "content": "x"}], "Unexpected message role robot"),
        ("{{ 'a' + messages[0].missing }}", QUESTION, "fails on these messages"),
        ("{{ 1 + 'a' }}", QUESTION, "fails on these messages: TypeError"),
        ("{{ messages[0].missing.deeper }}", QUESTION, "has no attribute 'missing'"),
        ("{{ missing | tojson }}", QUESTION, "fails on these messages: TypeError"),
        ("{{ 1 // 0 }}", QUESTION, "ZeroDivisionError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", QUESTION, "RecursionError"),
        ("{{ lipsum() }}", QUESTION, "'lipsum' is undefined"),
    ],
)
def test_what_a_template_cannot_render_is_one_sentence(template: str, messages: Any, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        ours(template, messages)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


# Payloads known from the advisories on server-side template injection, and variations on them. Each must be refused;
# none may print what lies behind an attribute that begins with an underscore.
ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''.__class__.__base__.__subclasses__() }}",
    "{{ ().__class__.__bases__[0].__subclasses__()[80].__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__.os }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ self.__init__.__globals__.__builtins__ }}",
    "{{ self._TemplateReference__context.environment.globals['x'].__globals__ }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('/etc/passwd').read() }}",
    "{{ strftime_now.__globals__ }}",
    "{{ strftime_now.__code__.co_consts }}",
    "{{ dict.__class__.__init__.__globals__ }}",
    "{{ dict.fromkeys.__func__.__globals__ }}",
    "{{ dict.mro()[1].__subclasses__() }}",
    "{{ range.__class__.__subclasses__ }}",
    "{{ messages.__class__.__base__ }}",
    "{{ messages[0].__class__.__init__ }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ ''|attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ [''] | map(attribute='__class__') | list | first | attr('mro') }}",
    "{{ ([''] | map(attribute='__class__') | first).__mro__ }}",
    "{{ ([''] | groupby('__class__') | first)[0].__subclasses__() }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "{{ ('{0.__class__.__mro__}' | attr('format'))('') }}",
    "{{ (['{0.__class__}'] | map('attr', 'format') | first)('') }}",
    "{% set f = '{0.__class__.__mro__}'.format %}{{ f('') }}",
    "{% set ns = namespace() %}{% set ns.__class__ = dict %}{{ ns }}",
    "{% set ns = namespace(__html__=strftime_now) %}{{ ns }}",
    "{% set ns = namespace({'_x': 1}) %}{{ ns._x }}",
    "{{ caller.__code__ }}{{ (messages | map('tojson')).gi_frame.f_globals }}",
    "{{ (messages | map('upper')).gi_frame.f_builtins }}",
    "{% for m in messages %}{{ loop._iterable.gi_frame }}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% macro m() %}{% endmacro %}{{ m._environment.globals }}",
    "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{{ missing.__init__.__globals__ }}",
    "{{ messages.append({'role': 'user'}) }}",
    "{{ messages.clear() }}",
    "{{ messages.pop() }}",
    "{{ messages.sort() }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{{ messages[0].setdefault('x', 1) }}",
    "{{ messages[0].pop('role') }}",
    "{% do messages.append(1) %}",
    "{{ 'x' * 10 ** 9 }}",
    "{{ 10 ** 9 * 'x' }}",
    "{{ [0] * 10 ** 9 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ 2 ** 2000 }}",
    "{% for a in range(10 ** 7) %}{% endfor %}",
    "{{ range(10 ** 9) | list }}",
    "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
]


@pytest.mark.parametrize("payload", ESCAPES)
def test_a_template_that_means_harm_is_refused(payload: str) -> None:
    messages = [dict(message) for message in QUESTION]
    with pytest.raises((CorruptInputError, UsageError)) as caught:
        ours(payload, messages)
    assert "\n" not in str(caught.value)
    assert messages == QUESTION


def test_rendering_does_not_change_what_it_was_given() -> None:
    messages = [{"role": "assistant", "reasoning": "r", "content": None}]
    ours("{{ messages }}", messages)
    assert messages == [{"role": "assistant", "reasoning": "r", "content": None}]


def test_the_loop_budget_is_per_rendering() -> None:
    template = ChatTemplate({"default": "{% for a in range(90000) %}{% endfor %}x"}, {}, "t")
    assert [template.render(QUESTION) for _ in range(12)] == ["x"] * 12


@pytest.mark.parametrize("payload", ["{{ 'x' * 10 ** 9 }}", "{{ 10 ** 9 * 'x' }}", "{{ [0] * 10 ** 9 }}"])
def test_a_repetition_is_refused_before_it_fills_the_memory(payload: str) -> None:
    with pytest.raises(CorruptInputError, match="repeats a text or list beyond 10000000 items"):
        ours(payload, QUESTION)


@pytest.mark.parametrize("name", ["messages", "tools", "documents", "add_generation_prompt", "range", "namespace"])
def test_variables_cannot_replace_the_chat_or_a_built_in(name: str) -> None:
    template = ChatTemplate({"default": "{{ messages[0].content }}"}, {}, "t")
    with pytest.raises(UsageError, match=f"cannot be named '{name}'") as caught:
        template.render(QUESTION, variables={"enable_thinking": True, name: []})
    assert "\n" not in str(caught.value)


def test_every_built_in_of_the_environment_is_reserved() -> None:
    assert set(_compile("", "t").globals) == BUILT_INS


def test_any_other_name_is_free() -> None:
    template = ChatTemplate({"default": "{{ enable_thinking }}{{ eos_token }}"}, TOKENS, "t")
    assert template.render(QUESTION, variables={"enable_thinking": 1, "eos_token": "!", "self": 2, "args": 3}) == "1!"
