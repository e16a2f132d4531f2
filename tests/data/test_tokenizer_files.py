"""Tokenizer files: read as transformers reads them; a damaged one is one error."""

import json
import shutil

import pytest

import jaxpeft
from jaxpeft import assets
from jaxpeft.data import sources, tokenizer

TEXT = "<bos>Anna has 23 + 14 = <x> <y><eos> <|im_end|> Größe"


@pytest.fixture
def place(tmp_path):
  for name in tokenizer.FILES:
    if (assets.TINY / name).exists():
      shutil.copy(assets.TINY / name, tmp_path)
  return tmp_path


def change(place, name, **values):
  path = place / name
  old = json.loads(path.read_text()) if path.exists() else {}
  path.write_text(json.dumps(old | values))


def token(content, **flags):
  return {"content": content, "lstrip": False, "rstrip": False, **flags}


MARK = {"__type": "AddedToken"}
CONFIGS = {
  "as it is": {},
  "eos only there": {
    "added_tokens_decoder": {"900": token("<|im_end|>", special=True)},
    "eos_token": "<|im_end|>",
  },
  "not special": {"added_tokens_decoder": {"900": token("<x>"), "7": token("<y>")}},
  "other flags": {"added_tokens_decoder": {"2": token("<eos>", lstrip=True)}},
  "eos nowhere": {"eos_token": "<|im_end|>"},
  "eos is a word": {"eos_token": "has"},
  "objects": {"eos_token": token("<y>", normalized=False) | MARK, "unk_token": None},
  "extra list": {"extra_special_tokens": ["<x>", "<y>"]},
  "additional": {"additional_special_tokens": ["<x>"]},
  "extra names": {"extra_special_tokens": {"image_token": "<x>"}},
  "own name": {"image_token": "<y>", "add_bos_token": True},
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("mapped", [False, True])
def test_special_tokens_are_those_of_transformers(place, name, mapped):
  transformers = pytest.importorskip("transformers")
  change(place, "tokenizer_config.json", **CONFIGS[name])
  if mapped:
    change(place, "special_tokens_map.json", pad_token="<x>", eos_token="<y>")
  ours = tokenizer.load(place)
  theirs = transformers.PreTrainedTokenizerFast.from_pretrained(place)
  assert ours.special == theirs.special_tokens_map
  assert ours.encode(TEXT) == theirs.encode(TEXT, add_special_tokens=False)
  assert ours.eos_ids == (theirs.eos_token_id,)
  assert (ours.bos_id, ours.pad_id) == (theirs.bos_token_id, theirs.pad_token_id)
  ids = ours.encode(TEXT)
  # A token that is only named does not count as special when transformers decodes.
  assert ours.decode(ids, skip_special=False) == theirs.decode(ids)


def test_saved_truncation_and_padding_are_not_used(place):
  """`save_pretrained` after a padded call writes them."""
  transformers = pytest.importorskip("transformers")
  want = tokenizer.load(place).encode("Anna has 12 apples." * 9)
  theirs = transformers.PreTrainedTokenizerFast.from_pretrained(place)
  theirs("a", truncation=True, max_length=8, padding="max_length")
  theirs.save_pretrained(place)
  assert json.loads((place / "tokenizer.json").read_text())["padding"]
  got = tokenizer.load(place)
  assert got.encode("Anna has 12 apples." * 9) == want
  assert len(got.encode("a")) == 1


def test_named_templates_are_those_of_transformers(place):
  transformers = pytest.importorskip("transformers")
  folder = place / tokenizer.TEMPLATES
  folder.mkdir()
  (folder / "tool_use.jinja").write_text("tools: {{ tools | length }}")
  messages = [{"role": "user", "content": "Hi?"}]
  schema = {"type": "function", "function": {"name": "f"}}
  for default in (place / "chat_template.jinja", folder / "default.jinja"):
    default.write_text(f"{default.name}: {{{{ messages[0].content }}}}")
    ours = tokenizer.load(place)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(place)
    for tools in (None, [schema]):
      want = theirs.apply_chat_template(messages, tools=tools, tokenize=False)
      ids, _ = ours.chat(messages, True, tools)
      assert ours.decode(ids, skip_special=False) == want
      again = tokenizer.from_files(ours.files, "memory")  # as they are saved
      assert again.chat(messages, True, tools)[0] == ids
      assert not any("/" in name for name in ours.files)


def test_files_from_elsewhere_make_the_same_tokenizer(place):
  files = tokenizer.read_files(place)
  assert tokenizer.from_files(files, "a GGUF file", (7,)).eos_ids == (2, 7)
  with pytest.raises(jaxpeft.InputError, match=r"no tokenizer\.json in a GGUF file"):
    tokenizer.from_files({}, "a GGUF file")


DEEP = "[" * 100_000
DAMAGED = [
  ("tokenizer_config.json", "[]", "holds a list"),
  ("tokenizer_config.json", "{", "cannot read"),
  ("tokenizer_config.json", DEEP, "cannot read"),
  ("tokenizer_config.json", '{"x": ' + "9" * 5000 + "}", "cannot read"),
  ("tokenizer_config.json", b"\xff", "cannot read"),
  ("tokenizer_config.json", '{"eos_token": {"foo": 1}}', "eos_token is .*foo"),
  ("tokenizer_config.json", '{"eos_token": 5}', "eos_token is '5'"),
  ("tokenizer_config.json", '{"eos_token": "\\ud800"}', "eos_token is"),
  ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "added_tokens_decoder is"),
  ("tokenizer_config.json", '{"added_tokens_decoder": {"a": {}}}', r"decoder\.a is"),
  ("tokenizer_config.json", '{"added_tokens_decoder": {"1": {}}}', r"decoder\.1 is"),
  ("tokenizer_config.json", '{"extra_special_tokens": 3}', "extra_special_tokens is"),
  (
    "tokenizer_config.json",
    '{"chat_template": [{"template": "a"}]}',
    "chat_template is",
  ),
  ("tokenizer_config.json", '{"chat_template": ["x"]}', "chat_template is"),
  ("tokenizer_config.json", '{"chat_template": [{"name": "default"}]}', "_template is"),
  ("tokenizer_config.json", '{"chat_template": 5}', "chat_template is 5"),
  ("special_tokens_map.json", '{"pad_token": [1]}', "pad_token is"),
  ("special_tokens_map.json", "3", "holds a int"),
  ("generation_config.json", "[]", "holds a list"),
  ("generation_config.json", '{"eos_token_id": 2.5}', "eos_token_id is 2.5"),
  ("generation_config.json", '{"eos_token_id": "a"}', "eos_token_id is a"),
  ("generation_config.json", '{"eos_token_id": [1, -1]}', "eos_token_id is"),
  ("generation_config.json", '{"eos_token_id": true}', "eos_token_id is True"),
  ("chat_template.jinja", b"\xff\xfe", "not UTF-8"),
  ("tokenizer.json", "{}", "cannot read"),
  ("tokenizer.json", b"\xff", "cannot read"),
  ("tokenizer.json", DEEP, "cannot read"),
  ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {}}}', "cannot read"),
]


