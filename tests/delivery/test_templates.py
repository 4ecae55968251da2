"""No template and no item reaches anything but values, takes long, or grows without a bound."""

from __future__ import annotations

import json
import re
import time
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbq_exporter import item as items
from cbq_exporter.delivery.fields import JsonObject
from cbq_exporter.delivery.render_errors import OutputTooLarge, RenderError
from cbq_exporter.delivery.templates import Template, TemplateError
from cbq_exporter.delivery.templates.filters import FILTERS
from cbq_exporter.delivery.values import OF_BODIES

SECRETS = {"a": "s3cr3t"}


def compiled(text: str) -> Template:
    return Template(text, "t.j2", known=OF_BODIES, secrets=SECRETS, escapes=False)


def render(text: str, item: Any = None, max_chars: int = 8 << 20) -> str:
    payload = json.dumps({"url": "http://a.example/", **(item or {})}).encode()
    template = compiled(text)
    values: dict[str, Any] = {
        "attempt": {"number": 1, "first_at": 1.5},
        "item": JsonObject(msgspec.Raw(payload), items.read(payload)),
        "nonce": "00ff",
        "now_iso": "2026-01-01T00:00:00.000Z",
        "now_ms": 1764000000123,
        "secrets": SECRETS,
        "webhook_id": "msg_1",
    }
    return template.render({name: values[name] for name in template.names}, max_chars)


ITEM = {"a": "x", "n": 3, "list": [1, 2, 3], "object": {"items": 1, "k": "v"}, "on": True, "none": None, "big": 1e308}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ 'abc' | sha256 }}", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        ("{{ 'abc' | sha256 | b64 }}", "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="),
        ("{{ ('abc' | sha256 | string | b64)[:8] }}", "YmE3ODE2"),
        (
            "{{ 'message' | hmac_sha256('key') }}",
            "6e9ef29b75fffc5b7abae527d58fdadb2fe42e7219011976917343065f58ed4a",
        ),
        ("{{ hmac_sha256('message', 'key')[:4] | b64 }}", "bp7ymw=="),
        ("{{ 'héllo' | b64 }}", "aMOpbGxv"),
        ("{{ item.a }}{{ item['n'] + 1 }}{{ item.n / 2 }}{{ item.list[1:] | tojson }}", "x41.5[2,3]"),
        ("{{ item.object.items }}{{ item.object['k'] }}", "1v"),
        ("{% for k, v in item.object | items %}{{ k }}={{ v }};{% endfor %}", "items=1;k=v;"),
        ("{% for x in item.list %}{{ x }}{{ ',' if not loop.last }}{% endfor %}", "1,2,3"),
        ("{{ item.list | join(',') }}", "1,2,3"),
        ("{% for x in item.list if x > 1 %}{{ loop.index }}{{ x }}{% else %}no{% endfor %}", "1223"),
        ("{{ item.list | map('string') | join('-') }}{{ item.list | sum }}{{ item.list | length }}", "1-2-363"),
        ("{{ item.list | select('>', 1) | list | tojson }}{{ item.list | sort(reverse=true) | first }}", "[2,3]3"),
        ("{{ item.nope | default('d') }}{{ item.nope.deeper | default('e') }}", "de"),
        ("{{ (item.nope is defined) | tojson }}", "false"),
        ("{{ 'yes' if item.on and item.none is none and item.a in ['x'] else 'no' }}", "yes"),
        ("{{ item.on | tojson }}{{ item.none | tojson }}{{ item.object | tojson }}", 'truenull{"items": 1, "k": "v"}'),
        ("{{ {'b': item.object, 'h': 'x' | sha256 is string} | tojson }}", '{"b":{"items": 1, "k": "v"},"h":false}'),
        ("{{ ' aXbX ' | trim | replace('X', '-') | upper }}{{ 2.345 | round(1) }}{{ '7' | int + 1 }}", "A-B-2.38"),
        ("{{ 'x' | int(default=4) }}{{ '1.5' | float }}{{ 'inf' | float(0) }}", "41.50"),
        ("{{ {'a b': 'c&d', 'e': 1} | urlencode }}", "a+b=c%26d&e=1"),
        ("{{ range(3) | list | tojson }}{{ attempt.number }}{{ now_ms }}{{ nonce }}", "[0,1,2]1176400000012300ff"),
        ("{% if item.a == 'x' %}\nline\n{% endif %}\nend", "line\nend"),
    ],
)
def test_what_templates_can_do(text: str, expected: str) -> None:
    assert render(text, ITEM) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{{ item.nope }}",
        "{{ item.nope.deeper }}",
        "{{ item.list[9] }}",
        "{{ item.list.append(1) }}",
        "{{ item.object }}",
        "{{ item.none }}",
        "{{ item.on }}",
        "{{ item.on ~ '' }}",
        "{{ item.object ~ '' }}",
        "{{ item.nope ~ '' }}",
        "{% for x in item.nope %}{% endfor %}",
        "{% for x in item.nope | items %}{% endfor %}",
        "{{ item.nope | upper }}",
        "{{ item.nope | tojson }}",
        "{{ [item.nope] | tojson }}",
        "{{ item.nope == 1 }}",
        "{{ item.nope + 1 }}",
        "{{ item.object | sha256 }}",
        "{{ item.a | sum }}",
        "{{ item.a | int }}",
        "{{ item.n | round(99) }}",
        "{{ item.big * 10 }}",
        "{{ (item.big * 10 - item.big * 10) | tojson }}",
        "{{ [item.big, item.big] | sum | tojson }}",
        "{% set x = item.big / 1e-300 %}",
        "{{ 'inf' | float | tojson }}",
        "{{ 'nan' | float }}",
        "{{ '1_000' | int }}",
        "{{ 1 / 0 }}",
        "{{ item.a < 1 }}",
        "{{ now_ms() }}",
    ],
)
def test_what_has_no_value_is_an_error_and_never_a_text(text: str) -> None:
    with pytest.raises(RenderError, match=r"^t\.j2:1: [^\n]{1,200}$"):
        render(text, ITEM)


