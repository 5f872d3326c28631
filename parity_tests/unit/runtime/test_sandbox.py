"""Chat templates of strangers: whatever they compute, one line comes in seconds, and honest ones render as ever.

The right text of an honest template is what Jinja's own sandbox renders.
"""

from __future__ import annotations

import re
import time
from typing import Any

import jinja2
import jinja2.sandbox
import pytest

from qwen3vl_export.errors import ArtifactError, InputError
from qwen3vl_export.runtime.prompts import sandbox_budget
from qwen3vl_export.runtime.prompts.prompt import compile_template, render, to_json

MESSAGES = [{"role": "user", "content": "hi"}]
LOOP = "{% for i in range(99999) %}"
GROWING = "{% set ns = namespace(x=FIRST) %}{% for i in range(99) %}{% set ns.x = NEXT %}{% endfor %}"
LARGE = "{% set a = 'x' * 9999999 %}"
HOSTILE = {
    "a range": "{% for x in range(10 ** 12) %}{% endfor %}",
    "nested loops": f"{LOOP}{LOOP}{{% endfor %}}{{% endfor %}}",
    "loops that call themselves": "{% for x in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "constant text": f"{LOOP}{'abc' * 999}{{% endfor %}}",
    "constant text that nobody sees": f"{{% set t %}}{LOOP}{'abc' * 999}{{% endfor %}}{{% endset %}}",
    "the text of a macro": f"{{% macro f() %}}{'abc' * 9999}{{% endmacro %}}{LOOP}{{% set x = f() %}}{{% endfor %}}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "endless macros": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "endless blocks": "{% block a %}{{ self.a() }}{% endblock %}",
    "widths of methods": "{{ 'x'.center(10 ** 9) }}",
    "widths of filters": "{{ 'x' | center(10 ** 9) }}",
    "widths of filter blocks": "{% filter center(10 ** 9) %}x{% endfilter %}",
    "widths of mapped filters": "{{ range(99999) | map('center', 99999) | list }}",
    "widths of printf": "{{ '%0999999999d' % 1 }}",
    "widths given to printf": "{{ '%*d' % (10 ** 9, 1) }}",
    "widths of printf with keys": "{{ '%(a(b)c)999999999d' % {'a(b)c': 1} }}",
    "widths of the printf filter": "{{ '%0999999999d' | format(1) }}",
    "widths of format": "{{ '{:0999999999d}'.format(1) }}",
    "widths given to format": "{{ '{a:{w}}'.format_map({'a': 1, 'w': 10 ** 9}) }}",
    "many fields": "{% set a = '%s' * 9999 %}{{ a % (('x' * 9999,) * 9999) }}",
    "multiplied text": "{{ 'x' * 10 ** 9 }}",
    "multiplied lists": "{{ 10 ** 9 * [1] }}",
    "powers": "{{ 10 ** (10 ** 10) }}",
    "powers of powers": "{{ (2 ** 2000) ** 2000 }}",
    "large numbers from text": "{{ ('f' * 99999) | int(base=16) }}",
    "bytes": "{{ (1).to_bytes(10 ** 9, 'big') }}",
    "doubled text": GROWING.replace("FIRST", "'x'").replace("NEXT", "ns.x + ns.x"),
    "joined text": GROWING.replace("FIRST", "'x'").replace("NEXT", "ns.x ~ ns.x"),
    "doubled lists": GROWING.replace("FIRST", "1").replace("NEXT", "[ns.x, ns.x]") + "{{ ns.x }}",
    "doubled mappings": GROWING.replace("FIRST", "1").replace("NEXT", "{'a': ns.x, 'b': ns.x}") + "{{ ns.x | tojson }}",
    "namespaces": GROWING.replace("FIRST", "1").replace("NEXT", "namespace(a=ns.x, b=ns.x)") + "{{ ns }}",
    "namespaces in themselves": "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns }}",
    "deep tuples": GROWING.replace("99", "99999").replace("FIRST", "1").replace("NEXT", "(ns.x,)") + "{{ {ns.x: 1} }}",
    "replaced text": f"{LARGE}{{{{ a.replace('x', a) }}}}",
    "inserted text": f"{LARGE}{{{{ a | replace('', a) }}}}",
    "separators": f"{LARGE}{{{{ range(99999) | join(a) }}}}",
    "separators of generators": f"{LARGE}{{{{ a.join(range(99999) | map('string')) }}}}",
    "indents": "{% set a = '\n' * 99999 %}{{ a | indent(99999) }}",
    "indents of JSON": "{{ range(9999) | list | tojson(indent=99999) }}",
    "tabs": "{{ ('\t' * 99999).expandtabs(99999) }}",
    "translations": f"{LARGE}{{{{ a.translate({{120: a}}) }}}}",
    "values of keys": f"{LARGE}{{{{ {{}}.fromkeys(range(99999), a) }}}}",
    "batches": "{{ [1] | batch(10 ** 9, 1) | list }}",
    "slices": "{{ [1] | slice(10 ** 9) | list }}",
    "sums of lists": "{{ ([[1]] * 99999) | sum(start=[]) }}",
    "addresses": "{{ ('(' * 99999 ~ ')' * 99999) | urlize }}",
    "copies": f"{LARGE}{LOOP}{{% set b = a[1:] %}}{{% endfor %}}",
    "comparisons": f"{LARGE}{{% set b = a ~ '' %}}{LOOP}{{% if a == b %}}{{% endif %}}{{% endfor %}}",
    "searches": f"{LARGE}{LOOP}{{% if 'y' in a %}}{{% endif %}}{{% endfor %}}",
    "conversions": f"{LARGE}{LOOP}{{% set b = a.upper() %}}{{% endfor %}}",
    "words at random": "{{ lipsum(n=10 ** 6) }}",
    "zero": "{{ 1 / 0 }}",
    "overflow": "{{ 2.0 ** 10000 }}",
    "nothing": "{{ messages[5].x.y }}",
    "other files": "{% include '/etc/passwd' %}",
    "internals": "{{ ''.__class__.__mro__ }}",
}
UNREADABLE = {
    "deep parentheses": f"{{{{ {'(' * 9999}1{')' * 9999} }}}}",
    "deep lists": f"{{{{ {'[' * 9999}{']' * 9999} }}}}",
    "deep sums": f"{{{{ 1{'+1' * 9999} }}}}",
    "deep loops": "{% for x in [1] %}" * 30 + "{% endfor %}" * 30,
    "deep conditions": "{% if 1 %}" * 900 + "{% endif %}" * 900,
    "length": "x" * 10**6,
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_a_template_that_computes_too_much_is_refused_in_one_line(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_budget, "WORK", 50_000)
    started = time.process_time()
    with pytest.raises(InputError, match="the chat template") as caught:
        render(compile_template(source), MESSAGES, {})
    assert "\n" not in str(caught.value) and time.process_time() - started < 5


@pytest.mark.parametrize("source", UNREADABLE.values(), ids=UNREADABLE)
def test_a_template_that_cannot_be_compiled_is_refused_in_one_line(source: str) -> None:
    with pytest.raises(ArtifactError, match=re.escape("chat_template.jinja: line 1: ")) as caught:
        compile_template(source)
    assert "\n" not in str(caught.value)


HONEST = {
    "loops": "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{{ m.role }},{% endfor %}",
    "loops over generators": "{% for r in messages | map(attribute='role') %}{{ r }}{{ loop.last }}{% endfor %}",
    "loops with conditions": "{% for i in range(9) if i is odd %}{{ i }}{{ loop.first }}{% else %}none{% endfor %}",
    "loops over mappings": "{% for key, value in tool.items() %}{{ key }}={{ value }};{% endfor %}{{ tool | list }}",
    "nested loops": "{% for n in tree recursive %}{{ n.x }}{{ loop.depth }}{{ loop(n.c) }}{% endfor %}",
    "nothing to loop over": "{% for x in missing %}{{ x }}{% else %}none{% endfor %}{{ missing }}{{ none }}",
    "slices": "{{ messages[::-1] | length }}{{ 'abc'[1:] }}{{ 'abc'[::-1] }}{{ [1, 2, 3][:2] }}",
    "literals": "{{ [1, (2, 3), {'a': 4}] }}{{ (1,) }}{{ {} }}{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "operators": "{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 10 }}{{ -7 }}{{ 'a' * 3 }}{{ 1.5 * 2 }}{{ [1] + [2] }}{{ 'a' ~ 1 }}",
    "comparisons": "{{ 1 < 2 <= 2 }}{{ 'a' in 'abc' }}{{ 'z' not in tool }}{{ messages == [] }}{{ none is none }}",
    "printf": "{{ '**%s** %5.2f*%%' % ('a', 3.14159) }}{{ '%(a)s' % {'a': 1} }}{{ '%d-%s' | format(1700000000, 'x') }}",
    "format": "{{ '{} {:>8} {a[0]}'.format(1700000000, 'x', a=[3]) }}{{ '{b}'.format_map({'b': 2}) }}",
    "text": "{{ 'a b'.split(' ') }}{{ ' x '.strip() | upper }}{{ 'abab'.replace('a', 'cc') }}{{ 'x' | center(9) }}",
    "joins": "{{ messages | map(attribute='role') | join(', ') }}{{ '-'.join(['a', 'b']) }}",
    "JSON": "{{ tool | tojson }}{{ tool | tojson(indent=2) }}{{ messages | tojson }}",
    "macros": "{% macro f(x, y=2) %}<{{ x }}{{ y }}{{ caller() if caller }}>{% endmacro %}{{ f(1) }}"
    "{% call f(3) %}in{% endcall %}",
    "namespaces": "{% set ns = namespace(n=0, found=false) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}{{ ns.found }}",
    "mappings of two texts": "{{ dict(a=long, b=long).a }}",
    "blocks of text": "{% set t %}a{{ 1 }}{% endset %}{{ t }}{% filter upper %}b{% endfilter %}",
    "filters": "{{ [3, 1, 2] | sort }}{{ [1, 2] | sum }}{{ tool | dictsort }}{{ [1, 1] | unique | list }}"
    "{{ [1, 2, 3] | batch(2, 0) | list }}{{ 3.7 | int }}{{ '5' | int }}{{ x | default('d') }}",
    "tests": "{{ 10 is divisibleby(5) }}{{ 'a' is string }}{{ messages is iterable }}{{ tool is mapping }}",
    "large numbers": "{{ 1700000000000 }}{{ tool.get('x', 1700000000000) }}{{ x | default(1700000000) }}",
}


