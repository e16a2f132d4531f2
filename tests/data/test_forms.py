"""The same rows in every form and from every place; bad rows are one clear line."""

import csv
import gzip
import json
import string

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import jaxpeft
from jaxpeft import assets
from jaxpeft.data import batches, encode, files, formats, sources, tokenizer, toy

TEXTS = [
  dict(prompt=row["question"], completion=f' {row["answer"]}, "so"\u2028 x')
  for row in toy.problems(2, "train", 30, seed=0)
]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOL = {
  "type": "function",
  "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}},
}
CHATS = [
  {
    "messages": [
      {"role": "system", "content": "Be brief."},
      {"role": "user", "content": row["question"]},
      {"role": "assistant", "content": row["answer"]},
      {"role": "user", "content": "And now?"},
      {"role": "assistant", "content": "The same."},
    ]
  }
  for row in toy.problems(1, "train", 12, seed=0)
]
SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}


@pytest.fixture(scope="module")
def tok():
  return tokenizer.load(assets.TINY)


def arrays(tok, source, columns=None):
  """All rows of a source, packed; their number and the seed decide their order."""
  found = sources.find(source, columns)
  got = encode.encode(found.placed(), tok, 200, "completion", found.name)
  return batches.to_arrays(batches.pack(got.examples, 200), 200)


def assert_same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])


def write_jsonl(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_csv(path, rows, delimiter=","):
  with open(path, "w", newline="", encoding="utf-8-sig") as f:
    out = csv.DictWriter(f, rows[0].keys(), delimiter=delimiter)
    out.writeheader()
    for row in rows:
      out.writerow(
        {k: x if isinstance(x, str) else json.dumps(x) for k, x in row.items()}
      )


def write_parquet(path, rows):
  pa = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)


def sharegpt(row):
  turns = [
    {"from": SPEAKERS[m["role"]], "value": m["content"]} for m in row["messages"]
  ]
  return {"conversations": turns, "id": 7}


def parted(folder, rows):
  write_jsonl(folder / "part-b.jsonl", rows[9:])
  write_csv(folder / "part-a.csv", rows[:9])
  return folder / "part-*.*"


def packed(path, rows):
  path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
  return path


def spaced(path, rows):
  path.write_bytes(
    b"\xef\xbb\xbf" + "\r\n\r\n".join(json.dumps(r) for r in rows).encode()
  )
  return path


# form -> function of (a folder, rows), which writes them there and returns the source.
FORMS = {
  "a list": lambda d, rows: rows,
  "json": lambda d, rows: (d / "a.json", (d / "a.json").write_text(json.dumps(rows)))[
    0
  ],
  "json by lines": lambda d, rows: (d / "b.json", write_jsonl(d / "b.json", rows))[0],
  "csv": lambda d, rows: (d / "a.csv", write_csv(d / "a.csv", rows))[0],
  "tsv": lambda d, rows: (d / "a.tsv", write_csv(d / "a.tsv", rows, "\t"))[0],
  "parquet": lambda d, rows: (d / "a.parquet", write_parquet(d / "a.parquet", rows))[0],
  "gzip": lambda d, rows: packed(d / "a.jsonl.gz", rows),
  "a byte order mark, blank lines": lambda d, rows: spaced(d / "bom.jsonl", rows),
  "several files": parted,
  "an unknown end": lambda d, rows: (d / "rows", write_jsonl(d / "rows", rows))[0],
}


@pytest.mark.parametrize("rows", [TEXTS, CHATS], ids=["texts", "chats"])
@pytest.mark.parametrize("form", FORMS)
def test_every_file_format_gives_the_batches_of_jsonl(tok, tmp_path, form, rows):
  write_jsonl(tmp_path / "want.jsonl", rows)
  want = arrays(tok, tmp_path / "want.jsonl")
  assert_same(arrays(tok, FORMS[form](tmp_path, rows)), want)


@pytest.mark.parametrize("end", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("name", ["conversations", "conversation"])
def test_sharegpt_gives_the_batches_of_messages(tok, tmp_path, name, end):
  rows = [{name: sharegpt(row)["conversations"], "id": "x"} for row in CHATS]
  path = tmp_path / f"rows.{end}"
  {"jsonl": write_jsonl, "parquet": write_parquet, "csv": write_csv}[end](path, rows)
  assert_same(arrays(tok, path), arrays(tok, CHATS))


def test_sharegpt_may_have_its_system_text_beside_the_turns(tok):
  rows = [sharegpt(row) for row in CHATS]
  apart = [
    dict(
      conversations=row["conversations"][1:], system=CHATS[0]["messages"][0]["content"]
    )
    for row in rows
  ]
  assert_same(arrays(tok, apart), arrays(tok, CHATS))


def test_parquet_does_not_invent_fields_that_a_row_lacks(tmp_path):
  """Arrow gives all structs of a column the same fields, and fills them with null."""
  rows = [
    {"messages": [{"role": "user", "content": "x"}], "tools": [TOOL]},
    {
      "messages": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
      ],
      "tools": [{"type": "function", "function": {"name": "b", "strict": True}}],
    },
  ]
  write_parquet(tmp_path / "a.parquet", rows)
  assert sources.read(tmp_path / "a.parquet") == rows


