"""Damaged files of adapters, models and runs: refused in one line, never believed."""

import fcntl
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import jaxpeft
from jaxpeft import assets, config, temporary
from jaxpeft.checkpoints import adapter as adapter_files
from jaxpeft.checkpoints import hf, json_file
from jaxpeft.errors import InputError
from jaxpeft.training import log, workdir

BASE = {"layers_0": {"attn": {"q": jnp.arange(72.0).reshape(2, 6, 6) / 72}}}


@pytest.fixture
def saved(tmp_path):
  """The directory of an adapter."""
  params = jaxpeft.adapt(BASE, {".*/q": jaxpeft.LoRA(rank=2)}, jax.random.key(1))
  jaxpeft.save_adapter(params, tmp_path / "a", key=jax.random.key(1))
  return tmp_path / "a"


def rewrite(directory, change):
  """Changes an adapter's description as one would who knows the checksum."""
  path = directory / "adapter.json"
  meta = json.loads(path.read_text())
  change(meta)
  if "crc32" in meta:
    meta["crc32"] = json_file.crc32({k: x for k, x in meta.items() if k != "crc32"})
  path.write_text(json.dumps(meta))


def without_sums(meta):
  """As an older version wrote it."""
  del meta["crc32"], meta["tensors"]
  meta["format"] = 1


def test_an_adapter_of_an_older_version_opens(saved):
  rewrite(saved, without_sums)
  params = jaxpeft.load_adapter(BASE, saved)
  assert params["layers_0"]["attn"]["q"].adapter == jaxpeft.LoRA(rank=2)


def test_a_changed_description_is_told(saved):
  path = saved / "adapter.json"
  path.write_text(path.read_text().replace('"rank": 2', '"rank": 3'))
  with pytest.raises(InputError, match="its checksum differs"):
    jaxpeft.load_adapter(BASE, saved)


def test_checksums_cannot_be_left_out(saved):
  rewrite(saved, lambda meta: meta.pop("tensors"))
  with pytest.raises(InputError, match="its checksum differs"):
    adapter_files.read_meta(saved)
  rewrite(saved, lambda meta: meta.pop("crc32"))
  with pytest.raises(InputError, match="its checksum differs"):
    adapter_files.read_meta(saved)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(fingerprint=5), "fingerprint"),
    (dict(fingerprint={"a": ["x"]}), "fingerprint"),
    (dict(fingerprint={"layers_0/attn/q/frozen/w": [1.0]}), "another base"),
    (dict(adapters=""), "adapters"),
    (dict(adapters={"a": 5}), "adapters"),
    (dict(key=[1e308, 2]), "key"),
    (dict(key=-1), "key"),
    (dict(key=[0, 2**32]), "key"),
    (dict(format=3), "formats 1 to 2"),
    (dict(format=[]), "formats 1 to 2"),
  ],
)
def test_entries_of_a_wrong_type_are_told(change, message, saved):
  rewrite(saved, lambda meta: meta.update(change))
  with pytest.raises(InputError, match=message) as e:
    jaxpeft.load_adapter(BASE, saved)
  assert "\n" not in str(e.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_adapter_that_is_not_finite_is_refused(bad, saved):
  path = saved / "adapter.safetensors"
  tensors = safetensors.numpy.load_file(path)
  next(iter(tensors.values())).flat[3] = bad
  safetensors.numpy.save_file(tensors, path)
  with pytest.raises(InputError, match=r"adapter\.safetensors is damaged"):
    jaxpeft.load_adapter(BASE, saved)
  rewrite(saved, without_sums)
  with pytest.raises(InputError, match="infinities or NaN"):
    jaxpeft.load_adapter(BASE, saved)


def test_integers_are_no_adapter(saved):
  path = saved / "adapter.safetensors"
  tensors = safetensors.numpy.load_file(path)
  tensors = {name: x.astype(np.int32) for name, x in tensors.items()}
  safetensors.numpy.save_file(tensors, path)
  rewrite(saved, without_sums)
  with pytest.raises(InputError, match="holds int32, no fractions"):
    jaxpeft.load_adapter(BASE, saved)


# ---- models ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int16", "int8", "bool"])
def test_integers_are_no_weights(kind, tmp_path):
  shutil.copytree(assets.TINY, tmp_path / "m")
  path = tmp_path / "m" / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  name = sorted(tensors)[3]
  tensors[name] = tensors[name].astype(kind)
  safetensors.numpy.save_file(tensors, path)
  with pytest.raises(InputError, match=f"{name} holds .*, not one of F64, F32"):
    jaxpeft.load(str(tmp_path / "m"))


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "x", 5])
def test_weights_are_written_as_fractions_only(dtype, tmp_path):
  model = jaxpeft.load("embedded", dtype="float32").replace(params=None)
  with pytest.raises(InputError, match="unknown dtype of weights"):
    jaxpeft.save_hf(model, tmp_path / "m", dtype=dtype)
  assert not (tmp_path / "m").exists()


def test_weights_larger_than_the_memory_are_not_read(monkeypatch):
  monkeypatch.setattr(os, "sysconf", lambda name: 1000)  # a million bytes
  with pytest.raises(InputError, match="this machine has 0 GB of memory"):
    jaxpeft.load("embedded", dtype="float32")