ESCAPES = [
    # The ways that are known out of Jinja2, and out of its sandbox in older versions.
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ''['__cla' ~ 'ss__'] }}",
    "{{ [].__class__.__base__.__subclasses__() }}",
    "{{ ().__class__.__bases__[0].__subclasses__()[40]('/etc/passwd').read() }}",
    "{{ {}.__init__.__globals__ }}",
    "{{ '' | attr('__class__') }}",
    "{{ '' | attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ ['a'] | map(attribute='__class__') | list | tojson }}",
    "{{ ['a'] | map('attr', '__class__') | list }}",
    "{{ ['a'] | selectattr('__class__') | list | first }}",
    "{{ ['a'] | sort(attribute='__class__.__mro__') | first.__class__ }}",
    "{{ item.__class__ }}",
    "{{ item.raw }}",
    "{{ item._values }}",
    "{{ item._open() }}",
    "{{ item.keys() }}",
    "{{ item.get('a') }}",
    "{{ item['__class__'] }}",
    "{{ attempt.__class__ }}",
    "{{ secrets.__class__ }}",
    "{{ secrets['__class__'] }}",
    "{{ secrets.items() }}",
    "{{ self }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ joiner.__init__.__globals__.os }}",
    "{{ namespace.__init__.__globals__.os }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ lipsum | attr('__globals__') }}",
    "{{ lipsum() }}",
    "{{ dict(a=1) | tojson }}",
    "{{ namespace(a=1).a }}",
    "{{ cycler('a').next() }}",
    "{{ dict.mro() }}",
    "{{ range.__class__ }}",
    "{{ range.__globals__ }}",
    "{{ sha256.__globals__ }}",
    "{{ sha256.__code__ }}",
    "{{ sha256 }}",
    "{{ ('x' | sha256).hex() }}",
    "{{ ('x' | sha256).__class__ }}",
    "{{ config }}",
    "{{ request }}",
    "{{ url_for.__globals__ }}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ environment }}",
    "{{ context }}",
    "{{ caller }}",
    "{{ loop }}",
    "{% for x in [1] %}{{ loop.__class__ }}{% endfor %}",
    "{% for x in [1] %}{{ loop._iterator }}{% endfor %}",
    "{% for x in [1] %}{{ loop.cycle.__globals__ }}{% endfor %}",
    "{% for x in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{{ '%s' | format(''.__class__) }}",
    "{{ '{0.__class__}'.format('') }}",
    "{{ '{x.__class__}'.format_map({'x': ''}) }}",
    "{{ ('{0.__class__}' | safe).format('') }}",
    "{{ '%s'.__mod__('') }}",
    "{{ '%(a)s' % {'a': 1} }}",
    "{{ undefined_name.__class__ }}",
    "{{ item.nope.__class__ }}",
    "{{ item.nope._undefined_obj }}",
    "{{ item.nope.__init__.__globals__ }}",
    "{{ ''.join.__self__ }}",
    "{% macro m() %}{% endmacro %}{{ m.__globals__ }}",
    "{% call m() %}{% endcall %}",
    "{% set x %}{{ 1 }}{% endset %}",
    "{% set ns = namespace() %}",
    "{% set item.x = 1 %}",
    "{% import 'os' as os %}",
    "{% from 'os' import system %}",
    "{% include '/etc/passwd' %}",
    "{% extends '/etc/passwd' %}",
    "{% block a %}{% endblock %}",
    "{% filter upper %}a{% endfilter %}",
    "{% with a = 1 %}{% endwith %}",
    "{% autoescape true %}{% endautoescape %}",
    "{% do 1 %}",
    "{% debug %}",
    "{{ 'x' is callable }}",
    "{{ 'os' is filter }}",
    "{{ [1] | random }}",
    "{{ [] | pprint }}",
    "{{ 'x' | xmlattr }}",
    "{{ ['x'] | groupby('__class__') }}",
    "{{ 'budget of this rendering' }}{{ budget }}",
    "{{ 2 ** 3 }}",
]


