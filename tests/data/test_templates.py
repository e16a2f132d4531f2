"""Chat templates: the text is transformers', and exactly the answers are supervised.

The templates are the short ones of tests/support/chats.py; test_stock_templates.py has
those of real models.
"""

import dataclasses
import re

import pytest

import jaxpeft
from jaxpeft.data import answers, encode, template
from tests.support import chats

pytest.importorskip("transformers")

# Conversations that a short template cannot show; transformers loses these texts.
LOST = {(name, "list") for name in chats.TEMPLATES if name != "parts"}
LOST |= {("parts", name) for name in chats.CONVERSATIONS if name != "list"}
LOST |= {
  (name, case)
  for name in chats.TEMPLATES
  for case in ("tools", "numbers", "text_tools")
  if name not in ("tools", "no_prompt", "repeated", "parts")
}


@pytest.mark.parametrize("case", chats.CONVERSATIONS)
@pytest.mark.parametrize("name", chats.TEMPLATES)
def test_an_answer_and_its_end_are_supervised(name, case):
  tok = chats.short(name)
  messages, tools = chats.CONVERSATIONS[case]
  if (name, case) in LOST:
    with pytest.raises(jaxpeft.InputError, match=r"not print|refuses|be found in"):
      tok.chat(messages, tools=tools)
    return
  want = chats.theirs(tok).apply_chat_template(
    messages, chat_template=tok.chat_template, tools=tools, tokenize=False
  )
  ids, mask = tok.chat(messages, tools=tools)
  expected = re.findall(chats.ANSWERS[name], want, re.DOTALL)
  if name == "endless":  # the template ends no conversation
    want, expected[-1] = want + "<eos>", expected[-1] + "<eos>"
  assert tok.decode(ids, skip_special=False) == want
  assert chats.supervised(tok, ids, mask) == expected


@pytest.mark.parametrize("name", [n for n in chats.TEMPLATES if n != "opened"])
def test_a_prompt_is_where_the_answer_begins(name):
  """Training goes on exactly from the tokens that generation starts with."""
  tok = chats.short(name)
  messages = chats.CONVERSATIONS["list" if name == "parts" else "one"][0][:2]
  prompt, mask = tok.chat(messages[:1], generation_prompt=True)
  whole, learned = tok.chat(messages)
  assert whole[: len(prompt)] == prompt
  assert learned.index(True) == len(prompt)
  assert not any(mask)


def chatml(**changes):
  return dataclasses.replace(chats.short("chatml"), **changes)


ONE = chats.CONVERSATIONS["one"][0]
GLOBALS = [
  "{{ strftime_now('%d %b %Y') }}",
  "{{ strftime_now is defined }}{{ strftime_now('%Y-%m-%dT%H:%M') }}",
  "{{ {'b': 'é<', 'a': [1, none]} | tojson }}",
  "{{ {'b': 'é<', 'a': [1]} | tojson(ensure_ascii=True, indent=3, sort_keys=True) }}",
  "{{ {'b': 1, 'a': [1]} | tojson(separators=(',', ':')) }}{{ [] | tojson(indent=2) }}",
  "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}x{% endfor %}",
  "{% set n = namespace(self=1, b='') %}{% for m in messages %}"
  "{% set n.b = n.b ~ m.role %}{% endfor %}{{ n.b }}{{ n['self'] }}",
  "{{ dict(a=1, **{'b': 2}) }}{{ dict.fromkeys([1], 2) }}",
  "{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}",
  "{% macro f(x) %}{{ x }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 3, z=4) }}",
  "{% set x %}  a{{ messages | length }}  {% endset %}{{ x | trim }}|{{ x }}",
  "{{ '%s-%03d' % ('a', 7) }}{{ '{:>5}|{x}'.format(3, x=4) }}{{ 2 ** 10 }}{{ 7 // 2 }}",
  "{{ messages | map(attribute='role') | join(', ') }}{{ messages[-1].content[:3] }}",
  "{% for m in messages if m.role == 'user' %}{{ loop.length }}{% endfor %}",
  "  {% if true %}\n  x\n  {%- endif %}\n\n  y\n",
  "{{ messages[0].reasoning_content }}{{ messages[1].nothing is defined }}",
]


@pytest.mark.parametrize("source", GLOBALS)
def test_templates_have_what_transformers_gives_them(source, monkeypatch):
  tok = chatml(chat_template=source)
  messages = [ONE[0] | {"thinking": "hm", "name": None}, ONE[1] | {"weight": 0}]
  want = chats.theirs(tok, monkeypatch).apply_chat_template(
    messages, chat_template=source, tokenize=False
  )
  ours = template.normalized(messages)
  assert template.render(source, ours, False, tok.special) == want


def test_keys_of_messages_that_no_template_knows_change_nothing():
  messages = [ONE[0], ONE[1] | {"weight": 1, "train": False, "x": {"y": [1.5]}}]
  assert chatml().chat(messages) == chatml().chat(ONE)


def test_conversations_with_tools_get_their_own_template():
  tok = chatml(tool_template=chats.TEMPLATES["tools"])
  assert "parameters" in tok.decode(tok.chat(ONE, tools=chats.TOOLS)[0])
  assert tok.chat(ONE)[0] == chatml().chat(ONE)[0]


def test_an_answer_that_is_printed_twice_is_refused():
  source = "{% for m in messages %}{{ m.content }};{{ m.content }}{% endfor %}"
  with pytest.raises(jaxpeft.InputError, match="message 1 is printed twice, or mixed"):
    chatml(chat_template=source).chat(ONE)


@pytest.mark.parametrize("role", ["{{ m.role[:3]", "<|im_start|>{{ m.role[:3]"])
def test_a_header_that_generation_never_sees_is_refused(role):
  source = chats.TEMPLATES["chatml"].replace("<|im_start|>{{ m.role", role)
  with pytest.raises(jaxpeft.InputError, match="does not follow the template's gener"):
    chatml(chat_template=source).chat(ONE)


def test_an_end_that_is_not_sure_is_refused():
  """The tag leaves out a special token, and the answer cannot be found by marks."""
  source = chats.TEMPLATES["tagged"].replace(
    "{{ m.content }}{% endg", "{{ m.content }}{{ m.content }}{% endg"
  )
  tok = chatml(chat_template=source)
  assert chats.supervised(tok, *tok.chat(ONE)) == ["Yes 1.Yes 1.<|im_end|>"]
  other = dataclasses.replace(tok, eos_ids=())
  with pytest.raises(jaxpeft.InputError, match=r"leaves out the token .*<\|im_end\|>"):
    other.chat(ONE)


def test_all_private_characters_in_use_are_refused():
  messages = [chats.user("\U000f0001"), chats.assistant("Yes")]
  tok = chatml()
  assert chats.supervised(tok, *tok.chat(messages)) == ["Yes<|im_end|>"]
  with pytest.raises(jaxpeft.InputError, match="private-use characters of both planes"):
    tok.chat([chats.user("\U000f0001\U00100001"), chats.assistant("Yes")])


def test_a_token_that_only_begins_in_an_answer_is_supervised():
  offsets = [(0, 2), (2, 4), (4, 4), (4, 6), (6, 8)]
  assert list(answers._touched(offsets, [(3, 5)])) == [1, 2, 3]


def test_a_row_with_tools_is_encoded_with_them():
  messages, tools = chats.CONVERSATIONS["tools"]
  tok = chatml(chat_template=chats.TEMPLATES["tools"])
  row = {"messages": messages, "tools": tools}
  (example,) = encode.encode([row], tok, 4096, "completion").examples
  assert example.tokens.tolist() == tok.chat(messages, tools=tools)[0]
