"""Rows of segments: transcripts of several roles; only some roles are learned.

A row is {"segments": [{"text": ..., "learn": true or false}, ...]}. Every segment is
tokenized alone, as it is when the model goes on from the segments before it. Segments
that are not learned are seen, but the loss is not on them.
"""

from typing import NamedTuple

from jaxpeft.errors import InputError

FIELD = "segments"
_MOST = 10_000  # segments of a row
_ANCHOR = "\n"


class Segment(NamedTuple):
  """One piece of a transcript."""

  text: str
  learn: bool


def parse(value, place: str) -> tuple[Segment, ...]:
  """The segments of a row.

  Args:
    value: what the field holds.
    place: where the row is, for error messages.
  Raises:
    InputError: it is no list of segments, or has too many.
  """
  if not isinstance(value, list | tuple) or not 1 <= len(value) <= _MOST:
    much = (
      f"of {len(value)}" if isinstance(value, list | tuple) else type(value).__name__
    )
    raise InputError(
      f"{place}: `{FIELD}` must be a list of 1 to {_MOST} "
      f'{{"text": ..., "learn": true or false}}, not {much}'
    )
  for number, x in enumerate(value, 1):
    if isinstance(x, Segment):
      continue
    good = isinstance(x, dict) and isinstance(x.get("text"), str)
    if not good or not isinstance(x.get("learn"), bool):
      raise InputError(
        f"{place}: segment {number} of `{FIELD}` must have a text in `text`, and true "
        f"or false in `learn`; it is {_short(x)}"
      )
  return tuple(
    x if isinstance(x, Segment) else Segment(x["text"], x["learn"]) for x in value
  )


def split(segments: tuple[Segment, ...]) -> tuple[str, str]:
  """(prompt, completion): the text before the last learned segments, and these.

  What follows them is in neither. Without learned segments the completion is empty.
  """
  end = len(segments)
  while end and not segments[end - 1].learn:
    end -= 1
  start = end
  while start and segments[start - 1].learn:
    start -= 1
  if not end:
    start = end = len(segments)
  text = lambda some: "".join(x.text for x in some)  # noqa: E731
  return text(segments[:start]), text(segments[start:end])


def encode_all(rows, tokenizer) -> list[tuple[list[int], list[bool]]]:
  """(ids, supervised) of each row.

  The end token follows the last segment, and is supervised if that is learned.

  Args:
    rows: tuples of segments.
    tokenizer: a `Tokenizer`.
  """
  texts = {segment.text: None for segments in rows for segment in segments}
  tokens = dict(zip(texts, _alone([*texts], tokenizer), strict=True))
  out = []
  for segments in rows:
    ids = tokenizer.encode("", bos=True)
    learn = [False] * len(ids)
    for number, segment in enumerate(segments):
      text = segment.text  # the first one starts a text
      own = tokens[text] if number else tokenizer.encode(text)
      ids += own
      learn += [segment.learn] * len(own)
    end = tokenizer.eos_ids[:1]
    out.append(([*ids, *end], learn + [segments[-1].learn] * len(end)))
  return out


def _alone(texts: list[str], tokenizer) -> list[list[int]]:
  """The tokens of each text, as they are in the middle of another text.

  Llama 2's tokenizer puts a space before every text. There, each text is tokenized
  behind a line's end, unless that would change the tokens of the line's end.
  """
  alone = tokenizer.encode_all(texts)
  a, first = tokenizer.encode("a"), tokenizer.encode(_ANCHOR)
  if tokenizer.encode(f"{_ANCHOR}a") == first + a:
    return alone
  behind = tokenizer.encode_all([_ANCHOR + text for text in texts])
  return [
    there[len(first) :] if there[: len(first)] == first else own
    for own, there in zip(alone, behind, strict=True)
  ]


def _short(value) -> str:
  return repr(value)[:80].encode("utf-8", "backslashreplace").decode()
