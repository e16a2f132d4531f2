"""Rows of segments: tokens and masks by hand, splitting, and bad rows in one line."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers

import jaxpeft
from jaxpeft import assets
from jaxpeft.data import batches, encode, formats, segments, sources, tokenizer

PARTS = [
  ("Q: 91 of 34 12\nTry:", False),
  (" 34+45=", False),
  ("79/91 no\n", True),
  ("Try:", False),
  (" 34+57=", True),
  ("91/91 yes", True),
]


@pytest.fixture(scope="module")
def tok():
  return tokenizer.load(assets.TINY)


def row(parts):
  return {"segments": [dict(text=text, learn=learn) for text, learn in parts]}


def encoded(tok, rows, loss_on="completion", max_tokens=200, columns=None):
  found = sources.find(rows, columns)
  return encode.encode(found.placed(), tok, max_tokens, loss_on, found.name)


def by_hand(tok, parts):
  """Each text by the Rust library itself, then the end token."""
  ids, learn = [tok.bos_id], [False]
  for text, learned in parts:
    own = tok.core.encode(text, add_special_tokens=False).ids
    ids, learn = ids + own, learn + [learned] * len(own)
  return [*ids, tok.eos_ids[0]], [*learn, parts[-1][1]]


@pytest.mark.parametrize(
  "parts",
  [
    PARTS,
    PARTS[:4],  # the end is not learned
    PARTS[2:3],
    [("", False), *PARTS, ("", True)],
    [("A", True), ("", False)],
    [("ab", True), ("c", True)],  # not the tokens of "abc"
    [("<eos>", False), ("x <bos>y", True)],
  ],
)
def test_every_segment_is_tokenized_alone_and_only_learned_ones_are_supervised(
  tok, parts
):
  (example,) = encoded(tok, [row(parts)]).examples
  ids, learn = by_hand(tok, parts)
  assert example.tokens.tolist() == ids
  assert example.supervised.tolist() == learn


def test_a_prompt_and_a_completion_are_two_segments(tok):
  texts = [("Question: 1+1?\nAnswer:", " 2\n#### 2"), ("a", "b")]
  pairs = [dict(prompt=a, completion=b) for a, b in texts]
  both = [row([(a, False), (b, True)]) for a, b in texts]
  for loss_on in ("completion", "all"):
    a, b = encoded(tok, pairs, loss_on).examples, encoded(tok, both, loss_on).examples
    for name in ("tokens", "supervised", "offsets"):
      np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_rows_of_several_forms_keep_their_order(tok):
  rows = [
    row(PARTS),
    dict(prompt="a", completion="b"),
    row(PARTS[:3]),
    row([("x", True)]),
  ]
  alone = [encoded(tok, [x]).examples[0] for x in rows]
  for got, want in zip(encoded(tok, rows).examples, alone, strict=True):
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_array_equal(got.supervised, want.supervised)


def test_what_is_never_learned_is_left_out_and_long_rows_are_cut(tok):
  got = encoded(tok, [row(PARTS), row(PARTS[:2])], max_tokens=30)
  assert (got.truncated, got.dropped, len(got.examples)) == (1, 1, 1)
  everything = encoded(tok, [row(PARTS[:2])], "all").counts.supervised
  assert everything == len(by_hand(tok, PARTS[:2])[0]) - 1


def test_the_preview_marks_each_learned_part(tok):
  got = encoded(tok, [row(PARTS)])
  batch = batches.to_arrays(batches.pack(got.examples, 99), 99)
  assert batches.preview(batch, tok, color=False) == (
    "<bos>Q: 91 of 34 12\nTry: 34+45=[[79/91 no\n]]Try:[[ 34+57=91/91 yes<eos>]]"
  )


def spaced(tok, pieces, merges, **more):
  """A tokenizer that puts a space before every text, as Llama 2's does."""
  vocab = {piece: i for i, piece in enumerate(pieces)}
  model = tokenizers.models.BPE(vocab, merges, unk_token="<unk>", **more)
  core = tokenizers.Tokenizer(model)
  core.normalizer = tokenizers.normalizers.Sequence(
    [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
  )
  return dataclasses.replace(tok, core=core, add_bos=False, eos_ids=())


def test_a_tokenizer_that_starts_texts_with_a_space_puts_one_at_the_start_only(tok):
  pieces = ["<unk>", "▁", "A", ":", "7", "▁7", "<0x0A>"]
  llama = spaced(tok, pieces, [("▁", "7")], byte_fallback=True)
  parts = [("A:", False), ("7", True), (" 7", True), ("\n", False), ("A", True)]
  (example,) = encoded(llama, [row(parts)]).examples
  want = ["▁", "A", ":", "7", "▁7", "<0x0A>", "A"]
  assert [pieces[i] for i in example.tokens] == want
  whole = llama.core.encode("".join(text for text, _ in parts)).tokens
  assert want == whole, "as in one text, which is what generation starts from"
  assert example.supervised.tolist() == [i in (3, 4, 6) for i in range(7)]


def test_a_text_that_melts_into_a_line_s_end_keeps_its_own_tokens(tok):
  pieces = ["<unk>", "▁", "A", "\n", "\n\n"]
  llama = spaced(tok, pieces, [("\n", "\n")])
  parts = [("A", False), ("\nA", True), ("A", True)]
  (example,) = encoded(llama, [row(parts)]).examples
  assert [pieces[i] for i in example.tokens] == ["▁", "A", "▁", "\n", "A", "A"]


@pytest.mark.parametrize("end", ["jsonl", "csv", "parquet"])
def test_files_and_columns_of_other_names_give_the_same(tok, tmp_path, end):
  rows = [row(PARTS), row(PARTS[:3])]
  path = tmp_path / f"a.{end}"
  if end == "jsonl":
    path.write_text("".join(json.dumps(dict(turns=x["segments"])) + "\n" for x in rows))
  elif end == "csv":
    cell = lambda x: json.dumps(x["segments"]).replace('"', '""')  # noqa: E731
    path.write_text("turns\n" + "".join(f'"{cell(x)}"\n' for x in rows))
  else:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.Table.from_pylist([dict(turns=x["segments"]) for x in rows])
    parquet.write_table(table, path)
  got = encoded(tok, path, columns={"segments": "turns"}).examples
  want = encoded(tok, rows).examples
  np.testing.assert_array_equal(got.tokens, want.tokens)
  np.testing.assert_array_equal(got.supervised, want.supervised)


@pytest.mark.parametrize(
  ("parts", "want"),
  [
    (PARTS, ("Q: 91 of 34 12\nTry: 34+45=79/91 no\nTry:", " 34+57=91/91 yes")),
    (PARTS[:4], ("Q: 91 of 34 12\nTry: 34+45=", "79/91 no\n")),
    (PARTS[:2], ("Q: 91 of 34 12\nTry: 34+45=", "")),
    (PARTS[2:3], ("", "79/91 no\n")),
  ],
)
def test_a_task_asks_for_the_last_learned_part(parts, want):
  form, found = formats.checked(row(parts), "x")
  assert formats.prompt_and_completion(found, form) == want


def test_older_forms_come_first():
  both = dict(prompt="a", completion="b") | row(PARTS)
  assert formats.checked(both, "x")[0] == "prompt/completion"


GOOD = dict(text="a", learn=True)
BAD = {
  "no list": (3, "must be a list of 1 to 10000"),
  "empty": ([], "not of 0"),
  "too many": ([GOOD] * 10_001, "not of 10001"),
  "a text": ([GOOD, "a"], "segment 2 of `segments` must have a text"),
  "no text": ([dict(learn=True)], "segment 1"),
  "a number": ([dict(text=1, learn=True)], "segment 1"),
  "no learn": ([dict(text="a")], "true or false in `learn`"),
  "0 and 1": ([dict(text="a", learn=1)], "true or false in `learn`"),
  "surrogate": ([dict(text="\ud800", learn=True)], "half of a surrogate pair"),
  "surrogate elsewhere": ([dict(text=0, learn="\ud800")], "segment 1"),
  "long": ([dict(text="a" * 2**21, learn=True)] * 3, "at most 4194304"),
  "no JSON": ("[{", "must be a list, or JSON text of one"),
  "JSON of no list": ("{}", "must be a list of 1 to"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_one_clear_line(tmp_path, case):
  value, message = BAD[case]
  (tmp_path / "a.jsonl").write_text(json.dumps(dict(segments=value)) + "\n")
  with pytest.raises(jaxpeft.InputError, match=message) as e:
    sources.read(tmp_path / "a.jsonl")
  text = str(e.value)
  text.encode()
  assert "\n" not in text
  assert "a.jsonl, line 1" in text
  assert len(text) < 400


def test_split_of_nothing_learned_and_of_what_follows():
  parts = tuple(segments.Segment(*x) for x in [("a", False), ("b", True), ("c", False)])
  assert segments.split(parts) == ("a", "b")
