"""Turns rows of text into tokens and a mask of those that the loss supervises."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from jaxpeft.data import contents, examples, formats, segments
from jaxpeft.data.examples import Counts, Examples
from jaxpeft.data.examples import Example as Example  # where it used to be
from jaxpeft.data.files import Placed
from jaxpeft.errors import InputError

# Rows that are tokenized at once, on all cores: at most so many, and so many characters
# (a token in the tokenizer's hands takes over 100 bytes).
_ROWS, _CHARACTERS = 512, 2**18


@dataclasses.dataclass(frozen=True)
class Encoded:
  """The examples of a data set, and how many were cut or dropped."""

  examples: Examples
  counts: Counts

  @property
  def truncated(self) -> int:
    """Examples longer than max_tokens, cut at the end."""
    return self.counts.truncated

  @property
  def dropped(self) -> int:
    """Examples without any supervised token, which are not in `examples`."""
    return self.counts.dropped

  def summary(self, source) -> str:
    """One line for the log that counts the examples and tokens of `source`."""
    c = self.counts
    line = (
      f"{source}: {len(self.examples)} examples, {c.tokens} tokens, "
      f"{c.supervised} supervised"
    )
    for count, what in (
      (c.truncated, "cut to max_tokens"),
      (c.dropped, "left out: no supervised token remained"),
      (c.unanswered, "conversations have no turn of the assistant"),
      (c.silent, "have a blank answer, and teach to say nothing"),
      (c.ties, "ties left out: their answers are equal"),
      (c.long, "preferences longer than data.max_tokens left out"),
    ):
      line += f"; {count} {what}" if count else ""
    return line


def encode(
  rows: Iterable,
  tokenizer,
  max_tokens: int,
  loss_on: str,
  source="data",
  into=None,
  report: Callable[[Placed], Any] | None = None,
) -> Encoded:
  """Examples from rows in any of the forms of `formats`.

  The prompt's tokens are exactly those from which generation starts. Prompt and
  completion are tokenized together, since Llama 2's tokenizer would put an additional
  space before a completion of its own. If that would change the prompt's tokens, they
  are tokenized separately.

  Args:
    rows: dicts; or `Placed` rows, which know their places.
    tokenizer: a `Tokenizer`.
    max_tokens: longer examples are cut at the end.
    loss_on: which tokens the loss supervises: "completion" or "all".
    source: name of the data, for messages.
    into: takes the examples: an `examples.Files`; None holds them in memory.
    report: called with the last of some rows, after they were tokenized.
  Raises:
    InputError: `loss_on` is invalid; a row has no known form; or no example has a
      supervised token.
  """
  if loss_on not in ("completion", "all"):
    raise InputError(f"data.loss_on is {loss_on!r}; it must be 'completion' or 'all'")
  into = examples.Memory() if into is None else into
  counts, number, unanswered = Counts(), 0, None
  for some in _some(rows, source):
    number += len(some)
    found = list(_encode(some, tokenizer))
    for placed, form, row, texts in some:
      replies = _replies(form, row, texts)
      if replies == [] and unanswered is None:
        unanswered = placed.place
      counts = counts._replace(
        unanswered=counts.unanswered + (replies == []),
        silent=counts.silent + bool(replies and not any(x.strip() for x in replies)),
      )
    counts = _add(into, found, counts, max_tokens, loss_on == "all")
    if report:
      report(some[-1][0])
  if not counts.supervised and counts.unanswered == number:
    raise InputError(
      f"{unanswered}: the conversation has no turn of the assistant, and nor has any "
      "other: there is no answer to learn. Add them, or set data.loss_on='all'"
    )
  if not counts.supervised:
    raise InputError(
      f"{source}: no supervised token in {number} examples. Raise data.max_tokens "
      f"({max_tokens}) if the prompts alone are longer, or set data.loss_on='all'"
    )
  return Encoded(into.finish(counts), counts)


def _some(rows: Iterable, source) -> Iterator[list[tuple[Placed, str, dict, tuple]]]:
  """Lists of checked rows: (placed, form, row in that form, its texts)."""
  out, size = [], 0
  for number, row in enumerate(rows, 1):
    placed = row if isinstance(row, Placed) else None
    placed = placed or Placed(f"{source}, row {number}", row, 0.0)
    form, row = formats.checked(placed.row, placed.place)
    own = form in ("messages", segments.FIELD)  # its text is not in two pieces
    try:
      texts = () if own else formats.prompt_and_completion(row, form)
    except InputError as e:
      raise InputError(f"{placed.place}: {e}") from e
    out.append((placed, form, row, texts))
    size += sum(map(len, texts)) if texts else len(str(row[form]))
    if len(out) >= _ROWS or size >= _CHARACTERS:
      yield out
      out, size = [], 0
  if out:
    yield out


def _replies(form: str, row: dict, texts: tuple) -> list[str]:
  """What a row has the model say; a call of a tool and segments count as text."""
  if texts:
    return [texts[1]]
  if form != "messages":
    return ["segments"]
  replies = [m for m in row["messages"] if m["role"] in ("assistant", "model")]
  return [str(m.get("tool_calls") or "") + _text(m.get("content")) for m in replies]


def _text(content) -> str:
  """The text of a message's content, which may be a list of parts."""
  parts = content if isinstance(content, list) else [content]
  parts = [x.get("text", x) if isinstance(x, dict) else x for x in parts]
  return "".join(str(x or "") for x in parts)


