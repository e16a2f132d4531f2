"""Turns rows of text into tokens and a mask of those that the loss supervises."""

import dataclasses
from typing import NamedTuple

import numpy as np

from jaxpeft.data import sources
from jaxpeft.errors import InputError


class Example(NamedTuple):
  """The tokens of one text, and which of them the loss supervises."""

  tokens: np.ndarray  # int32[n]
  supervised: np.ndarray  # bool[n]; False at first, since nothing predicts it


@dataclasses.dataclass(frozen=True)
class Encoded:
  """The examples of a data set, and how many were cut or dropped."""

  examples: list[Example]
  truncated: int  # examples longer than max_tokens, cut at the end
  dropped: int  # examples without any supervised token, which are not in `examples`

  def summary(self, source) -> str:
    """One line for the log that counts the examples and tokens of `source`."""
    tokens = sum(len(e.tokens) for e in self.examples)
    learned = sum(int(e.supervised.sum()) for e in self.examples)
    line = (
      f"{source}: {len(self.examples)} examples, {tokens} tokens, {learned} supervised"
    )
    if self.truncated:
      line += f"; {self.truncated} cut to max_tokens"
    if self.dropped:
      line += f", {self.dropped} of them left out: nothing supervised remained"
    return line


def encode(rows, tokenizer, max_tokens: int, loss_on: str, source="data") -> Encoded:
  """Examples from rows in any of the four formats of `sources`.

  The prompt's tokens are exactly those from which generation starts. Prompt and
  completion are tokenized together, since Llama 2's tokenizer would put an additional
  space before a completion of its own. If that would change the prompt's tokens, they
  are tokenized separately.

  Args:
    rows: dicts, see `sources`.
    tokenizer: a `Tokenizer`.
    max_tokens: longer examples are cut at the end.
    loss_on: which tokens the loss supervises: "completion" or "all".
    source: name of the data, for messages.
  Raises:
    InputError: `loss_on` is invalid; a row has no known format; or no example has a
      supervised token.
  """
  if loss_on not in ("completion", "all"):
    raise InputError(f"data.loss_on is {loss_on!r}; it must be 'completion' or 'all'")
  examples, truncated, dropped = [], 0, 0
  for number, row in enumerate(rows, 1):
    ids, learn = _encode_row(row, tokenizer, f"{source}, row {number}")
    learn = np.array(learn, bool) | (loss_on == "all")
    learn[:1] = False
    truncated += len(ids) > max_tokens
    example = Example(np.array(ids[:max_tokens], np.int32), learn[:max_tokens])
    if example.supervised.any():
      examples.append(example)
    else:
      dropped += 1
  if not examples:
    raise InputError(
      f"{source}: no supervised token in {len(rows)} examples. Raise data.max_tokens "
      f"({max_tokens}) if the prompts alone are longer, or set data.loss_on='all'"
    )
  return Encoded(examples, truncated, dropped)


def _encode_row(row, tokenizer, place: str):
  """(ids, supervised) of one row, for a loss on the completion."""
  form = sources.format_of(row, place)
  if form == "messages":
    try:
      return tokenizer.chat(row["messages"], tools=row.get("tools"))
    except InputError as e:
      raise InputError(f"{place}: {e}") from e
  before, after = sources.prompt_and_completion(row, form)
  prompt = tokenizer.encode(before, bos=True)
  whole = tokenizer.encode(before + after, bos=True)
  fits = whole[: len(prompt)] == prompt
  completion = whole[len(prompt) :] if fits else tokenizer.encode(after)
  completion += tokenizer.eos_ids[:1]
  return prompt + completion, [False] * len(prompt) + [True] * len(completion)