@pytest.mark.parametrize(("name", "text", "message"), DAMAGED)
def test_a_damaged_file_is_one_error(place, name, text, message):
  (place / name).write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(jaxpeft.InputError, match=message) as error:
    tokenizer.load(place)
  assert str(place) in str(error.value)
  assert len(str(error.value)) < 700


LINES = [
  ('{"question": "a", "answer": "\\ud800"}', r"`answer` holds \\ud800"),
  ('{"messages": [{"role": "user", "content": "\\udfff"}]}', "`messages` holds"),
  ('{"prompt": "a", "completion": "b", "n": ' + "9" * 5000 + "}", "line 1: not JSON"),
  ('{"prompt": "a", "completion": "b", "n": ' + DEEP + "}", "line 1: nested too deep"),
  ('{"messages": []}', "`messages` must be a list"),
  ('{"messages": [{"role": "user", "content": 3}]}', "`messages` must be a list"),
  ('{"messages": [{"role": "user", "content": [3]}]}', "`messages` must be a list"),
  (
    '{"messages": [{"role": "user", "content": "a"}], "tools": "f"}',
    "`tools` must be a list",
  ),
]


@pytest.mark.parametrize(("line", "message"), LINES)
def test_a_line_that_is_no_data_is_named(tmp_path, line, message):
  (tmp_path / "d.jsonl").write_text(line)
  with pytest.raises(jaxpeft.InputError, match=message):
    sources.read(tmp_path / "d.jsonl")


def test_texts_that_are_no_unicode_are_refused():
  with pytest.raises(jaxpeft.InputError, match="lone surrogates"):
    tokenizer.load(assets.TINY).encode("\ud800")
  with pytest.raises(jaxpeft.InputError, match="cannot read the data file"):
    sources.read("\x00.jsonl")