def _encode(some, tokenizer) -> Iterator[tuple[list[int], list[bool]]]:
  """(ids, supervised) of each row, for a loss on the completion."""
  pairs = iter(together([t for _, _, _, t in some if t], tokenizer))
  rows = [row[form] for _, form, row, _ in some if form == segments.FIELD]
  transcripts = iter(segments.encode_all(rows, tokenizer))
  for placed, form, row, _ in some:
    if form == "messages":
      yield conversation(row["messages"], row["tools"], tokenizer, placed.place)
      continue
    if form == segments.FIELD:
      yield next(transcripts)
      continue
    ids, prompt = next(pairs)
    yield ids, [i >= prompt for i in range(len(ids))]


def together(pairs, tokenizer) -> list[tuple[list[int], int]]:
  """(ids with the end of text, how many of them are the prompt's) of each pair.

  Args:
    pairs: (prompt, completion), texts.
    tokenizer: a `Tokenizer`.
  """
  befores = tokenizer.encode_all([a for a, _ in pairs], bos=True)
  wholes = tokenizer.encode_all([a + b for a, b in pairs], bos=True)
  out = []
  for prompt, whole, pair in zip(befores, wholes, pairs, strict=True):
    fits = whole[: len(prompt)] == prompt
    completion = whole[len(prompt) :] if fits else tokenizer.encode(pair[1])
    out.append((prompt + completion + list(tokenizer.eos_ids[:1]), len(prompt)))
  return out


def conversation(messages, tools, tokenizer, place: str, generation_prompt=False):
  """(ids, supervised) of a conversation, see `answers.chat`; errors name its place."""
  try:
    source = tokenizer.template_for(tools)
    messages = contents.for_template(messages, source, tokenizer.special)
    return tokenizer.chat(messages, generation_prompt, tools)
  except InputError as e:
    raise InputError(f"{place}: {e}") from e


def _add(into, found, counts, max_tokens: int, everything: bool) -> Counts:
  """Hands some examples over, cut, and counts them."""
  kept, truncated, dropped = [], 0, 0
  for ids, learn in found:
    truncated += len(ids) > max_tokens
    learned = np.array(learn[:max_tokens], bool)
    learned = learned | everything
    learned[:1] = False
    if learned.any():
      kept.append((np.array(ids[:max_tokens], np.int32), learned))
    else:
      dropped += 1
  counts = counts._replace(
    truncated=counts.truncated + truncated, dropped=counts.dropped + dropped
  )
  if not kept:
    return counts
  tokens, supervised = map(np.concatenate, zip(*kept, strict=True))
  lengths = np.array([len(ids) for ids, _ in kept])
  into.add((tokens, supervised, counts.tokens + np.cumsum(lengths, dtype=np.int64)))
  return counts._replace(
    tokens=counts.tokens + len(tokens),
    supervised=counts.supervised + int(supervised.sum()),
    longest=max(counts.longest, int(lengths.max())),
    largest=max(counts.largest, int(tokens.max())),
  )
