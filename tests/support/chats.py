"""Conversations, short chat templates and tokenizers that fit them, for tests."""

# ruff: noqa: RUF001  (DeepSeek's special tokens have fullwidth bars)

import dataclasses
import datetime
import re

import tokenizers

from jaxpeft import assets
from jaxpeft.data import template, tokenizer

SPECIAL = re.compile(
  r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>|</?s>|<(?:start|end)_of_turn>|\[gMASK\]"
  r"|<\|turn>|<turn\|>|<end_of_utterance>|<bos>|<eos>|<sop>|<\|channel>|<channel\|>"
  r"|<\|?tool_(?:call|response)\|?>"
)


def user(text):
  return {"role": "user", "content": text}


def assistant(text, **more):
  return {"role": "assistant", "content": text, **more}


def as_list(messages):
  return [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]


def call(arguments):
  function = {"name": "add", "arguments": arguments}
  calls = [{"type": "function", "id": "abcdefghi", "function": function}]
  return {"role": "assistant", "content": "", "tool_calls": calls}


_RESULT = {"role": "tool", "content": "7", "tool_call_id": "abcdefghi", "name": "add"}
_NUMBER = {"type": "integer", "description": "A number."}
TOOLS = [
  {
    "type": "function",
    "function": {
      "name": "add",
      "description": "Adds.",
      "parameters": {"type": "object", "properties": {"a": _NUMBER, "b": _NUMBER}},
    },
  }
]
_ONE = [user("Hi?"), assistant("Yes 1.")]
_TWO = [*_ONE, user("And?"), assistant("  No 2.\n")]
_SYSTEM = {"role": "system", "content": "Be brief."}
_SUM = "3+four?"
# name -> (messages, tools)
CONVERSATIONS = {
  "one": (_ONE, None),
  "two": (_TWO, None),
  "three": ([*_TWO, user("So?"), assistant("<b>Well</b> 3")], None),
  "system": ([_SYSTEM, *_TWO], None),
  "list": (as_list(_TWO), None),
  "think": (
    [
      user("Hi?"),
      assistant("<think>\nfirst\n</think>\n\nYes 1."),
      user("And?"),
      assistant("<think>\nmore\n</think>\n\nNo 2."),
    ],
    None,
  ),
  "reason": (
    [
      user("Hi?"),
      assistant("Yes 1.", reasoning_content="first"),
      user("And?"),
      assistant("No 2.", reasoning_content="more"),
    ],
    None,
  ),
  "tools": (
    [user(_SUM), call({"a": 3, "b": "four"}), _RESULT, assistant("It is 7.")],
    TOOLS,
  ),
  "numbers": ([user(_SUM), call({"a": 3}), _RESULT, assistant("It is 7.")], TOOLS),
  "text_tools": ([user(_SUM), call('{"a": 3}'), _RESULT, assistant("It is 7.")], TOOLS),
}

