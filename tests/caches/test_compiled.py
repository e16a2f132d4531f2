"""The cache of compiled programs: a second start compiles nothing and is the same."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from jaxpeft.caches import compiled, disk

ROOT = pathlib.Path(__file__).parents[2]
# Compiles a step with donated arguments and a random key, as another process.
PROGRAM = """
import collections, json, sys, warnings
warnings.simplefilter("error")
import jax, jax.numpy as jnp
from jaxpeft.caches import compiled
found = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: found.update([name[23:]]))
place = compiled.enable()
def step(state, x):
  noise = jax.random.normal(jax.random.key(3), x.shape)
  return jnp.sin(state @ x + noise) @ x.T, jnp.linalg.norm(state)
x = jnp.linspace(0, 1, 4096).reshape(64, 64)
made = jax.jit(step, donate_argnums=0).lower(x + 1, x).compile()
state, norm = made(x + 1, x)
plan = made.memory_analysis()
bits = jax.device_get(state).tobytes().hex()
print(json.dumps(dict(
  place=str(place), hits=found["cache_hits"], misses=found["cache_misses"],
  bits=bits, norm=float(norm).hex(),
  memory=[plan.argument_size_in_bytes, plan.output_size_in_bytes,
          plan.alias_size_in_bytes, plan.temp_size_in_bytes])))
"""


def start(cache, **env):
  """What a process prints that compiles with this cache."""
  names = ("JAX_COMPILATION_CACHE_DIR", "JAXPEFT_COMPILED_CACHE_GB")
  env = {k: x for k, x in os.environ.items() if k not in names} | env
  env |= dict(JAXPEFT_CACHE=str(cache), PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu")
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert not done.stderr, done.stderr
  return json.loads(done.stdout)


def test_a_second_process_compiles_nothing_and_damage_costs_a_compile(tmp_path):
  off = start(tmp_path, JAXPEFT_COMPILED_CACHE_GB="0")
  assert off["place"] == "None"
  assert not (tmp_path / "compiled").exists()
  first = start(tmp_path)
  files = sorted((tmp_path / "compiled").iterdir())
  assert first["hits"] == 0
  assert first["misses"] == len(files) > 1
  second = start(tmp_path)
  assert (second["hits"], second["misses"]) == (len(files), 0)
  for file, damage in zip(files, (b"", b"x" * 100), strict=False):
    file.write_bytes(damage)
  largest = max(files, key=lambda file: file.stat().st_size)
  whole = bytearray(largest.read_bytes())
  whole[len(whole) // 2] ^= 1
  largest.write_bytes(whole)
  mended = start(tmp_path)
  assert mended["hits"] + mended["misses"] == len(files)
  assert 2 <= mended["misses"] <= 3
  again = start(tmp_path)
  assert (again["hits"], again["misses"]) == (len(files), 0)
  for key in ("bits", "norm", "memory"):
    assert off[key] == first[key] == second[key] == mended[key]


def test_the_users_own_directory_is_left_to_jax(tmp_path):
  found = start(tmp_path / "ours", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))
  assert found["place"] == str(tmp_path / "own")
  assert not (tmp_path / "ours").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="changes an owner")
def test_a_directory_of_others_is_not_used(tmp_path):
  place = tmp_path / "compiled"
  assert compiled._is_ours(place)
  assert place.stat().st_mode & 0o777 == 0o700
  place.chmod(0o777)
  assert not compiled._is_ours(place)
  place.chmod(0o700)
  os.chown(place, 12345, -1)
  assert not compiled._is_ours(place)
  (tmp_path / "file").write_text("")
  assert not compiled._is_ours(tmp_path / "file" / "compiled")


def test_files_are_bounded_and_a_full_disk_fails_nothing(tmp_path, monkeypatch):
  kept = compiled._Files(tmp_path, 3000)
  for i in range(5):
    kept.put(f"k{i}", bytes([i]) * 900)
    for j in range(i):  # used in the order of their numbers
      disk.os.utime(kept._file(f"k{j}"), (j, j)) if kept._file(f"k{j}").exists() else 0
    assert disk.size(tmp_path) <= 3000
  assert kept.get("k4") == bytes([4]) * 900
  assert kept.get("k0") is None
  kept.put("large", bytes(4000))
  assert kept.get("large") is None
  assert kept.get("k4") is not None

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(pathlib.Path, "write_bytes", full)
  kept.put("k9", b"1")
  assert kept.get("k9") is None
  assert not list(tmp_path.glob(".new-*"))