@pytest.mark.parametrize("text", ESCAPES)
def test_there_is_no_way_out(text: str) -> None:
    with pytest.raises((TemplateError, RenderError)) as raised:
        render(text, {"a": "x"})
    assert "\n" not in str(raised.value)


MANY = 20_000
LARGE: dict[str, Any] = {
    "n": 10**9,
    "minus": -(10**9),
    "many": list(range(MANY)),
    "texts": ["a" * 20] * MANY,
    "big": "a" * (4 << 20),
    "huge": int("9" * 4000),
    "deep": [[[[[[["x"] * 9] * 9] * 9] * 9] * 9]],
    "keys": {f"k{number}": number for number in range(MANY)},
    "collisions": [number * (2**61 - 1) for number in range(5000)],
}


@pytest.mark.parametrize(
    "text",
    [
        "{% for x in range(item.n) %}x{% endfor %}",
        "{{ range(item.n) | list | tojson }}",
        "{% for x in item.many %}{% for y in item.many %}{% endfor %}{% endfor %}",
        "{% for x in item.many %}{{ item.many | join }}{% endfor %}",
        "{% for x in item.many %}{{ item.many | sort | length }}{% endfor %}",
        "{% for x in item.many %}{{ item.big | sha256 }}{% endfor %}",
        "{% for x in item.many %}{{ sha256(item.big) }}{% endfor %}",
        "{% for x in item.many %}{{ item.big | tojson | sha256 }}{% endfor %}",
        "{% for x in item.many %}{{ item | tojson | length }}{% endfor %}",
        "{% for x in item.many %}{% if item.big in item.big %}{% endif %}{% endfor %}",
        "{% for x in item.many %}{% if item.many == item.many %}{% endif %}{% endfor %}",
        "{% for x in item.many %}{% if item.n in item.many %}{% endif %}{% endfor %}",
        "{% for x in item.many %}{% if item.keys == {} %}{% endif %}{% endfor %}",
        "{% for x in item.many %}{{ item.big[::-1] | length }}{% endfor %}",
        "{% for x in item.many %}{{ (item.big ~ item.big) | length }}{% endfor %}",
        "{% for x in item.many %}{{ (item.big + item.big) | length }}{% endfor %}",
        "{% for x in item.many %}{{ range(99999) | list | length }}{% endfor %}",
        "{% for x in item.many %}{{ item.huge * item.huge * item.huge > 1 }}{% endfor %}",
        "{% for x in item.many %}{% for y in range(99999) %}{% if y > 9 %}{% endif %}{% endfor %}{% endfor %}",
        "{{ item.many | select('in', item.many) | list | length }}",
        "{{ item.many | map('default', item.big) | join }}",
        "{{ item.texts | map('hmac_sha256', item.big) | list | length }}",
        "{{ item.texts | map('replace', 'a', item.big) | list | length }}",
        "{{ item.texts | join(item.big) }}",
        "{{ item.big | replace('a', item.big) }}",
        "{{ item.big | replace('', item.big) }}",
        "{{ 'x' * item.n }}",
        "{{ item.many * item.n }}",
        "{{ item.n * 'x' }}",
        "{{ '%*d' % (item.n, 1) }}",
        "{{ 'x' | center(item.n) }}",
        "{{ 'x' | indent(item.n) }}",
        "{{ [1] | batch(item.n, 'x') | list }}",
        "{{ 1.5 | round(item.minus) }}",
        "{{ 1 | round(item.n, 'ceil') }}",
        "{{ item.many | tojson(indent=item.n) }}",
        "{{ item.deep | tojson ~ item.big ~ item.big ~ item.big | tojson | tojson }}" * 3,
        "{% for k, v in item.keys | dictsort %}{% for k, v in item.keys | items %}{% endfor %}{% endfor %}",
        "{% for x in item.many %}" + "y" * 1000 + "{% endfor %}",
        "{{ item.collisions | unique | list }}",
    ],
)
def test_no_item_makes_a_rendering_long(text: str) -> None:
    began = time.process_time()
    with pytest.raises((RenderError, TemplateError)):
        render(text, LARGE)
    assert time.process_time() - began < 2


