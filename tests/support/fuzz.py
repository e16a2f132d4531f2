"""Six targets for random input, and the strategies that make it.

A target takes what its strategy draws and returns what the library made of it. It may
raise InputError or OSError with one line; anything else is a bug.
"""

import contextlib
import copy
import functools
import io
import json
import pathlib
import resource
import shutil
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import jaxpeft
from jaxpeft import assets, config_file, options, tree
from jaxpeft.checkpoints import hf, hf_names, json_file
from jaxpeft.data import encode, sources, tokenizer
from jaxpeft.errors import InputError
from jaxpeft.training import optimizer

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 20.0  # of processor time that one input may take on a busy machine
GROWTH = 400e6  # bytes that a target's inputs may add to the largest memory in use
_CONFIGS = ROOT / "tests/checkpoints/hub_configs.json"
_HUB = [
  model["config"]
  for model in json.loads(_CONFIGS.read_text()).values()
  if model["expect"] == "opens"
]
_WORDS = (
  "linear", "yarn", "llama3", "dynamic", "longrope", "default", "full_attention",
  "sliding_attention", "silu", "nf4", "bitsandbytes", "llama", "gemma2", "qwen3",
  "<s>", "</s>", "content", "a", "", "\x00", "\ud800", "é", "../x", "1e5", "user",
)  # fmt: skip
SCALARS = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(-3, 40),
  st.sampled_from([2**31 - 1, 2**31, 2**63, 10**40, -(10**20), 10**9, 4096]),
  st.floats(),
  st.sampled_from(_WORDS),
  st.text(max_size=8),
)
VALUES = st.recursive(
  SCALARS,
  lambda inner: st.one_of(
    st.lists(inner, max_size=4),
    st.dictionaries(st.one_of(st.sampled_from(_WORDS), st.text(max_size=5)), inner),
  ),
  max_leaves=6,
)
# Whole files that are no JSON, or JSON that is hard to read.
_RAW = st.one_of(
  st.binary(max_size=60),
  st.sampled_from(
    [
      b"[" * 100_000,
      b'{"a":' * 50_000,
      b'{"a": ' + b"1" * 5000 + b"}",
      b"\xef\xbb\xbf{}",
      b"[]",
      b"null",
      b'"' + b"x" * 100_000,
    ]
  ),
)


def judge(target, value) -> bool:
  """Whether a target accepts a value; its errors, time and memory are checked."""
  clock, peak, message = time.process_time(), _peak(), ""
  with contextlib.redirect_stderr(io.StringIO()):
    try:
      target(value)
      accepted = True
    except (InputError, OSError) as e:
      accepted, message = False, str(e)
  assert "\n" not in message, "not one line"
  assert len(message) < 4000, "a message that nobody reads"
  assert time.process_time() - clock < SECONDS
  assert _peak() - peak < GROWTH
  return accepted


def _peak() -> float:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@functools.cache
def folder() -> pathlib.Path:
  """A directory of this process for files that targets read."""
  return pathlib.Path(tempfile.mkdtemp(prefix="fuzz-"))


def _paths(value, at=()):
  """The places in a JSON value, the root's first."""
  yield at
  items = value.items() if isinstance(value, dict) else ()
  items = enumerate(value) if isinstance(value, list) else items
  for key, x in items:
    yield from _paths(x, (*at, key))


@st.composite
def mutated(draw, value, changes: int = 3):
  """A JSON value in which some places are removed or replaced."""
  value = copy.deepcopy(value)
  for _ in range(draw(st.integers(1, changes))):
    places = [p for p in _paths(value) if p]
    if not places:
      break
    *at, key = draw(st.sampled_from(places))
    node = functools.reduce(lambda x, k: x[k], at, value)
    if draw(st.integers(0, 4)) == 0:
      del node[key]
    else:
      node[key] = draw(VALUES)
  return value


