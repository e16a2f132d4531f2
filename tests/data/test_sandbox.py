"""A chat template can neither run for ever, nor fill the memory, nor run code."""

import pytest

import jaxpeft
from jaxpeft.data import sandbox, template

MESSAGES = [{"role": "user", "content": "Hi?"}]
_AGAIN = "{% for i in range(99999) %}"
_GROW = "{% set n = namespace(x='aa', y=1) %}{% for i in range(60) %}"
# Each would take hours, or more than a machine's memory; none may try it first.
ENDLESS = {
  "range": "{% for i in range(999999999) %}{% endfor %}",
  "nested": f"{_AGAIN}{_AGAIN}{{% endfor %}}{{% endfor %}}",
  "filtered": _AGAIN + "{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
  "calls": "{% macro f(n) %}{{ n and f(n-1) ~ f(n-1) }}{% endmacro %}{{ f(60) }}",
  "times": "{{ 'a' * 10**11 }}",
  "list times": "{{ 10**11 * [0] }}",
  "plus": _GROW + "{% set n.x = n.x + n.x %}{% endfor %}",
  "concat": _GROW + "{% set n.x = n.x ~ n.x %}{% endfor %}",
  "capture": _GROW + "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
  "list": _GROW + "{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.y }}",
  "tuple": _GROW + "{% set n.y = (n.y, n.y) %}{% endfor %}{{ n.y | string }}",
  "dict": _GROW + "{% set n.y = {1: n.y, 2: n.y} %}{% endfor %}{{ n.y | tojson }}",
  "dict()": _GROW + "{% set n.y = dict(a=n.y, b=n.y) %}{% endfor %}{{ n.y }}",
  "fromkeys": _GROW + "{% set n.y = dict.fromkeys([1, 2], n.y) %}{% endfor %}{{ n.y }}",
  "varargs": _GROW
  + "{% macro m() %}{% set n.y = varargs %}{% endmacro %}{{ m(n.y, n.y) }}{% endfor %}",
  "ljust": "{{ 'a'.ljust(10**10) }}",
  "center": "{{ 'a' | center(10000000000) }}",
  "indent": "{{ ('a\n' * 100000) | indent(9999) }}",
  "replace": "{{ ('a' * 999999).replace('a', 'b' * 999999) }}",
  "replace filter": "{{ ('a' * 999999) | replace('a', 'b' * 999999) }}",
  "join": "{{ ('b' * 999999).join(('a,' * 99999).split(',')) }}",
  "join filter": "{{ ('a,' * 99999).split(',') | join('b' * 999999) }}",
  "tabs": "{{ ('\t' * 999999).expandtabs(999999) }}",
  "translate": "{{ ('a' * 999999).translate({97: 'b' * 999999}) }}",
  "bytes": "{{ (5).to_bytes(10**10, 'big') }}",
  "power": "{{ 2 ** (2**40) }}",
  "product": _GROW.replace("y=1", "y=3") + "{% set n.y = n.y * n.y %}{% endfor %}",
  "width %": "{{ '%1000000000d' % 1 }}",
  "width *": "{{ '%*d' % (1000000000, 1) }}",
  "width format": "{{ '{:>1000000000}'.format(1) }}",
  "width nested": "{{ '{:{w}}'.format(1, w=1000000000) }}",
  "width filter": "{{ '%1000000000d' | format(1) }}",
  "formats": "{{ ('%(a)s' * 99999) % {'a': 'b' * 999999} }}",
  "fields": "{{ ('{a}' * 99999).format(a='b' * 999999) }}",
  "shared": "{{ [['a' * 999] * 999] * 999 }}",
  "batch": "{{ [1] | batch(10**9, 0) | list }}",
  "slice": "{{ [1] | slice(10**9) | list }}",
  "tojson": "{{ range(99999) | list | tojson(indent=10**9) }}",
  "round": "{{ 2.5 | round(10**9, 'ceil') }}",
  "sum": "{{ range(99999) | map('list') | sum(start=[]) }}",
  "copies": "{% set s = 'a' * 3999999 %}"
  + _AGAIN
  + "{% set x = s[::-1] %}{% endfor %}",
  "generators": _AGAIN
  + "{% set x = range(99999) | map(attribute='a') | list %}{% endfor %}",
}
# Each is an error of Python's.
BROKEN = {
  "recursive": "{% for x in [0] * 999 recursive %}{{ loop([0] * 999) }}{% endfor %}",
  "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
  "division": "{{ 1 / 0 }}",
  "index": "{{ 'abc'.index('z') }}",
  "parentheses": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
  "lists": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
  "sum": "{{ " + "+".join(["1"] * 50000) + " }}",
  "blocks": "{% if true %}" * 3000 + "{% endif %}" * 3000,
  "loops": "{% for i in [1] %}" * 60 + "{% endfor %}" * 60,
  "syntax": "{% for %}",
  "include": "{% include 'x' %}",
  "long": "a" * (sandbox.MAX_SOURCE + 1),
  "code": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
  "underscore": "{% set n = namespace(_x=1) %}",
  "random": "{{ [1, 2] | random }}",
  "lipsum": "{{ lipsum() }}",
  "digits": "{{ 10**5000 }}",
}


def render(source, messages=MESSAGES):
  return template.render(source, messages, False, {})


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_is_stopped(name):
  with pytest.raises(jaxpeft.InputError, match="the chat template was stopped"):
    render(ENDLESS[name])


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_template_is_one_error(name):
  with pytest.raises(jaxpeft.InputError, match="the chat template"):
    render(BROKEN[name])


def test_the_budget_is_each_rendering_s_own():
  source = "{% for i in range(60000) %}{{ i }}{% endfor %}"
  for _ in range(3):
    assert len(render(source)) == 288_890


def test_long_conversations_are_no_attack():
  """A thousand messages, or a text of half a million characters."""
  source = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}"
    "{{ m.content | trim }}{% endif %}{{ '<|im_end|>' + '\n' }}{% endfor %}"
  )
  assert render(source, [{"role": "user", "content": "Hi? " * 100}] * 1000)
  long = [{"role": "user", "content": "a b " * 125_000}, *MESSAGES * 100]
  assert len(render(source, long)) > 500_000
