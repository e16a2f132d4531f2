"""What ends an answer: the end token, or a text in it, which is then left out."""

import functools
from collections.abc import Iterable

from jaxpeft.data.tokenizer import Tokenizer
from jaxpeft.generation.engine import End

_TAIL = 64  # the last tokens, in which a new stop text must be; see `engine._STEPS`


def of(tokenizer: Tokenizer, stop: tuple[str, ...]) -> End:
  """The end of answers that any of some texts ends, besides the end tokens.

  A token that holds such a text ends an answer at once. Texts that several tokens form
  are found when the host looks at the answer.
  """
  if not stop:
    return End(frozenset(tokenizer.eos_ids))
  ids = {i for i, x in enumerate(_pieces(tokenizer)) if any(s in x for s in stop)}

  def reached(new: list[int]) -> bool:
    text = tokenizer.decode(new[-_TAIL - max(map(len, stop)) :])
    return any(s in text for s in stop)

  return End(frozenset(ids.union(tokenizer.eos_ids)), reached)


def before(text: str, stop: Iterable[str]) -> str:
  """The text before the first of some texts; all of it if none is in it."""
  return text[: min((text.index(s) for s in stop if s and s in text), default=None)]


def cut(
  tokenizer: Tokenizer, new: list[int], stop: tuple[str, ...]
) -> tuple[str, int, int]:
  """(text, its tokens, tokens spent) of an answer, up to its end token or stop text.

  Args:
    tokenizer: of the model.
    new: the tokens of the answer, with its end, and perhaps more after a stop text.
    stop: the texts that end it.
  """
  spent = len(new)
  body = new[: next((i for i, t in enumerate(new) if t in tokenizer.eos_ids), spent)]
  text = tokenizer.decode(body)
  kept = before(text, stop)
  if kept == text:
    return text, len(body), spent
  low, high = 1, len(body)  # the fewest tokens whose text has a stop text
  while low < high:
    middle = (low + high) // 2
    part = tokenizer.decode(body[:middle])
    low, high = (low, middle) if any(s in part for s in stop) else (middle + 1, high)
  return kept, low - 1, low


@functools.lru_cache(maxsize=4)
def _of_core(core) -> list[str]:
  ids = [[i] for i in range(core.get_vocab_size())]
  return core.decode_batch(ids, skip_special_tokens=False)


def _pieces(tokenizer: Tokenizer) -> list[str]:
  """The text of every token alone."""
  return _of_core(tokenizer.core)