@st.composite
def damaged(draw, whole: bytes):
  """A file that is cut, or in which a few bits are flipped."""
  data = bytearray(whole)
  if draw(st.booleans()):
    return bytes(data[: draw(st.integers(0, len(data)))])
  for _ in range(draw(st.integers(1, 3))):
    data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
  return bytes(data)


def _text(value) -> bytes:
  return json.dumps(value).encode()


# ---- config.json -----------------------------------------------------------------

_FIELDS = sorted({key for values in _HUB for key in values})


@st.composite
def configs(draw):
  """The bytes of a config.json."""
  if draw(st.integers(0, 19)) == 0:
    return draw(_RAW)
  values = dict(draw(st.sampled_from(_HUB)))
  if draw(st.booleans()):
    return _text(draw(mutated(values)))
  for _ in range(draw(st.integers(1, 3))):
    values[draw(st.sampled_from(_FIELDS))] = draw(VALUES)
  return _text(values)


def read_config(data: bytes):
  """Reads a config.json, and names the weights of the model that it describes."""
  (folder() / "config.json").write_bytes(data)
  config = hf.read_config(folder())
  assert all(
    1 <= n < 2**31
    for n in (config.vocab_size, config.width, config.depth, config.heads, config.ff)
  )
  assert config.rms_eps > 0
  if config.depth <= 8:  # it takes long
    hf_names.places(config, ())


# ---- tokenizers and templates ----------------------------------------------------


@functools.cache
def _tiny() -> dict[str, bytes]:
  return tokenizer.read_files(assets.TINY)


_MESSAGES = [
  {"role": "system", "content": "Be brief."},
  {"role": "user", "content": "What is 1 + 2?"},
  {"role": "assistant", "content": "3"},
]
_NAMES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
_NAMES += ["generation_config.json", "chat_template.jinja"]
_KEYS = """bos_token eos_token unk_token pad_token add_bos_token added_tokens_decoder
chat_template extra_special_tokens additional_special_tokens eos_token_id
model_max_length""".split()


@st.composite
def tokenizers(draw):
  """{name: content} of tokenizer files."""
  files = dict(_tiny())
  name = draw(st.sampled_from(_NAMES))
  if draw(st.integers(0, 9)) == 0:
    return files | {name: draw(_RAW)}
  there = json.loads(files[name]) if name in files else {}
  if name == "tokenizer.json":
    if draw(st.integers(0, 3)) == 0:
      return files | {name: draw(damaged(files[name]))}
    # Not the vocabulary, which has most of the places.
    small = {k: x for k, x in there.items() if k != "model"}
    model = {k: x for k, x in there["model"].items() if k not in ("vocab", "merges")}
    new = draw(mutated(small | {"model": model}))
    if isinstance(new.get("model"), dict):
      new["model"] = {k: there["model"][k] for k in ("vocab", "merges")} | new["model"]
    return files | {name: _text(new)}
  values = {draw(st.sampled_from(_KEYS)): draw(VALUES) for _ in range(2)}
  return files | {name: _text(there | values)}


def read_tokenizer(files: dict[str, bytes]):
  """Opens a tokenizer and uses it."""
  found = tokenizer.from_files(files, "DIR")
  ids = found.encode("Add 12 and 30.", bos=True)
  assert all(type(i) is int and i >= 0 for i in ids)
  found.decode(ids)
  if found.chat_template:
    found.chat(_MESSAGES)


