"""Templates that take too much: time, memory, or both."""

from collections.abc import Callable


def source(text: str) -> Callable[[], bytes]:
    return text.encode


DOUBLING = "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = @ %}{% endfor %}{{ ns.x | length }}"
HUNGRY: dict[str, Callable[[], bytes]] = {
    name: source(text)
    for name, text in {
        "a long range": "{% for i in range(10**9) %}{% endfor %}",
        "many ranges": "{% for i in range(1000) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "loops in loops over a text": "{% set s = 'x' * 9999999 %}{% for a in s %}{% for b in s %}{% endfor %}"
        "{% endfor %}",
        "loops in loops over messages": "{% set s = 'x' * 5000 %}" + "{% for a in s %}" * 9 + "{% endfor %}" * 9,
        "a loop that only tests": "{% set s = 'x' * 9999 %}{% for a in s if false %}{% endfor %}" * 200,
        "printing in loops": "{% for a in range(99999) %}{{ 'x' * 10000 }}{% endfor %}",
        "constants in loops": "{% for a in range(99999) %}" + "x" * 50_000 + "{% endfor %}",
        "constants in a macro's loop": "{% macro m() %}{% for a in range(99999) %}" + "x{{ 1 }}" * 5000
        + "{% endfor %}{% endmacro %}{{ m() | length }}",
        "macros that call themselves twice": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}"
        "{% endmacro %}{{ m(90) }}",
        "doubling by ~": DOUBLING.replace("@", "ns.x ~ ns.x"),
        "doubling by +": DOUBLING.replace("@", "ns.x + ns.x"),
        "doubling by *": DOUBLING.replace("@", "ns.x * 2"),
        "doubling by %": DOUBLING.replace("@", "'%s%s' % (ns.x, ns.x)"),
        "doubling by format": DOUBLING.replace("@", "'{0}{0}'.format(ns.x)"),
        "doubling by the filter format": DOUBLING.replace("@", "'%s%s' | format(ns.x, ns.x)"),
        "doubling by join": DOUBLING.replace("@", "''.join([ns.x, ns.x])"),
        "doubling by the filter join": DOUBLING.replace("@", "[ns.x, ns.x] | join"),
        "doubling by replace": DOUBLING.replace("@", "ns.x.replace('b', ns.x)"),
        "doubling by the filter replace": DOUBLING.replace("@", "ns.x | replace('b', ns.x)"),
        "doubling by a block": "{% set x = 'ab' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 64 + "{{ x | length }}",
        "doubling by escaping": DOUBLING.replace("@", "(ns.x ~ '&') | forceescape | replace('&', '&&')"),
        "doubling lists": DOUBLING.replace("'ab'", "[1]").replace("@", "ns.x + ns.x"),
        "doubling lists by sum": DOUBLING.replace("'ab'", "[1]").replace("@", "[ns.x, ns.x] | sum(start=[])"),
        "doubling inside": DOUBLING.replace("'ab'", "[]").replace("@", "[ns.x, ns.x]").replace(" | length", ""),
        "doubling inside objects": DOUBLING.replace("'ab'", "{}").replace("@", "{'a': ns.x, 'b': ns.x}")
        .replace("length", "tojson"),
        "doubling inside by arguments": "{% macro m(n) %}{% if n %}{{ m(n - 1, varargs, varargs) }}{% else %}"
        "{{ varargs }}{% endif %}{% endmacro %}{{ m(60) }}",
        "comparing what doubles inside": DOUBLING.replace("'ab'", "[]").replace("@", "[ns.x, ns.x]")
        .replace("ns.x | length", "ns.x == [ns.x, ns.x]"),
        "keeping all": "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}"
        "{% set ns.x = ns.x + ['x' * 9999 ~ i] %}{% endfor %}",
        "slices kept": "{% set s = 'x' * 999999 %}{% set ns = namespace(x=[]) %}{% for i in range(9999) %}"
        "{% set ns.x = ns.x + [s[1:]] %}{% endfor %}",
        "letters of a long text": "{{ ('x' * 9999999) | list | length }}",
        "words of a long text": "{{ ('x ' * 4999999).split() | length }}",
        "a long number": "{% set ns = namespace(x=3) %}{% for i in range(64) %}"
        "{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "a large power": "{{ 10 ** 10 ** 10 }}",
        "powers of powers": "{{ (9999999 ** 64) ** 64 }}",
        "rounding to many places": "{{ 1.5 | round(999999999, 'floor') }}",
        "ljust": "{{ 'x'.ljust(9999999999) }}",
        "rjust": "{{ 'x'.rjust(width=9999999999) }}",
        "center": "{{ 'x'.center(9999999999) }}",
        "the filter center": "{{ 'x' | center(9999999999) }}",
        "zfill": "{{ '1'.zfill(9999999999) }}",
        "expandtabs": "{{ '\t'.expandtabs(2000000000) }}",
        "many tabs": "{{ ('\t' * 9999999).expandtabs(1000) }}",
        "translate": "{{ ('x' * 99999).translate({120: 'y' * 99999}) }}",
        "a wide %d": "{{ '%9999999999d' % 1 }}",
        "a wide %s": "{{ '%9999999999s' % 'x' }}",
        "a precise %f": "{{ '%.2000000000f' % 1.5 }}",
        "a width that is an argument": "{{ '%*d' % (2000000000, 1) }}",
        "the filter format, wide": "{{ '%9999999999d' | format(1) }}",
        "a wide format": "{{ '{:>9999999999}'.format('x') }}",
        "a width in a width": "{{ '{:{}}'.format('x', 9999999999) }}",
        "a precise format": "{{ '{:.2000000000f}'.format(1.5) }}",
        "indent": "{{ ('\n' * 99999) | indent(99999) }}",
        "indent by a text": "{{ ('\n' * 99999) | indent('x' * 99999) }}",
        "JSON indented": "{{ [[[[1]]]] | tojson(indent=999999999) }}",
        "JSON indented by a text": "{{ [[1, 2, 3]] | tojson(indent='x' * 9999999) }}",
        "batch": "{{ [1] | batch(999999999, 0) | list }}",
        "slice": "{{ [1] | slice(999999999) | list }}",
        "wordwrap": "{{ ('x' * 99999) | wordwrap(1) }}",
        "urlize": "{{ ('http://a.b/' * 99999) | urlize }}",
        "strftime": "{{ strftime_now('%9999999999Y') }}" + "{{ strftime_now('%c' * 99999) }}",
        "fromkeys": "{{ dict.fromkeys('x' * 9999999) }}" + "{{ dict.fromkeys(range(99999)) }}" * 99,
        "a joiner of joiners": "{% set j = joiner('x' * 9999999) %}" + "{{ j() }}" * 999,
        "64 KiB of names": "{{a}}" * 13_000,
        "64 KiB of sums": "{{ 1" + "+1" * 32_000 + " }}",
        "64 KiB of brackets": "{{ " + "(" * 32_000 + " }}",
        "64 KiB of lists": "{{ " + "[" * 32_000 + "]" * 32_000 + " }}",
        "64 KiB of conditions": "{% if a %}" * 6_000,
        "64 KiB of loops": "{% for a in b %}" * 2_000 + "{% endfor %}" * 2_000,
        "64 KiB of macros": "{% macro a() %}{% endmacro %}" * 2_000,
        "64 KiB of filters": "{{ a" + "|e" * 32_000 + " }}",
        "64 KiB of attributes": "{{ a" + ".a" * 32_000 + " }}",
        "64 KiB of nots": "{{ " + "not " * 16_000 + "a }}",
        "64 KiB of comments": "{#" * 32_000,
        "a megabyte": "x" * 2**20,
    }.items()
}  # fmt: skip
