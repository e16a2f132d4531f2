"""Preferences as groups of texts, and batches of them as arrays.

An `Example` is one group: its texts one after another, the best first. In each text the
prompt is not supervised and the answer is, up to the text's end, so that the next text
starts where an unsupervised token follows a supervised one. Its `value` is the margin.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from jaxpeft.data import batches, examples
from jaxpeft.data import encode as encoding
from jaxpeft.data.examples import Counts, Example
from jaxpeft.data.files import Placed
from jaxpeft.data.preferences import Preference, parse
from jaxpeft.errors import InputError

_ROWS, _CHARACTERS = 256, 2**18  # rows that are tokenized at once, see `encode`


def encode(
  rows: Iterable,
  tokenizer,
  max_tokens: int,
  source="data",
  into=None,
  report: Callable[[Placed], Any] | None = None,
  trim: int | None = None,
) -> encoding.Encoded:
  """Groups of texts from rows of preferences.

  Ties, and groups that are longer than a row of `max_tokens`, are left out and counted;
  nothing is cut. `Example.value` is the margin, and `counts.longest` the tokens of the
  longest text.

  Args:
    rows, tokenizer, source, into, report: as in `encode.encode`.
    max_tokens: most tokens of all texts of a group together.
    trim: a token that is left out at the end of every text; None is none.
  Raises:
    InputError: a row has no preference; or nothing is left.
  """
  into = examples.Memory() if into is None else into
  counts, number, least = Counts(), 0, math.inf
  for some in _some(rows, source):
    number += len(some)
    kept = [(placed, found) for placed, found in some if not found.tie]
    counts = counts._replace(ties=counts.ties + len(some) - len(kept))
    groups = list(_groups(kept, tokenizer, trim))
    sizes = [sum(len(ids) for ids, _ in texts) for _, texts in groups]
    least = min([least, *sizes])
    counts = _add(into, groups, counts, max_tokens)
    if report:
      report(some[-1][0])
  if not counts.supervised:
    reason = (
      f"all {number} rows are ties, whose answers are equal"
      if counts.ties == number
      else f"no preference fits into data.max_tokens ({max_tokens}): the shortest has "
      f"{least} tokens in its answers and prompts together; raise it"
    )
    raise InputError(f"{source}: {reason}")
  return encoding.Encoded(into.finish(counts), counts)


def _some(rows: Iterable, source) -> Iterator[list[tuple[Placed, Preference]]]:
  """Lists of parsed rows, of a bounded size."""
  out, size = [], 0
  for number, row in enumerate(rows, 1):
    placed = row if isinstance(row, Placed) else None
    placed = placed or Placed(f"{source}, row {number}", row, 0.0)
    out.append((placed, parse(placed.row, placed.place)))
    size += sum(len(str(x)) for x in (out[-1][1].prompt, *out[-1][1].answers))
    if len(out) >= _ROWS or size >= _CHARACTERS:
      yield out
      out, size = [], 0
  if out:
    yield out


def _groups(
  some, tokenizer, trim: int | None
) -> Iterator[tuple[float, list[tuple[list[int], int]]]]:
  """(margin, its texts) of each preference; a text is (ids, tokens of the prompt)."""
  pairs = [(p.prompt, x) for _, p in some if not p.chats for x in p.answers]
  texts = iter(encoding.together(pairs, tokenizer))
  for placed, found in some:
    if found.chats:
      made = [_chat(found, x, tokenizer, placed.place) for x in found.answers]
    else:
      made = [next(texts) for _ in found.answers]
    for ids, _ in made:
      while ids and ids[-1] == trim:
        ids.pop()
    yield found.margin, made


def _chat(found: Preference, answer: list[dict], tokenizer, place: str):
  """(ids, tokens of the prompt) of a conversation."""
  prompt, tools = list(found.prompt), found.tools
  ids, _ = encoding.conversation([*prompt, *answer], tools, tokenizer, place)
  if not prompt:
    return ids, 0
  starts = answer[0]["role"] in ("assistant", "model")
  before, _ = encoding.conversation(prompt, tools, tokenizer, place, starts)
  same = itertools.takewhile(lambda x: x[0] == x[1], zip(before, ids, strict=False))
  return ids, len(list(same))


def _add(into, groups, counts: Counts, max_tokens: int) -> Counts:
  """Hands groups over that fit, and counts them."""
  tokens, supervised, lengths, margins = [], [], [], []
  longest = counts.longest
  for margin, texts in groups:
    learned = [np.arange(len(ids)) >= max(1, count) for ids, count in texts]
    length = sum(map(len, learned))
    if not all(x.any() for x in learned):
      counts = counts._replace(dropped=counts.dropped + 1)
    elif length > max_tokens:
      counts = counts._replace(long=counts.long + 1)
    else:
      tokens += [np.array(ids, np.int32) for ids, _ in texts]
      supervised += learned
      lengths.append(length)
      margins.append(margin)
      longest = max(longest, *map(len, learned))
  if not lengths:
    return counts
  ids, learned = np.concatenate(tokens), np.concatenate(supervised)
  ends = counts.tokens + np.cumsum(lengths, dtype=np.int64)
  into.add((ids, learned, ends), np.array(margins, np.float32))
  return counts._replace(
    tokens=counts.tokens + len(ids),
    supervised=counts.supervised + int(learned.sum()),
    longest=longest,
    largest=max(counts.largest, int(ids.max())),
  )


def to_arrays(rows: list[list[Example]], max_tokens: int) -> dict[str, np.ndarray]:
  """One batch of arrays [rows, max_tokens], from rows of groups.

  A row has at most max_tokens // 2 texts, since each has a token that is not supervised
  and one that is.

  Returns:
    tokens, targets, weights, position: as `batches.to_arrays` gives them; positions
      restart in every text, and the last token of a text has no target.
    segment (int32): the number of a token's text in its row, from 1; 0 is padding.
    group (int32): the number of the group of that text in its row, from 1; 0 is
      padding.
    end (bool): the last token of every text.
    margin (float32): the group's margin at the end of its first text; 0 elsewhere.
  """
  texts, group, margin = [], [], []
  for row in rows:
    cut = [_texts(example) for example in row]
    texts.append([text for some in cut for text in some])
    group.append([g for g, some in enumerate(cut, 1) for _ in some])
    first = [[x.value] + [0.0] * (len(y) - 1) for x, y in zip(row, cut, strict=True)]
    margin.append([m for some in first for m in some])
  out = batches.to_arrays(texts, max_tokens)
  out |= dict(
    group=np.zeros(out["tokens"].shape, np.int32),
    end=np.zeros(out["tokens"].shape, bool),
    margin=np.zeros(out["tokens"].shape, np.float32),
  )
  for r, row in enumerate(texts):
    ends = np.cumsum([len(text.tokens) for text in row], dtype=int)
    out["group"][r, : sum(len(text.tokens) for text in row)] = np.repeat(
      group[r], [len(text.tokens) for text in row]
    )
    out["end"][r, ends - 1] = True
    out["margin"][r, ends - 1] = margin[r]
  return out


def _texts(example: Example) -> list[Example]:
  """The texts of a group."""
  s = example.supervised
  cuts = [0, *(np.flatnonzero(s[:-1] & ~s[1:]) + 1), len(s)]
  return [Example(example.tokens[a:b], s[a:b]) for a, b in itertools.pairwise(cuts)]