def test_columns_of_other_names_are_mapped(tok, tmp_path):
  rows = [
    dict(question=r["prompt"], answer="wrong", reply=r["completion"]) for r in TEXTS
  ]
  for end, write in (("jsonl", write_jsonl), ("csv", write_csv)):
    write(tmp_path / f"a.{end}", rows)
    columns = dict(prompt="question", completion="reply")
    assert_same(arrays(tok, tmp_path / f"a.{end}", columns), arrays(tok, TEXTS))
  with pytest.raises(jaxpeft.InputError, match=r"no column 'replly'.*mean 'reply'"):
    sources.read(
      tmp_path / "a.csv", columns=dict(prompt="question", completion="replly")
    )
  with pytest.raises(jaxpeft.InputError, match=r"data.columns 'promt'.*'prompt'"):
    sources.read(tmp_path / "a.csv", columns=dict(promt="question"))


def test_the_first_form_that_fits_is_taken_and_empty_fields_do_not_count():
  both = dict(prompt="a", completion="b", question="c", answer="d", messages=None)
  assert formats.checked(both, "x")[0] == "question/answer"


LISTS = [
  {"role": "user", "content": [{"type": "text", "text": "Hi"}, "?"]},
  {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
]
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}"
SUMS = "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '</>' }}{% endfor %}"
PARTS = (
  "{% for m in messages %}<{{ m.role }}>"
  "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
  "{{ p if p is string else '[' + p.text + ']' }}{% endfor %}{% endif %}</>{% endfor %}"
)


@pytest.mark.parametrize(
  ("template", "want"),
  [
    (PLAIN, "<user>Hi?</><assistant>Yes.</>"),
    (SUMS, "<user>Hi?</><assistant>Yes.</>"),
    (PARTS, "<user>[Hi]?</><assistant>[Yes.]</>"),
  ],
)
def test_lists_of_texts_are_joined_where_a_template_wants_texts(tok, template, want):
  import dataclasses

  own = dataclasses.replace(tok, chat_template=template, tool_template=None)
  (example,) = encode.encode([{"messages": LISTS}], own, 200, "completion").examples
  assert tok.decode(example.tokens, skip_special=False).removesuffix("<eos>") == want
  learned = tok.decode(example.tokens[example.supervised])
  assert "Yes." in learned
  assert "Hi" not in learned


# ---- bad rows --------------------------------------------------------------------