@pytest.mark.parametrize("source", HONEST.values(), ids=HONEST)
def test_an_honest_template_gives_the_text_that_jinja_gives(source: str) -> None:
    values: dict[str, Any] = {"tool": {"name": "f", "a": [1, None]}, "tree": [{"x": 1, "c": [{"x": 2, "c": []}]}]}
    values["long"] = "x" * 99999
    plain = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    plain.filters["tojson"] = to_json
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    expected = plain.from_string(source).render(messages=messages, **values)
    assert render(compile_template(source), messages, {}, **values) == expected and expected


def test_a_long_conversation_with_long_texts_is_rendered() -> None:
    source = "{% for m in messages if m.role == 'user' %}{{ m.content.split('</think>')[-1] | trim }}{% endfor %}"
    messages = [{"role": "user", "content": "word " * 100}] * 2000 + [{"role": "user", "content": "y" * 2_000_000}]
    assert len(render(compile_template(source), messages, {})) == 2000 * 499 + 2_000_000


def test_a_rendering_that_was_refused_leaves_the_next_one_its_whole_budget() -> None:
    template = compile_template("{% for i in range(n) %}{% for j in range(n) %}{% endfor %}{% endfor %}ok")
    with pytest.raises(InputError, match="computes too much"):
        render(template, MESSAGES, {}, n=99999)
    assert render(template, MESSAGES, {}, n=10) == "ok"
