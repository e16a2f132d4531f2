"""Reading GGUF files, compared with transformers; and files that are hostile."""

import pathlib
import shutil
import struct
import sys

import gguf
import numpy as np
import pytest
import torch
import transformers

import jaxpeft
from jaxpeft.checkpoints import (
  gguf_config,
  gguf_file,
  gguf_names,
  gguf_rope,
  hf,
  hf_config,
)
from jaxpeft.checkpoints.gguf_reader import GGUFReader
from jaxpeft.checkpoints.stored import GGUFFile, open_model
from jaxpeft.errors import InputError
from jaxpeft.transformer import rope
from tests.support import gguf_files

DEFAULT = ("llama3", "mixtral", "gemma3", "olmo3")
CASES = [
  pytest.param(name, marks=[] if name in DEFAULT else pytest.mark.slow)
  for name in gguf_files.ARCHITECTURES
]
WIDE = dict(hidden_size=64, intermediate_size=96)


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_the_model_that_was_converted(tmp_path, name):
  model = gguf_files.make(name)
  path = tmp_path / "model.gguf"
  gguf_files.write(model, name, path)
  ours = jaxpeft.load(str(path), dtype="float32")
  tokens = np.random.default_rng(0).integers(0, 97, (2, 40))
  with torch.no_grad():
    theirs = model(torch.from_numpy(tokens)).logits.numpy()
  found = np.asarray(ours(tokens))
  assert np.abs(found - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_weights_equal_those_that_transformers_reads(tmp_path, name):
  path = tmp_path / "model.gguf"
  gguf_files.write(gguf_files.make(name, **WIDE), name, path, "Q8_0")
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, gguf_file=path.name, dtype=torch.float32
  )
  reader = open_model(path).reader()
  weights = theirs.state_dict()
  assert reader.shapes.keys() == weights.keys() - {"lm_head.weight"} or name == "llama"
  for tensor in reader.shapes:
    assert np.array_equal(reader.read(tensor), weights[tensor].numpy()), tensor


