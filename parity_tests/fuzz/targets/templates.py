"""Chat templates: mutated, and made of expressions that cost time, memory or depth, or reach for Python's insides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from ..mutations import mutate_text
from .artifacts import open_settings
from .base import Target, named

TEMPLATE = "chat_template.jinja"
COUNTS = ("0", "1", "3", "-1", "1000", "10**6", "10**9", "10**12", "2**63", "10**400", "1e308", "'9'", "none", "1/0")
ATOMS = (
    *("messages", "messages[0]", "messages[0].content", "messages[-1]['role']", "x", "'ab'", "''", "[]", "{}", "none"),
    *(
        "true",
        "loop",
        "loop.cycle",
        "self",
        "namespace()",
        "dict",
        "range",
        "tools",
        "eos_token",
        "'%s'",
        "'{}'",
        "'a'*N",
    ),
    *(
        "range(N)",
        "(1,)*N",
        "[[1]]*N",
        "10**N",
        "2**N**N",
        "1<<3",
        "''.__class__",
        "x.__init__.__globals__",
        "cycler(1,2)",
    ),
    *("lipsum(n=N)", "joiner()", "strftime_now('%Y')", "strftime_now('%'*N)", "strftime_now('%' ~ N ~ 'Y')", "N"),
    *("raise_exception('no')", "raise_exception(A)", "caller()", "super()", "varargs", "'ab'.join"),
)
WRAPS = (
    *("(A)|length", "(A)|list", "(A)|string", "(A)|center(N)", "(A)|indent(N)", "(A)|wordwrap(N)", "(A)|truncate(N)"),
    *("(A)|batch(N)|list", "(A)|batch(N, 'x')|list", "(A)|slice(N)|list", "(A)|join('x'*N)", "(A)|replace('a', 'a'*N)"),
    *(
        "(A)|tojson",
        "(A)|tojson(indent=N)",
        "(A)|pprint",
        "(A)|urlize",
        "(A)|xmlattr",
        "(A)|filesizeformat",
        "(A)|round(N)",
    ),
    *(
        "(A)|sort",
        "(A)|unique|list",
        "(A)|groupby('role')|list",
        "(A)|map('upper')|list",
        "(A)|sum",
        "(A)|first",
        "(A)|last",
    ),
    *("(A)|reverse|list", "(A)|int(N)", "(A)|float", "(A)|abs", "(A)|attr('__class__')", "(A)|format(A)", "(A)|escape"),
    *("(A)|map(attribute='__class__')|list", "(A)|select('eq', A)|list", "(A)|random", "(A)|striptags", "(A)|title"),
    *("(A)|default(A)", "(A)|items|list", "(A)|dictsort", "(A)|min", "(A)|max", "(A)|wordcount", "(A)|trim(A)"),
    *("(A).center(N)", "(A).ljust(N)", "(A).zfill(N)", "(A).expandtabs(N)", "(A).format(A)", "(A).replace('', A)"),
    *("(A).join(A)", "(A).split(A)", "(A).encode()", "(A).translate({97: 'x'*99})", "(A).format_map(A)", "(A).upper()"),
    *(
        "(A).__class__",
        "(A)['__class__']",
        "(A).mro()",
        "(A).append(A)",
        "(A).update(A)",
        "(A)[N]",
        "(A)[::N]",
        "(A)(A)",
    ),
    *("'%Nd' % (A)", "'%.Nf' % (A)", "'{:>N}'.format(A)", "'{:N}'.format(1)", "'{0.__class__}'.format(A)", "(A) ~ (A)"),
    *("(A) + (A)", "(A) * (A)", "(A) ** (A)", "(A) % (A)", "(A) // (A)", "(A) in (A)", "(A) < (A)", "not (A)", "-(A)"),
    *("(A) if (A) else (A)", "(A) is iterable", "(A) is sameas(A)", "(A) is divisibleby(N)", "{A: A}", "[A, A]"),
)
STATEMENTS = (
    *(
        "{{ A }}",
        "{{ A }}{{ A }}",
        "{% set x = A %}",
        "{% for i in A %}S{% endfor %}",
        "{% if A %}S{% else %}S{% endif %}",
    ),
    *(
        "{% for i in range(N) %}S{% endfor %}",
        "{% for i in range(N) %}{% for j in range(N) %}S{% endfor %}{% endfor %}",
    ),
    *("{% for i in A recursive %}{{ loop(A) }}{% endfor %}", "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(A) }}"),
    *("{% macro m(x) %}S{{ m(A) }}{{ m(A) }}{% endmacro %}{{ m(A) }}", "{% set x %}S{% endset %}{{ x * N }}"),
    *("{% set ns = namespace(v='ab') %}{% for i in range(N) %}{% set ns.v = ns.v ~ ns.v %}{% endfor %}{{ ns.v }}",),
    *("{% set ns = namespace(v=[1]) %}{% for i in range(N) %}{% set ns.v = [ns.v, ns.v] %}{% endfor %}{{ ns.v }}",),
    *("{% set ns = namespace(v=3) %}{% for i in range(N) %}{% set ns.v = ns.v * ns.v %}{% endfor %}{{ ns.v }}",),
    *("{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}", "{% block b %}S{% endblock %}{{ self.b() }}"),
    *(
        "{% block b %}{{ self.b() }}{% endblock %}",
        "{% call A %}S{% endcall %}",
        "{% filter center(N) %}S{% endfilter %}",
    ),
    *(
        "{% generation %}S{% endgeneration %}",
        "{% break %}",
        "{% for i in A %}{% continue %}{% endfor %}",
        "{% raw %}S",
    ),
    *(
        "{% with x = A %}S{% endwith %}",
        "{% autoescape true %}S{% endautoescape %}",
        "{% do A %}",
        "{# S",
        "{% set A = A %}",
    ),
    *(
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "text",
        "<|image_pad|>",
        "{{ '<|image_pad|>' * N }}",
        "{{",
        "%}",
    ),
)
DEEP = (  # before, what is repeated, the middle, what is repeated, after
    ("{{ ", "(", "1", ")", " }}"),
    ("{{ ", "[", "", "]", " }}"),
    ("{{ ", "-", "1", "", " }}"),
    ("{{ ", "not ", "1", "", " }}"),
    ("{{ x", ".x", "", "", " }}"),
    ("{{ 1", "|abs", "", "", " }}"),
    ("{{ 1", " + 1", "", "", " }}"),
    ("", "{% if 1 %}", "x", "{% endif %}", ""),
    ("", "{% for i in [1] %}", "x", "{% endfor %}", ""),
)


def expression(random: Random, depth: int = 0) -> str:
    form = random.choice(ATOMS if depth > 3 or random.random() < 0.3 else WRAPS)
    return fill(random, form, depth)


def statement(random: Random, depth: int = 0) -> str:
    return fill(random, random.choice(STATEMENTS) if depth < 4 else "{{ i }}", depth)


def fill(random: Random, form: str, depth: int) -> str:
    """The form with A replaced by an expression, S by a statement and N by a number."""
    parts = []
    for index, character in enumerate(form):
        alone = not (form[index - 1 : index] + form[index + 1 : index + 2]).isalpha()
        if character == "A" and alone:
            parts.append(expression(random, depth + 1))
        elif character == "S" and alone:
            parts.append(statement(random, depth + 1))
        elif character == "N":
            count = random.choice(COUNTS)
            parts.append(
                count if not form.startswith(("'%", "'{")) else count.strip("'").replace("10**", "1" + "0" * 6)
            )
        else:
            parts.append(character)
    return "".join(parts)


def deep(random: Random) -> str:
    """A template that is nested deeply, by brackets or by blocks."""
    depth = random.choice((20, 99, 500, 20_000))
    before, opening, middle, closing, after = random.choice(DEEP)
    return before + opening * depth + middle + closing * depth + after


class Templates(Target):
    name, inputs = "templates", 250

    def __init__(self, artifact: Path) -> None:
        super().__init__(artifact)
        self.text = (artifact / TEMPLATE).read_text("utf-8")

    def make(self, random: Random) -> bytes:
        choice = random.random()
        if choice < 0.04:
            text = deep(random)
        elif choice < 0.7:
            text = "".join(statement(random) for _ in range(random.choice((1, 1, 2, 3))))
            text = random.choice((text, text + self.text, self.text + text))
        else:
            text = mutate_text(random, self.text, [statement(random) for _ in range(6)])
        return named(TEMPLATE, text.encode("utf-8", "surrogatepass"))

    def open(self, box: Path) -> Callable[[bytes], object]:
        return open_settings(self.artifact, box)
