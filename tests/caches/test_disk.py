"""Bounded directories of files that can be made again."""

import os

import pytest

from jaxpeft.caches import disk
from jaxpeft.errors import InputError


def fill(place, sizes, first=1000):
  """Files a, b, ... of these sizes, each used one second after the one before."""
  for i, size in enumerate(sizes):
    path = place / "abcdefgh"[i]
    path.write_bytes(bytes(size))
    os.utime(path, (first + i, first + i))


def names(place):
  return "".join(sorted(path.name for path in place.iterdir()))


def test_the_files_that_were_used_longest_ago_are_dropped(tmp_path):
  fill(tmp_path, [10] * 8)
  assert disk.drop(tmp_path, 80) == 80
  disk.used(tmp_path / "a")
  assert disk.drop(tmp_path, 50) == 40  # down to 80 % of the limit
  assert names(tmp_path) == "afgh"
  assert disk.drop(tmp_path, 5, since=1006.5) == 20  # not what was used since then
  assert names(tmp_path) == "ah"


def test_what_a_killed_process_left_is_removed_and_what_is_written_stays(tmp_path):
  for name, age in ((".new-old", 1.0), (".new-now", None)):
    (tmp_path / name).write_bytes(b"123")
    if age:
      os.utime(tmp_path / name, (age, age))
  disk.drop(tmp_path, 1e9)
  assert names(tmp_path) == ".new-now"


def test_a_file_appears_whole_or_not_at_all(tmp_path):
  path = tmp_path / "new" / "file"

  def half(name):
    with open(name, "w") as f:
      f.write("half")
    raise OSError("disk full")

  assert not disk.write(path, half)
  assert names(path.parent) == ""
  assert disk.write(path, lambda name: open(name, "w").write("whole"))
  assert path.read_text() == "whole"
  (tmp_path / "flat").write_text("")
  assert not disk.write(tmp_path / "flat" / "file", half)  # no directory


def test_limits_come_from_the_environment_and_from_the_disk(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXPEFT_CACHE", str(tmp_path))
  monkeypatch.setenv("JAXPEFT_SVD_CACHE_GB", "0.5")
  assert disk.limit("svd") == 0.5e9
  monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: type("", (), dict(free=60)))
  (tmp_path / "svd").mkdir()
  fill(tmp_path / "svd", [20, 20])
  assert disk.allowed("svd") == 25
  for wrong in ("much", "-1", "nan", ""):
    monkeypatch.setenv("JAXPEFT_SVD_CACHE_GB", wrong)
    with pytest.raises(InputError, match="JAXPEFT_SVD_CACHE_GB is"):
      disk.limit("svd")
  monkeypatch.setenv("JAXPEFT_SVD_CACHE_GB", "0")
  assert disk.allowed("svd") == 0
  assert any("svd" in line and "at most 0.0 GB" in line for line in disk.summary())