def _doubled(value: str, again: str) -> str:
    """Short to say, and of 2 ** 40 values if each is gone through where it stands."""
    pairs = [(name, re.sub(r"\ba\b", name, again)) for name in "pq"]
    return "".join(f"{{% set {name} = {value} %}}" + f"{{% set {name} = {again} %}}" * 40 for name, again in pairs)


@pytest.mark.parametrize(
    "text",
    [
        *(
            _doubled("[1, 1]", "[a, a]") + use
            for use in [
                "{{ p | tojson }}",
                "{{ [p] | tojson }}",
                "{{ (p == q) | tojson }}",
                "{{ (p in [q]) | tojson }}",
                "{{ [p, q] | sort | length }}",
                "{{ [p, q] | max | length }}",
                "{{ [p] | select('==', q) | list | length }}",
            ]
        ),
        _doubled("(1, 1)", "(a, a)") + "{{ {p: 1} | length }}",
        _doubled("(1, 1)", "(a, a)") + "{{ item[p] }}",
        _doubled("{'k': 1}", "{'k': a, 'l': a}") + "{{ p | tojson }}",
        _doubled("{'k': 1}", "{'k': a, 'l': a}") + "{{ (p == q) | tojson }}",
        _doubled("'x'", "a ~ a") + "{{ p }}",
        _doubled("12345678901234567890", "a * a") + "{{ p > q }}",
        "{% set b = item.big ~ '' %}{% for x in item.many %}{% if [item.big] == [b] %}{% endif %}{% endfor %}",
        "{% for x in range(200) %}{% for y in range(200) %}{% for z in range(9) %}{% endfor %}{% endfor %}{% endfor %}",
        "{{ range(1000000000) | length }}",
        "{{ 'x' * 1000000000 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "not " * 5000 + "1 }}",
        "{{ 'a'" + " | upper" * 5000 + " }}",
        "{{ 'a' | " + "replace('a', 'aa') | " * 40 + "upper }}",
        "{{ '%' | " + "b64 | " * 80 + "upper }}",
    ],
)
def test_no_template_makes_a_rendering_long(text: str) -> None:
    test_no_item_makes_a_rendering_long(text)


@pytest.mark.parametrize(
    "step",
    [
        "{% set a = x + 1 %}",
        "{% if x %}{% endif %}",
        "{{ '' }}",
        "{% set a = 1 < 2 %}",
        "{% if x is odd %}{% endif %}",
        "{% for y in [1] %}{% endfor %}",
    ],
)
@pytest.mark.parametrize("loop", ["item.many", "item.many | map('string')", "range(20000) if x"])
def test_a_step_of_a_loop_costs_what_it_does(step: str, loop: str) -> None:
    test_no_item_makes_a_rendering_long("{% for x in " + loop + " %}" + step * 500 + "{% endfor %}")