_HEAD = "{{ bos_token }}{% for m in messages %}"
_TAIL = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_ASK = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
# Short templates, one for each difficulty.
TEMPLATES = {
  "chatml": f"{_HEAD}{_ASK}{_TAIL}",
  # Qwen 3: only the last answer shows its reasoning, and an empty one if it has none.
  "think": (
    "{% for m in messages %}{% if m.role != 'assistant' %}" + _ASK + "{% else %}"
    "{% set c = m.content.split('</think>')[-1].lstrip('\\n') %}"
    "{% set r = m.reasoning_content or '' %}"
    "{% if '</think>' in m.content %}{% set r = m.content.split('</think>')[0]"
    ".split('<think>')[-1].strip() %}{% endif %}<|im_start|>assistant\n"
    "{% if loop.last %}<think>\n{{ r }}\n</think>\n\n{% endif %}{{ c }}<|im_end|>\n"
    "{% endif %}" + _TAIL
  ),
  # Gemma, Llama 3: contents are trimmed, and the role has another name.
  "trim": (
    "{% for m in messages %}{% set r = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + r + '\n' + m.content | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{{ '<start_of_turn>model\n' if add_generation_prompt else '' }}"
  ),
  # Llama 2: headers are plain text, and there is no generation prompt.
  "plain": (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }} </s>{% endif %}{% endfor %}"
  ),
  # gpt-oss: the last answer ends with another token, and more follows the header.
  "return": (
    "{% for m in messages %}<|start|>{{ m.role }}{{ '<|channel|>final' if m.role == "
    "'assistant' }}<|message|>{{ m.content }}{{ '[END]' if loop.last and not "
    "add_generation_prompt else '<|end|>' }}{% endfor %}"
    "{{ '<|start|>assistant' if add_generation_prompt }}"
  ),
  # GLM: the next turn's header ends an answer, and nothing ends the last one.
  "endless": (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{{ '<|assistant|>' if add_generation_prompt }}"
  ),
  # The tag leaves out the end token, as in templates that were made for masks only.
  "tagged": (
    _HEAD
    + "{% if m.role != 'assistant' %}"
    + _ASK
    + "{% else %}<|im_start|>assistant\n"
    "{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n{% endif %}" + _TAIL
  ),
  "tools": (
    "{% if tools %}{{ tools | tojson(indent=2) }}\n{% endif %}{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
    "<call>{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}"
    "</call>{% endfor %}<|im_end|>\n" + _TAIL
  ),
  # DeepSeek R1: generation begins in the reasoning, which answers do not show.
  "opened": _HEAD + _ASK + _TAIL.replace("assistant\n", "assistant\n<think>\n"),
  "parts": (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}"
    "{{ p.text }}{% endfor %}<|im_end|>\n" + _TAIL
  ),
}
# Gemma 4 for diffusion: no generation prompt after a tool's result, but a header.
TEMPLATES["no_prompt"] = TEMPLATES["tools"].replace(
  "{% if add_generation_prompt",
  "{% if messages[-1].role != 'tool' and add_generation_prompt",
)
# Gemma 4: a tool's result repeats the name in the call.
TEMPLATES["repeated"] = TEMPLATES["tools"].replace(
  "{{ m.role }}\n",
  "{{ m.role }}\n{{ messages[1].tool_calls[0].function.name if m.role == 'tool' }}",
)
_CHATML = r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)"
# What is supervised, in the text that transformers renders.
ANSWERS = {
  **dict.fromkeys(TEMPLATES, _CHATML),
  "opened": r"<\|im_start\|>assistant\n(?:<think>\n)?(.*?<\|im_end\|>)",
  "trim": r"<start_of_turn>model\n(.*?<end_of_turn>)",
  "plain": r"\[/INST\](.*?</s>)",
  "return": r"<\|start\|>assistant(.*?(?:<\|end\|>|\[END\]))",
  "endless": r"<\|assistant\|>(.*?(?:<\|user\|>|<\|tool\|>|\Z))",
}


def make_tokenizer(source: str, bos: str | None, ends) -> tokenizer.Tokenizer:
  """A byte-level tokenizer with the special tokens that a template names.

  Args:
    source: the template.
    bos: the token that begins a text, or None.
    ends: tokens at which generation stops; the first is eos_token.
  """
  base = tokenizer.load(assets.TINY)
  core = tokenizers.Tokenizer.from_str(base.core.to_str())
  found = {*SPECIAL.findall(source), *ends, "<|user|>", "<|tool|>", "<|assistant|>"}
  core.add_special_tokens(sorted(found | ({bos} if bos else set())))
  return dataclasses.replace(
    base,
    core=core,
    eos_ids=tuple(core.token_to_id(end) for end in ends),
    chat_template=source,
    special={"eos_token": ends[0]} | ({"bos_token": bos} if bos else {}),
  )


def short(name: str) -> tokenizer.Tokenizer:
  """A tokenizer with one of the short templates."""
  source = TEMPLATES[name]
  ends = {"trim": ["<eos>"], "plain": ["</s>"], "return": ["[END]"]}
  ends |= {"endless": ["<eos>", "<|user|>", "<|tool|>"]}
  return make_tokenizer(source, "<bos>", ends.get(name, ["<|im_end|>"]))


def theirs(tok: tokenizer.Tokenizer, monkeypatch=None):
  """The tokenizer in transformers; their clock shows our date."""
  import transformers
  from transformers.utils import chat_template_utils

  class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
      return template.DATE

  if monkeypatch:
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
  return transformers.PreTrainedTokenizerFast(tokenizer_object=tok.core, **tok.special)


def supervised(tok: tokenizer.Tokenizer, ids, mask) -> list[str]:
  """The text of each run of supervised tokens."""
  runs: list[list[int]] = []
  for i, (token, learned) in enumerate(zip(ids, mask, strict=True)):
    if learned and (i == 0 or not mask[i - 1]):
      runs.append([])
    if learned:
      runs[-1].append(token)
  return [tok.decode(run, skip_special=False) for run in runs]
