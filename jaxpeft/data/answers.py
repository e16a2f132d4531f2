"""Finds what the assistant said in a conversation: the tokens that the loss supervises.

A template may mark it with {% generation %}. Most templates do not: see `spans`. An
answer is supervised together with the token that ends it, or the model never stops.
"""

import json

from jaxpeft.data import marks, spans, template
from jaxpeft.errors import InputError


def chat(tokenizer, messages, generation_prompt: bool = False, tools=None):
  """(ids, supervised): the tokens of a conversation, and which the assistant wrote.

  If the conversation ends with an answer that the template leaves without any end
  token, the tokenizer's first end-of-text token is added and supervised.

  Args:
    tokenizer: a `Tokenizer` with a chat template.
    messages: list of {"role", "content", ...}, as transformers accepts it.
    generation_prompt: whether to end with the header of the assistant's next turn. Such
      a text is a prompt; nothing of it is supervised.
    tools: JSON schemas of functions that the assistant may call, or None.
  Raises:
    InputError: the template fails, or an answer's tokens cannot be found for certain.
  """
  source, special = tokenizer.template_for(tools), tokenizer.special
  messages, tools = template.normalized(messages), template.plain(tools)
  text = template.render(source, messages, generation_prompt, special, tools)
  encoding = tokenizer.encoding(text)
  ids, supervised = encoding.ids, [False] * len(encoding.ids)
  if generation_prompt:
    return ids, supervised
  used = json.dumps([messages, tools], ensure_ascii=False, default=str)
  characters = template.private_characters(len(messages) + 2, source, used)
  this = spans.Chat(source, special, messages, tools, text, tokenizer, characters)
  answers = _answers(this)
  for i in _touched(encoding.offsets, answers):
    supervised[i] = True
  if messages[-1]["role"] == "assistant" and answers and not _closed(this, answers[-1]):
    ids = [*ids, *tokenizer.eos_ids[:1]]
    supervised += [True] * (len(ids) - len(supervised))
  return ids, supervised


def _touched(offsets, answers):
  """Yields the numbers of tokens with a character of an answer, if only their first.

  Args:
    offsets: [(start, end)] of the tokens, in characters.
    answers: [(start, end)], in characters.
  """
  for a, b in answers:
    touched = [i for i, (start, end) in enumerate(offsets) if a < end and start < b]
    # From the first to the last: a token between them may have an empty offset.
    yield from range(touched[0], touched[-1] + 1) if touched else ()


def _answers(this: spans.Chat) -> list[tuple[int, int]]:
  """The answers with their end tokens, [(start, end)] in characters of the text."""
  if "generation" in this.source:
    start, end = this.characters[:2]
    text, found = marks.take(
      this.render(this.messages, tags=(start, end)), [start, end]
    )
    if found and text == this.text:
      spans.check_printed(this)
      starts, ends = ([at for at, which in found if which == k] for k in (0, 1))
      tagged = [(a, b) for a, b in zip(starts, ends, strict=True) if a < b]
      return tagged if all(_ends(this, x) for x in tagged) else _completed(this, tagged)
  return spans.find(this)


def _completed(this: spans.Chat, tagged) -> list[tuple[int, int]]:
  """What {% generation %} marks, with the end tokens that the template left out.

  Raises:
    InputError: a special token follows, and nothing proves that it is the end.
  """
  try:
    whole = spans.find(this)
  except InputError:
    whole = None
  out = []
  for a, b in tagged:
    start, end, token = next((t for t in this.tokens if t[0] >= b), (b, b, None))
    if end > b and not _ends(this, (a, b)) and not this.text[b:start].strip():
      if token in this.eos_ids or any(c < b and end <= d for c, d in whole or ()):
        b = end
      elif whole is None:
        raise InputError(
          "the chat template's {% generation %} leaves out the token that ends an "
          f"answer, perhaps {this.text[start:end]!r}; put {{% endgeneration %}} after "
          "that"
        )
    out.append((a, b))
  return out


def _ends(this: spans.Chat, answer) -> bool:
  """Whether an answer ends with a special token, or with space after one."""
  a, b = answer
  end = a + len(this.text[a:b].rstrip())
  return any(stop == end for _, stop, _ in this.tokens)


def _closed(this: spans.Chat, answer) -> bool:
  """Whether an answer ends with a special token, or one comes anywhere after it."""
  return _ends(this, answer) or any(start >= answer[1] for start, _, _ in this.tokens)