TOO_LARGE = {
    "text": ("x" * 300_000, "1: is longer than 262,144 characters"),
    "values": ("a\n" * 9 + "{{1}}" * 20_000, "10: has more than 5,000 parts"),
    "statements": ("\n{%if 1%}{%endif%}" * 10_000, "2500: has more than 5,000 parts"),
    "list": ("\n{{ [" + "1," * 50_000 + "] }}", "2: has more than 5,000 parts"),
    "sum": ("\n{{ 1" + " + 1" * 60 + " }}", "2: is nested more than 40 levels deep"),
    "keys": ("\n{{ item" + ".a" * 60 + " }}", "2: is nested more than 40 levels deep"),
    "filters": ("\n{{ 'a'" + " | upper" * 60 + " }}", "2: is nested more than 40 levels deep"),
    "conditions": ("\n{% if 1 %}" * 60 + "{% endif %}" * 60, "41: is nested more than 40 levels deep"),
    "parentheses": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "1: is nested more than 40 levels deep"),
    "loops": ("\n{% for x in item %}" * 16 + "{% endfor %}" * 16, "17: has more than 15 loops in each other"),
    "hexadecimal": ("\n{{ 0x" + "f" * 3000 + " }}", "2: a number has too many digits"),
    "decimal": ("{{ " + "9" * 5000 + " }}", "1: a number has too many digits"),
    "infinite": ("\n{{ 1e999 }}", "2: a number is out of range"),
    "power": ("{{ 9 ** 9 ** 9 }}", "1: pow is not available here"),
}


@pytest.mark.parametrize("what", TOO_LARGE)
def test_a_template_that_would_take_long_to_compile_is_refused_and_the_line_told(what: str) -> None:
    text, said = TOO_LARGE[what]
    began = time.process_time()
    with pytest.raises(TemplateError) as raised:
        compiled(text)
    assert str(raised.value) == f"t.j2:{said}"
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'a' * 10000000000 }}",
        "{{ range(1000000000) | list }}",
        "{{ 9 * 9 * 99999999999999999999 * 99999999999999999999 }}",
        "{{ 'a' | replace('a', 'aaaaaaaa') | replace('a', 'aaaaaaaa') | replace('a', 'aaaaaaaa') }}",
        "{{ item" + ".a" * 36 + " }}" + "{{ item" + "[1]" * 36 + " }}",
        "{{ 'a'" + " | upper" * 36 + " }}" + "{% if 1 %}" * 36 + "{% endif %}" * 36,
        "{% for x in item %}" * 15 + "{% endfor %}" * 15,
    ],
)
def test_what_is_always_the_same_is_not_worked_out_when_it_is_compiled(text: str) -> None:
    began = time.process_time()
    compiled(text)
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    "text", ["{{ item.texts | join(item.big) }}", "{{ item.big | replace('a', item.texts | join) }}"]
)
def test_what_would_be_too_large_is_not_made(text: str) -> None:
    item = {"texts": ["a"] * 100, "big": "a" * (4 << 20)}
    tracemalloc.start()
    try:
        with pytest.raises(RenderError):
            render(text, item)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_what_comes_out_is_bounded_while_it_comes() -> None:
    with pytest.raises(OutputTooLarge, match=r"^more than 1,000 characters come out of t\.j2$"):
        render("{% for x in item.many %}" + "y" * 500 + "{% endfor %}", LARGE, max_chars=1000)


def test_large_values_pass_where_they_are_gone_through_a_few_times() -> None:
    text = "{{ item.big }}{{ item.big | sha256 }}{{ item.many | length }}{% for x in item.many %}{{ x }}{% endfor %}"
    assert len(render(text, LARGE)) > 4 << 20
    assert len(render("{{ item.many | tojson }}" * 5, LARGE)) > 500_000


def test_the_documentation_names_all_filters() -> None:
    page = (Path(__file__).parents[2] / "docs/shaping.md").read_text()
    listed = page.partition("- Filters: ")[2].partition(".\n")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == set(FILTERS)