@pytest.mark.parametrize("name", ["../m.safetensors", "a/b", "a\0b", "\ud800", "", 3])
def test_an_index_names_files_of_its_directory_only(name, tmp_path):
  index = tmp_path / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": {"a": name}}))
  (tmp_path / "config.json").write_bytes((assets.TINY / "config.json").read_bytes())
  with pytest.raises(InputError, match="is no index of shards"):
    jaxpeft.load(str(tmp_path))


def test_json_of_any_size_and_depth_is_one_line(tmp_path, monkeypatch):
  path = tmp_path / "config.json"
  monkeypatch.setattr(json_file, "MAX_BYTES", 1000)
  for data in (b'"' + b"x" * 2000, b"[" * 900, b"\xff", b"3"):
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"config\.json") as e:
      hf.read_config(tmp_path)
    assert "\n" not in str(e.value)


# ---- runs ------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("eval", 5, "eval is '5'; it must be a section"),
    ("train", None, "train is 'None'; it must be a section"),
    ("eval.limit", "x", "eval.limit is 'x'; it must be of type int"),
    ("eval.limit", True, "eval.limit is 'True'"),
    ("data.limit", [], "data.limit is"),
    ("model.source", 5, "model.source is '5'; it must be of type str"),
    ("seed", None, "seed is 'None'"),
    ("train.keep_best", 1, "keep_best is '1'; it must be of type bool"),
  ],
)
def test_a_run_s_config_of_another_type_is_told(key, value, message, tmp_path):
  workdir.prepare(str(tmp_path), config.base())
  path = tmp_path / "config.json"
  values = json.loads(path.read_text())
  *sections, name = key.split(".")
  at = values
  for section in sections:
    at = at[section]
  at[name] = value
  path.write_text(json.dumps(values))
  with pytest.raises(InputError, match=message):
    workdir.read_config(tmp_path)
  with pytest.raises(InputError, match=message):
    workdir.prepare(str(tmp_path), config.base())


@pytest.mark.parametrize("data", [b"[]", b"\xff", b"5", b"[" * 100_000, b"{"])
def test_a_run_s_config_that_is_no_object_is_told(data, tmp_path):
  (tmp_path / "config.json").write_bytes(data)
  with pytest.raises(InputError, match="is no run"):
    workdir.read_config(tmp_path)
  with pytest.raises(InputError, match="cannot use --workdir"):
    workdir.prepare(str(tmp_path), config.base())


@pytest.mark.parametrize("path", ["a\0b", "\ud800"])
def test_a_path_that_cannot_be_is_told(path):
  with pytest.raises(InputError, match="cannot use --workdir"):
    workdir.prepare(path, config.base())


@pytest.mark.parametrize(
  "data", [b"\xff\n{}\n", b"5\n", b'{"a": 1}\n', b'{"step": "x"}\n{}', b"[[\n{}\n{}\n"]
)
def test_metrics_that_are_damaged_are_told(data, tmp_path):
  (tmp_path / "metrics.jsonl").write_bytes(data)
  with pytest.raises(InputError, match=r"metrics\.jsonl"):
    log.read(tmp_path / "metrics.jsonl")


# ---- what killed runs leave ------------------------------------------------------


def test_directories_of_killed_runs_go_and_others_stay(tmp_path):
  (tmp_path / ".adapter-dead" / "more").mkdir(parents=True)
  (tmp_path / "mine.tmp").write_text("just now")
  (tmp_path / "config.tmp").write_text("long ago")
  os.utime(tmp_path / "config.tmp", (0, 0))
  with temporary.directory(tmp_path, ".adapter-") as alive:
    assert (tmp_path / ".adapter-dead").exists(), "it is young: its lock may come"
    temporary.tidy(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [alive.name, "mine.tmp"]
  assert not alive.exists()


def test_an_old_directory_without_lock_goes_at_the_next_save(tmp_path, saved):
  old, held = saved.parent / ".adapter-old", saved.parent / ".adapter-held"
  for path in (old, held):
    path.mkdir()
    os.utime(path, (0, 0))
  lock = os.open(held, os.O_RDONLY)
  fcntl.flock(lock, fcntl.LOCK_EX)
  with temporary.directory(saved.parent, ".adapter-"):
    assert not old.exists()
    assert held.exists()
  os.close(lock)


@pytest.mark.parametrize("new", [False, True])
def test_a_kill_between_two_moves_loses_no_adapter(new, tmp_path):
  path, old = tmp_path / "best", tmp_path / ".best.old"
  for place, there in ((path, new), (old, True)):
    if there:
      place.mkdir()
      (place / "x").write_text(place.name)
  temporary.tidy(tmp_path)
  assert not old.exists()
  assert (path / "x").read_text() == ("best" if new else ".best.old")


def test_the_start_of_a_run_tidies_up(tmp_path):
  (tmp_path / ".adapter-dead").mkdir()
  workdir.prepare(str(tmp_path), config.base())
  assert not (tmp_path / ".adapter-dead").exists()