def test_slices_are_parts_of_the_whole(tmp_path):
  for name in ("llama", "gemma2", "mixtral"):
    path = tmp_path / f"{name}.gguf"
    gguf_files.write(gguf_files.make(name, **WIDE), name, path, "Q8_0")
    reader = open_model(path).reader()
    for tensor, shape in reader.shapes.items():
      index = tuple(slice(n // 4, n // 2) for n in shape)
      assert np.array_equal(
        reader.read_slice(tensor, index), reader.read(tensor)[index]
      )


def test_every_block_format_is_read_bit_for_bit(monkeypatch):
  monkeypatch.setattr(gguf_file, "_CHUNK", 1000)
  random, read = np.random.default_rng(0), 0
  for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
    data = random.integers(0, 256, (7, 3 * size), np.uint8)
    try:
      with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(data, kind)
        tensor = gguf_file.Tensor((7, 3 * block), kind.name, data)
        ours = gguf_file.dequantize(tensor)
        rows = gguf_file.dequantize(tensor, np.array([5, 2]))
    except NotImplementedError:
      continue
    read += 1
    assert np.array_equal(ours, theirs, equal_nan=True), kind
    assert np.array_equal(rows, theirs[[5, 2]], equal_nan=True), kind
  assert read >= 20


def test_names_are_those_of_the_gguf_package():
  numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
  for name, row in gguf_names.ARCHITECTURES.items():
    names = gguf.get_tensor_name_map(numbers[name], 3)
    known = {gguf.TENSOR_NAMES[t] for t in gguf.MODEL_TENSORS[numbers[name]]}
    for ours, theirs in row.layer.items():
      if f"blk.{{bid}}.{ours}" in known and "{}" not in theirs:
        stem = f"model.layers.2.{theirs}"
        assert names.get_name(stem) == f"blk.2.{ours}", (name, theirs)
        assert gguf_names.to_hf(f"blk.2.{ours}.weight", row) == f"{stem}.weight"
        assert gguf_names.to_gguf(f"{stem}.weight", row) == (
          f"blk.2.{ours}.weight",
          None,
        )


def test_frequencies_of_no_known_scaling_are_kept(tmp_path):
  path = tmp_path / "model.gguf"
  gguf_files.write(gguf_files.make("llama3"), "llama3", path)
  file = gguf_file.read(path)
  assert hf.config_of_gguf(file).ropes[0].kind == "llama3"
  divisors = np.array([1.0, 1.5, 1.7, 3.0, 9.0, 9.5], np.float32)
  odd = gguf_file.Tensor((6,), "F32", divisors.view(np.uint8))
  file = file._replace(tensors=file.tensors | {"rope_freqs.weight": odd})
  config = hf.config_of_gguf(file)
  position, length = np.array([[0, 1, 100]]), np.array([3])
  plain = hf_config.from_hf(gguf_config.to_hf(file) | dict(rope_scaling=None))
  freq = 1.0 / 10_000.0 ** (np.arange(0, 12, 2) / 12)
  assert plain.ropes[0].kind == "default"
  sin, _ = rope.rope(position, config, length)
  angle = position[0][:, None] * (freq / divisors)
  np.testing.assert_allclose(np.asarray(sin)[0, 0], np.sin(angle), atol=1e-5)


def test_llama3_divisors_are_those_of_transformers():
  config = gguf_files.make("llama3").config
  scaled = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(
    config
  ).inv_freq
  found = gguf_rope.llama3_divisors(config.rope_parameters, 1e4, 12)
  freq = 1.0 / 1e4 ** (np.arange(0, 12, 2, dtype=np.float32) / 12)
  np.testing.assert_allclose(freq / found, scaled.numpy(), rtol=1e-6)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> pathlib.Path:
  """A small GGUF file; its header has about 5 kB."""
  path = tmp_path_factory.mktemp("gguf") / "small.gguf"
  gguf_files.write(gguf_files.make("llama"), "llama", path)
  return path


def test_a_directory_with_one_gguf_file_is_opened(small, tmp_path):
  shutil.copy(small, tmp_path / "a.gguf")
  assert hf.find(str(tmp_path)) == tmp_path / "a.gguf"
  assert hf.find(str(tmp_path / "a.gguf")) == tmp_path / "a.gguf"
  assert hf.hub_id(str(tmp_path / "a.gguf")) is None
  shutil.copy(small, tmp_path / "b.gguf")
  with pytest.raises(InputError, match=r"several GGUF files, name one: a.gguf, b.gguf"):
    hf.find(str(tmp_path))
  with pytest.raises(InputError, match="no such file"):
    hf.find(str(tmp_path / "c.gguf"))


def test_the_parts_of_a_split_file_are_opened_together(small, tmp_path):
  whole = gguf_file.read(small)
  reader = gguf.GGUFReader(small)
  half = len(reader.tensors) // 2
  for part, tensors in enumerate((reader.tensors[:half], reader.tensors[half:])):
    writer = gguf.GGUFWriter(tmp_path / f"m-{part + 1:05}-of-00002.gguf", "llama")
    if part == 0:
      for key, value in whole.meta.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
        add |= {float: writer.add_float32}
        value = value.tolist() if isinstance(value, np.ndarray) else value
        add.get(type(value), writer.add_array)(key, value)
    writer.add_int32("split.tensors.count", len(reader.tensors))
    for tensor in tensors:
      writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
  found, one = open_model(hf.find(str(tmp_path))).reader(), GGUFReader(whole)
  assert found.shapes == one.shapes
  assert all(np.array_equal(found.read(n), one.read(n)) for n in one.shapes)
  (tmp_path / "m-00002-of-00002.gguf").unlink()
  with pytest.raises(InputError, match=r"missing: m-00002-of-00002\.gguf"):
    open_model(hf.find(str(tmp_path)))


def test_the_missing_package_is_named(small, monkeypatch):
  monkeypatch.setitem(sys.modules, "gguf", None)
  with pytest.raises(InputError, match=r"pip install -e '.\[gguf\]'"):
    open_model(small)


def text(value: str) -> bytes:
  return struct.pack("<Q", len(value)) + value.encode()


def header(version=3, tensors=0, keys=0, order="<") -> bytes:
  return b"GGUF" + struct.pack(f"{order}IQQ", version, tensors, keys)


MANY = 2**62
HOSTILE = {
  "empty": (b"", "cannot read"),
  "magic": (b"GGML" + bytes(60), "no GGUF file"),
  "short": (header()[:10], "cut off"),
  "version": (header(version=1), "version 1"),
  "big-endian": (header(order=">"), "big-endian"),
  "tensors": (header(tensors=MANY) + bytes(99), "cut off"),
  "keys": (header(keys=MANY) + bytes(99), "cut off"),
  "long text": (header(keys=1) + struct.pack("<QI", MANY, 4), "cut off"),
  "long array": (
    header(keys=1) + text("a") + struct.pack("<IIQ", 9, 0, MANY) + bytes(99),
    "cut off",
  ),
  "long list": (
    header(keys=1) + text("a") + struct.pack("<IIQ", 9, 8, 2**30) + bytes(99),
    "cut off",
  ),
  "nested": (
    header(keys=1) + text("a") + struct.pack("<IIQ", 9, 9, 1) + bytes(99),
    "unknown type 9",
  ),
  "no UTF-8": (
    header(keys=1) + struct.pack("<Q", 2) + b"\xff\xff" + bytes(99),
    "no UTF-8",
  ),
  "twice": (
    header(keys=2) + (text("a") + struct.pack("<IB", 0, 1)) * 2 + bytes(99),
    "'a' twice",
  ),
  "alignment": (
    header(keys=1) + text("general.alignment") + struct.pack("<II", 4, 3),
    "power of two",
  ),
  "axes": (
    header(tensors=1) + text("t") + struct.pack("<I", 2**31) + bytes(99),
    "axes",
  ),
  "huge tensor": (
    header(tensors=1) + text("t") + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0),
    "cut off",
  ),
  "format": (
    header(tensors=1) + text("t") + struct.pack("<IQIQ", 1, 4, 999, 0) + bytes(99),
    "block format 999",
  ),
  "rows": (
    header(tensors=1) + text("t") + struct.pack("<IQIQ", 1, 33, 8, 0) + bytes(99),
    "no multiple of Q8_0's 32",
  ),
  "overlap": (
    header(tensors=2)
    + b"".join(text(n) + struct.pack("<IQIQ", 1, 8, 0, 0) for n in "tu")
    + bytes(199),
    "overlaps",
  ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_damaged_file_is_one_clear_line(case, tmp_path):
  data, said = HOSTILE[case]
  (tmp_path / "x.gguf").write_bytes(data)
  with pytest.raises(InputError, match=said) as e:
    gguf_file.read(tmp_path / "x.gguf")
  assert "\n" not in str(e.value)
  assert "x.gguf" in str(e.value)


def test_random_damage_is_refused_or_harmless(small, tmp_path):
  """Cuts and changed bytes anywhere in the header: an InputError, or a model."""
  data, random = small.read_bytes(), np.random.default_rng(0)
  end = min(t.data_offset for t in gguf.GGUFReader(small).tensors)
  path, refused = tmp_path / "x.gguf", 0
  for trial in range(100):
    changed = bytearray(data)
    if trial % 3 == 0:
      changed = changed[: random.integers(len(data))]
    for at in random.integers(0, end, random.integers(1, 4)) * (trial % 3 > 0):
      if at < len(changed):
        changed[at] = random.choice([0, 1, 255, random.integers(256)])
    path.write_bytes(changed)
    try:
      stored = open_model(path)
      stored.tokenizer(stored.config.eos_ids)
      hf.load(stored.reader(), stored.config, "float32")
    except InputError:
      refused += 1
  assert refused > 50


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_value_of_any_key_is_a_traceback(tmp_path):
  values = [0, -1, 2**40, 1e308, float("nan"), True, "x", "", [], ["a"]]
  values += [np.array([1, 2]), np.array([]), np.array([0.5])]
  for name in ("llama3", "olmo3", "qwen3-moe"):
    path = tmp_path / f"{name}.gguf"
    gguf_files.write(gguf_files.make(name), name, path)
    file = gguf_file.read(path)
    arch = file.meta["general.architecture"]
    more = (
      "attention.sliding_window_pattern",
      "rope.scaling.type",
      "rope.scaling.factor",
    )
    more += "rope.scaling.original_context_length", "expert_count", "rope.freq_base_swa"
    more = [f"{arch}.{key}" for key in more] + ["tokenizer.chat_template"]
    for key in (*file.meta, *more):
      for value in values:
        stored = file._replace(meta=file.meta | {key: value})
        try:
          config = hf.config_of_gguf(stored)
          GGUFFile(stored, config).tokenizer(config.eos_ids)
        except InputError as e:
          assert "\n" not in str(e), (key, value)  # noqa: PT017


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"general.architecture": "lama"}, "Did you mean 'llama'"),
    ({"llama.block_count": None}, "block_count is missing"),
    ({"llama.block_count": "3"}, "must be of type int"),
    ({"llama.attention.head_count": 0}, "below 1"),
    ({"llama.attention.head_count_kv": np.array([2, 1, 2])}, "differs between layers"),
    ({"llama.attention.clamp_kqv": 8.0}, "clamp_kqv = 8.0 is not supported"),
    ({"llama.attention.value_length": 8, "llama.attention.key_length": 12}, "differs"),
    ({"llama.attention.causal": False}, "causal"),
    ({"llama.rope.scaling.type": "magic"}, "Known: linear, longrope, none, yarn"),
    ({"llama.rope.dimension_count": 6}, "partial_rotary_factor"),
    ({"llama.expert_shared_count": 1}, "expert_shared_count"),
  ],
)
def test_metadata_that_are_not_followed_are_refused(small, change, said):
  file = gguf_file.read(small)
  meta = {k: v for k, v in (file.meta | change).items() if v is not None}
  with pytest.raises(InputError, match=said):
    hf.config_of_gguf(file._replace(meta=meta))