EXPRESSIONS = st.recursive(
    st.sampled_from(
        ["item.a", "item.n", "item.list", "item.object", "item.nope", "nonce", "now_ms", "'t'", "1", "none", "[]", "{}"]
    ),
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "~", "*", "%", "==", "in", "and", "<"]), inner).map(" ".join)
        | st.tuples(inner, st.sampled_from(sorted(FILTERS))).map(lambda pair: f"({pair[0]} | {pair[1]})")
        | st.tuples(inner, inner).map(lambda pair: f"({pair[0]})[{pair[1]}]")
        | inner.map(lambda one: f"({one}).items")
        | st.tuples(inner, inner).map(lambda pair: f"({pair[0]} if {pair[1]} else 0)")
        | st.lists(inner, max_size=2).map(lambda some: f"sha256({', '.join(some)})")
    ),
    max_leaves=6,
)


@settings(max_examples=200)
@given(EXPRESSIONS, st.booleans())
def test_any_expression_writes_a_text_or_says_why_not(expression: str, in_loop: bool) -> None:
    text = f"{{% for x in {expression} %}}{{{{ x }}}}{{% endfor %}}" if in_loop else f"{{{{ {expression} }}}}"
    try:
        made = render(text, ITEM)
    except (RenderError, TemplateError) as error:
        made = str(error)
        message = True
    else:
        message = False
    assert " object at 0x" not in made
    assert not message or (made.isprintable() and len(made) < 300)


PIECES = st.sampled_from(
    [
        *(
            "{{",
            "}}",
            "{%",
            "%}",
            "{#",
            "#}",
            "-",
            "for x in",
            "endfor",
            "if",
            "endif",
            "else",
            "set a =",
            "raw",
            "endraw",
        ),
        *("item", "item.list", "x", "a", "loop", "self", "__class__", "|", "tojson", "~", "(", ")", "[", "]", ".", ","),
        *("1", "'", '"', "\\", "\n", "\0", "é", "is", "not", "recursive", "macro m()", "endmacro", "include 'x'"),
    ]
)


@settings(max_examples=200)
@given(st.one_of(st.text(), st.lists(PIECES).map(" ".join)))
def test_any_text_is_a_template_or_says_why_not(text: str) -> None:
    said = ""
    try:
        made = render(text, ITEM)
    except (RenderError, TemplateError) as error:
        made = said = str(error)
    assert " object at 0x" not in made
    assert said.isprintable()
    assert len(said) < 300


OPENED = st.sampled_from(
    [
        *(
            ("{{ ", " }}"),
            ("{% if x %}", "{% endif %}"),
            ("{% for x in [1, 2] %}", "{% endfor %}"),
            ("[", "]"),
            ("(", ")"),
        ),
        *(
            ("{% if 1 %}{% else %}", "{% endif %}"),
            ("{1: ", "}"),
            ("sha256(", ")"),
            ("not ", ""),
            ("- ", ""),
            ("'", "'"),
        ),
        *(("", " | upper"), ("", ".a"), ("", "[0]"), ("", " + 1"), ("", " ~ 'a'"), ("", " < 1"), ("", " if 1 else 2")),
        *(("{% set x = 1 %}", ""), ("{{ item }}", ""), ("{# a #}", ""), ("\n", " "), ("{% raw %}", "{% endraw %}")),
    ]
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(OPENED, st.sampled_from([1, 2, 15, 38, 300, 3000])), max_size=5), st.integers(1, 200))
def test_any_template_is_compiled_and_carried_out_in_a_moment_or_refused(
    layers: list[tuple[tuple[str, str], int]], times: int
) -> None:
    text = "1"
    for (before, after), count in layers:
        text = (before * count + text + after * count)[:100_000]
    text = (text * times)[:100_000]
    began = time.process_time()
    said = "t.j2:1: "
    try:
        render(text, ITEM)
    except (TemplateError, RenderError) as error:
        said = str(error)
    assert re.match(r"t\.j2:\d+: |t\.j2: nested too deeply|more than .* come out of t\.j2", said)
    assert time.process_time() - began < 4