BAD = {
  "no form": ("a.csv", "query,response\na,b\n", r"has query.*\.prompt=query"),
  "nearly": ("a.csv", "prompt,completions\na,b\n", "mean 'completions'.*data.columns"),
  "ragged": ("a.csv", "prompt,completion\na\n", "line 2: has 1 values, the header has"),
  "twice": ("a.csv", "prompt,prompt\na,b\n", "two columns are named 'prompt'"),
  "open quote": ("a.csv", 'prompt,completion\na,"b\n', "line 2: not a table"),
  "header only": ("a.csv", "prompt,completion\n", "has no rows"),
  "not parquet": ("a.parquet", "PAR1 no", "cannot read the data file"),
  "not gzip": ("a.jsonl.gz", "{}", "cannot read the data file"),
  "a list over lines": ("a.jsonl", '[\n{"prompt": "a"}]', "at its end. A row must be"),
  "a list in a line": ("a.jsonl", '[{"prompt": "a"}]', "name it .json"),
  "an object over lines": ("a.json", '{"prompt":\n1 "a"}', "line 1: not JSON"),
  "a list that ends": ("a.json", '[{"prompt": "a"', "not JSON"),
  "rows of a list": ("a.json", "[1]", "row 1: has int"),
  "deep": ("a.jsonl", "[" * 100_000, "nested too deeply"),
  "deep cell": (
    "a.csv", f"messages\n{'[' * 100_000}\n", "line 2: `messages`.*nested too deeply",
  ),
  "digits": ("a.jsonl", '{"prompt": ' + "1" * 5000 + "}", "line 1: not JSON: Exceeds"),
  "surrogate": ("a.jsonl", '{"prompt": "\\ud800", "completion": ""}', r"\\ud800"),
  "surrogate in a cell": ("a.csv", 'messages\n"[""\\ud800""]"\n', r"\\ud800"),
  "speaker": (
    "a.jsonl", '{"conversations": [{"from": "humn", "value": ""}]}', "mean 'human'",
  ),
  "turns": ("a.jsonl", '{"conversations": [{"from": "gpt"}]}', "must be a list of"),
  "one long row": ("a.jsonl", json.dumps(dict(prompt="a" * 5_000_000, completion="")),
                   "at most 4194304"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_clear_line(tmp_path, case):
  name, text, message = BAD[case]
  (tmp_path / name).write_text(text)
  with pytest.raises(jaxpeft.InputError, match=message):
    sources.read(tmp_path / name)


WELL = {
  "around a list": ("a.json", '{"data": [{"prompt": "a"}], "version": 1}'),
  "around a list, over lines": ("a.json", '{\n "train": [\n  {"prompt": "a"}\n ]\n}'),
  "one row over lines": ("a.json", '{\n "prompt":\n  "a"\n}'),
  "one row": ("a.json", '{"prompt": "a"}'),
  "semicolons": ("a.csv", "prompt;x\na;b\n"),
  "tabs in a .csv": ("a.csv", "prompt\tx\na\tb\n"),
  "commas in a .tsv": ("a.tsv", "prompt,x\na,b\n"),
  "semicolons in values": ("a.csv", "prompt,x;y\na,b;c\n"),
}


@pytest.mark.parametrize("case", WELL)
def test_layouts_that_people_have(tmp_path, case):
  name, text = WELL[case]
  (tmp_path / name).write_text(text)
  (row,) = files.read(tmp_path / name)
  assert row.row["prompt"] == "a"


def test_a_file_that_is_not_utf8_is_named_with_the_line(tmp_path):
  for name in ("a.jsonl", "a.csv", "a.json"):
    (tmp_path / name).write_bytes(b"[prompt,\n\xff\n")
    with pytest.raises(jaxpeft.InputError, match=r"not UTF-8|not JSON"):
      sources.read(tmp_path / name)


def test_a_small_compressed_file_cannot_fill_memory_or_time(tmp_path, monkeypatch):
  monkeypatch.setattr(files, "_LINE", 2**16)
  (tmp_path / "line.jsonl.gz").write_bytes(gzip.compress(b" " * 2**20))
  with pytest.raises(jaxpeft.InputError, match="longer than 65536 bytes"):
    sources.read(tmp_path / "line.jsonl.gz")
  monkeypatch.setattr(files, "_RATIO", 0)
  (tmp_path / "lines.csv.gz").write_bytes(gzip.compress(b"a,b\n" * 10))
  with pytest.raises(jaxpeft.InputError, match="compressed size"):
    sources.read(tmp_path / "lines.csv.gz")


def test_places_that_are_no_files_are_told_apart(tmp_path):
  write_jsonl(tmp_path / "a.jsonl", TEXTS)
  with pytest.raises(jaxpeft.InputError, match=r"is a directory.*a\.jsonl"):
    sources.find(tmp_path)
  with pytest.raises(jaxpeft.InputError, match=r"no such file, and it is no data set"):
    sources.find(str(tmp_path / "*.csv"))
  for name in ("a\0b.csv", "*\0.csv", "x" * 5000):
    with pytest.raises(jaxpeft.InputError, match="cannot read the data file"):
      sources.find(name)


# ---- any file --------------------------------------------------------------------

_words = st.sampled_from(
  [*formats.FIELDS, "role", "content", "from", "value", "gpt", "text", "learn"]
)
_text = st.text(max_size=8) | _words | st.just("\ud800")
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | _text
_values = st.recursive(
  _scalars,
  lambda x: st.lists(x, max_size=4) | st.dictionaries(_text, x, max_size=4),
  max_leaves=12,
)
_rows = st.dictionaries(_words, _values, max_size=5) | _values
_lines = _rows.map(lambda x: json.dumps(x).encode()) | st.binary(max_size=40)
_cells = st.text(string.printable, max_size=10) | _words | _rows.map(json.dumps)
FUZZED = {
  "a.jsonl": st.lists(_lines, max_size=4).map(b"\n".join),
  "a.json": _values.map(lambda x: json.dumps(x).encode()) | st.binary(max_size=80),
  "a.csv": st.lists(st.lists(_cells, max_size=3), max_size=4).map(
    lambda rows: "\n".join(",".join(row) for row in rows).encode("utf-8", "replace")
  ),
  "a.jsonl.gz": st.binary(max_size=80).map(lambda x: gzip.compress(x)[: len(x) + 12]),
  "a.parquet": st.binary(max_size=80).map(lambda x: b"PAR1" + x + b"PAR1"),
}


def never_a_traceback(tok, path, data: bytes):
  path.write_bytes(data)
  try:
    encode.encode(sources.read(path), tok, 64, "all")
  except jaxpeft.InputError as e:
    message = str(e)
  else:
    return
  message.encode()  # it can be printed
  assert len(message) < 1200


def fuzz(tok, tmp_path, name, count):
  check = hypothesis.given(FUZZED[name])(
    lambda data: never_a_traceback(tok, tmp_path / name, data)
  )
  hypothesis.settings(
    max_examples=count, deadline=None, derandomize=count < 1000, database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
  )(check)()  # fmt: skip


@pytest.mark.parametrize("name", FUZZED)
def test_any_file_is_read_or_refused(tok, tmp_path, name):
  fuzz(tok, tmp_path, name, 60)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", FUZZED)
def test_any_of_many_files_is_read_or_refused(tok, tmp_path, name):
  fuzz(tok, tmp_path, name, 20_000)