_PIECES = """{{messages}} {{messages[0].content}} {{m.content}} {{m['role']~'x'}}
{{bos_token}} {{eos_token}} {{'a'*9999999}} {{'a'*n}} {{range(n)|list}} {{n**n}}
{{n//0}} {{[1,2]*n}} {{messages|tojson}} {{messages|length}} {{m.foo.bar}} {{foo()}}
{{raise_exception('no')}} {{''.__class__.__mro__}} {{messages|map('list')|list}}
{{'%s'%m}} {{'{}'.format(m)}} {{strftime_now('%Y')}} {{loop.index}} {{-n}} {{n<m}}
{{self}} {{f(n)}} {{m.content|trim|upper}} {{m.content.split('x')}} {{'x'.join(m)}}
{{m.content[::-1]}} {{m|items|list}} {{messages|sort(attribute='role')}} {{dict(a=m)}}
{%setn=n+n%} {%setx=m%} {%break%} {%continue%} {%generation%} {%endgeneration%} text
{{m.content|replace('a','b'*n)}} {{'a'.ljust(n)}} {{namespace(a=n).a}} {{""" + (
  "}} {{(((((((((( {{n|round(n)}} {{messages|batch(n)|list}} {{cycler(1,2)}} \x00"
)
_OPEN = [
  ("{%for m in messages%}", "{%endfor%}"),
  ("{%for n in range(n)%}", "{%endfor%}"),
  ("{%for n in range(9999)%}", "{%endfor%}"),
  ("{%if m.role=='user'%}", "{%endif%}"),
  ("{%if n%}", "{%else%}x{%endif%}"),
  ("{%macro f(n)%}", "{%endmacro%}"),
  ("{%generation%}", "{%endgeneration%}"),
  ("{%filter upper%}", "{%endfilter%}"),
  ("{%set n=1000%}", ""),
  ("{%set n%}", "{%endset%}"),
  ("{%call f(n)%}", "{%endcall%}"),
  ("<|", "|>"),
]
TEMPLATES = st.recursive(
  st.one_of(st.sampled_from(_PIECES.split()), st.text(max_size=6)),
  lambda inner: st.one_of(
    st.tuples(st.sampled_from(_OPEN), inner).map(lambda x: x[0][0] + x[1] + x[0][1]),
    st.lists(inner, max_size=4).map("".join),
  ),
  max_leaves=12,
)


def render(source: str):
  """Renders a conversation with a template."""
  files = _tiny() | {"chat_template.jinja": source.encode(errors="replace")}
  found = tokenizer.from_files(files, "DIR")
  ids, learn = found.chat(_MESSAGES)
  assert len(ids) == len(learn)


# ---- data ------------------------------------------------------------------------

_ROWS = [
  {"question": "1+1?", "answer": "2\n#### 2"},
  {"prompt": "a", "completion": "b"},
  {"instruction": "do", "input": "x", "output": "y"},
  {"messages": _MESSAGES},
  {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
  {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]},
  {"text": "a b c"},
  {"messages": _MESSAGES, "tools": [{"type": "function", "function": {"name": "f"}}]},
  {"segments": [{"text": "a", "learn": False}, {"text": "b", "learn": True}]},
]


@st.composite
def jsonl(draw):
  """The bytes of a JSONL file."""
  lines = []
  for _ in range(draw(st.integers(1, 3))):
    row = draw(st.sampled_from(_ROWS))
    kind = draw(st.integers(0, 9))
    line = _text(draw(mutated(row, 2)) if kind else row)
    lines.append(draw(_RAW) if kind == 9 else line)
  return draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n", b""])).join(lines)


@functools.cache
def _words():
  return tokenizer.load(assets.TINY)


def read_data(data: bytes):
  """Reads and tokenizes a data file."""
  (folder() / "data.jsonl").write_bytes(data)
  rows = sources.read(folder() / "data.jsonl")
  found = encode.encode(rows, _words(), 64, "completion")
  assert all(len(e.tokens) <= 64 for e in found.examples)


# ---- overrides -------------------------------------------------------------------


@functools.cache
def _keys() -> list[str]:
  from jaxpeft import config

  keys = [option.key for option in config.options()]
  keys += ["adapt.main.rank", "adapt.main.alpha", "adapt.main.match", "adapt.main"]
  keys += ["adapt.x.name", "optim.options.b1", "optim.groups.a.times"]
  return [*keys, "nothing", "train.step", "optim.lr.x", "", "."]


_OVERRIDES = st.one_of(
  SCALARS.map(str),
  VALUES.map(str),
  st.sampled_from(["1e400", "nan", "-1", "0", "()", "(1,2)", "{'a':1}", "__import__",
                   "True", "none", "9" * 5000, "(" * 500, "embedded:x", "/dev/null"]),
)  # fmt: skip


@st.composite
def overrides(draw):
  """Words of a command line."""
  keys = draw(st.lists(st.sampled_from(_keys()), min_size=1, max_size=3))
  return [f"--config.{key}={draw(_OVERRIDES)}" for key in keys]


def override(words: list[str]):
  """Checks the options that a command line asks for."""
  config: Any = config_file.load(str(ROOT / "configs/lora.py"), words)
  options.check(config)
  if not isinstance(config.optim.name, str) or config.optim.name == "adamw":
    optimizer.make(config.train.steps, **config.optim)


# ---- adapter files ---------------------------------------------------------------

_SHAPES = {"attn": {"q": (2, 8, 8), "k": (2, 8, 8)}, "mlp": {"up": (2, 8, 16)}}


@functools.cache
def _base():
  rng = np.random.default_rng(0)
  is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
  made = jax.tree.map(
    lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), _SHAPES, is_leaf=is_shape
  )
  return {"layers_0": made}


@functools.cache
def adapter_files() -> tuple[dict[str, bytes], dict]:
  """(content of the files of a good adapter, its leaves)."""
  rules = {".*/q": jaxpeft.LoRA(rank=2), ".*/up": jaxpeft.IA3()}
  params = jaxpeft.adapt(_base(), rules, jax.random.key(3))
  theta, frozen = jaxpeft.partition(params, jaxpeft.trainable_mask(params))
  params = jaxpeft.combine(jax.tree.map(lambda x: x + 0.5, theta), frozen)
  place = folder() / "good"
  shutil.rmtree(place, ignore_errors=True)
  jaxpeft.save_adapter(params, place, key=jax.random.key(3))
  return {p.name: p.read_bytes() for p in place.iterdir()}, tree.flatten(params)


@st.composite
def adapters(draw):
  """({name: content}, whether its checksums are those of format 1: none)."""
  files = dict(adapter_files()[0])
  name = draw(st.sampled_from(sorted(files)))
  kind = draw(st.integers(0, 9))
  if kind < 2:
    return files | ({name: draw(_RAW)} if kind else {}), False
  if draw(st.booleans()):
    return files | {name: draw(damaged(files[name]))}, False
  meta = draw(mutated(json.loads(files["adapter.json"])))
  old = draw(st.booleans())
  if old and isinstance(meta, dict):
    meta = {k: x for k, x in meta.items() if k not in ("crc32", "tensors", "format")}
  elif draw(st.booleans()) and isinstance(meta, dict):  # one who knows the checksum
    old = True
    meta["crc32"] = json_file.crc32({k: x for k, x in meta.items() if k != "crc32"})
  return files | {"adapter.json": _text(meta)}, old


def open_adapter(drawn):
  """Loads an adapter; one with checksums is the one that was saved, or refused."""
  files, old = drawn
  place = folder() / "adapter"
  place.mkdir(exist_ok=True)
  for name, data in files.items():
    (place / name).write_bytes(data)
  params = jaxpeft.load_adapter(_base(), place)
  found, want = tree.flatten(params), adapter_files()[1]
  assert all(np.isfinite(x).all() for x in found.values())
  if not old:
    assert found.keys() == want.keys()
    assert all(np.array_equal(found[path], want[path]) for path in want)


TARGETS = {
  "config.json": (read_config, configs()),
  "tokenizer": (read_tokenizer, tokenizers()),
  "template": (render, TEMPLATES),
  "jsonl": (read_data, jsonl()),
  "overrides": (override, overrides()),
  "adapter": (open_adapter, adapters()),
}
