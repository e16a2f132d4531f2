"""Data sets of the hub: a server with its routes, and the rules for their files."""

import contextlib
import hashlib
import http.server
import json
import pathlib
import subprocess
import sys
import threading

import pytest

import jaxpeft
from jaxpeft.data import files as readers
from jaxpeft.data import formats, hub, sources

ROWS = [dict(question=f"{i}+1?", answer=str(i + 1)) for i in range(9)]
CONVERTED = "refs/convert/parquet"


def lines(rows) -> bytes:
  return "".join(json.dumps(row) + "\n" for row in rows).encode()


CARD = b"""---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: [main/test.csv]
- config_name: other
  data_dir: more
  data_files: "*.jsonl"
---
# A card
"""
CSV = b"question,answer\n0+1?,1\n"


@pytest.fixture
def repos(monkeypatch, tmp_path):
  """{(repository, revision): {name: content}}, which huggingface_hub then finds."""
  client = pytest.importorskip("huggingface_hub")
  found = {}

  class Api:
    def dataset_info(self, repo, revision=None):
      if (repo, revision) not in found:
        raise OSError(f"404: no {repo} at {revision}")
      siblings = [type("S", (), dict(rfilename=x)) for x in found[repo, revision]]
      return type("Info", (), dict(siblings=siblings))

  def download(repo, name, repo_type, revision=None):
    assert repo_type == "dataset"
    path = tmp_path / repo / str(revision) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(found[repo, revision][name])
    return str(path)

  def snapshot(repo, **_):
    raise OSError("nothing was downloaded")

  monkeypatch.setattr(client, "HfApi", Api)
  monkeypatch.setattr(client, "hf_hub_download", download)
  monkeypatch.setattr(client, "snapshot_download", snapshot)
  return found


@pytest.fixture
def carded(repos):
  repos["org/set", None] = {
    "README.md": CARD,
    "main/train-00001.jsonl": lines(ROWS[4:]),
    "main/train-00000.jsonl": lines(ROWS[:4]),
    "main/test.csv": CSV,
    "more/a.jsonl": lines(ROWS[:2]),
    "notes.txt": b"",
  }


def test_the_card_says_which_files_belong_together(carded):
  assert sources.read("org/set:main[train]") == ROWS
  assert sources.read("org/set:main[test]") == ROWS[:1]
  assert sources.read("org/set:other") == ROWS[:2]


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("org/set", "has several configs; name one, as in org/set:main.*main, other"),
    ("org/set:mian[train]", "unknown config .*mean 'main'"),
    ("org/set:main", r"several splits; name one, as in org/set:main\[train\]"),
    ("org/set:main[tset]", "unknown split .*mean 'test'"),
    ("org/none", r"no data file 'org/none', and its download .*404: no org/none"),
    ("org/set@v9[train]", "404: no org/set at v9"),
  ],
)
def test_a_name_that_does_not_fit_is_one_clear_line(carded, name, message):
  with pytest.raises(jaxpeft.InputError, match=message):
    sources.read(name)


def test_without_a_card_the_names_of_files_say_their_split(repos):
  repos["org/set", "v1"] = {
    "data/train.jsonl": lines(ROWS[:3]),
    "data/dev.jsonl": lines(ROWS[3:5]),
    "test/0.jsonl": lines(ROWS[5:]),
    "trainer.py": b"",
  }
  assert sources.read("org/set@v1[train]") == ROWS[:3]
  assert sources.read("org/set@v1[validation]") == ROWS[3:5]
  assert sources.read("org/set@v1[test]") == ROWS[5:]
  repos["org/one", None] = {"rows.jsonl": lines(ROWS)}
  assert sources.read("org/one") == ROWS


def test_otherwise_the_conversion_to_parquet_is_taken(repos, tmp_path):
  pa = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
  content = (tmp_path / "a.parquet").read_bytes()
  repos["org/set", None] = {"set.py": b"", "data.zip": b""}
  repos["org/set", CONVERTED] = {
    "default/train/0000.parquet": content,
    "default/partial-test/0000.parquet": content,
  }
  assert sources.read("org/set[train]") == ROWS
  with pytest.raises(jaxpeft.InputError, match=r"partial-test, train"):
    sources.read("org/set[test]")
  repos["org/set", "v1"] = repos["org/set", None]
  with pytest.raises(jaxpeft.InputError, match="no files that could be read"):
    sources.read("org/set@v1[train]")


def test_a_file_that_is_there_counts_before_the_hub(repos, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "org").mkdir()
  (tmp_path / "org" / "set").write_bytes(lines(ROWS[:1]))
  assert sources.read("org/set") == ROWS[:1]
  for missing in ("org/sat.jsonl", "org/sat.csv.gz"):  # nobody is asked for these
    assert hub.parse(missing) is None
    with pytest.raises(jaxpeft.InputError, match="no such file, and it is no data set"):
      sources.read(missing)


@pytest.mark.parametrize(
  "card", [b"---\n{[\n---", b"---\n&a [*a]\n---", b"---\nconfigs: 3\n---", b"\xff" * 50]
)
def test_a_damaged_card_is_no_traceback(repos, card):
  repos["org/set", None] = {"README.md": card, "train.jsonl": lines(ROWS)}
  with contextlib.suppress(jaxpeft.InputError):
    assert sources.read("org/set") == ROWS


SCRIPT = """
import json, sys
from jaxpeft.data import sources
for name in sys.argv[1:]:
  print(json.dumps(sources.read(name)))
"""


def test_huggingface_hub_itself_downloads_them_and_finds_them_offline(tmp_path):
  """Its own client against a server with the hub's routes."""
  pytest.importorskip("huggingface_hub")
  content = {"README.md": CARD, "main/train-0.jsonl": lines(ROWS), "main/test.csv": CSV}
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(content))
  threading.Thread(target=server.serve_forever, daemon=True).start()
  names = ["org/set:main[train]", "org/set:main[test]"]
  where = dict(
    HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_HOME=str(tmp_path),
    PATH="/usr/bin:/bin", HF_HUB_DISABLE_XET="1",
  )  # fmt: skip
  root = pathlib.Path(__file__).parents[2]
  command = [sys.executable, "-c", SCRIPT, *names]

  def out(**more):
    done = subprocess.run(
      command, env=where | more, capture_output=True, text=True, cwd=root
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]

  assert out() == [ROWS, ROWS[:1]]
  server.shutdown()
  server.server_close()
  assert out(HF_HUB_OFFLINE="1") == [ROWS, ROWS[:1]]


def handler(content: dict[str, bytes]):
  commit = "0123456789012345678901234567890123456789"

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      base = "/datasets/org/set/resolve/main/"
      if self.path.split("?")[0] in (
        "/api/datasets/org/set",
        "/api/datasets/org/set/revision/main",
      ):
        siblings = [dict(rfilename=name) for name in content]
        info = dict(id="org/set", sha=commit, siblings=siblings, tags=[], private=False)
        self.answer(json.dumps(info).encode(), "application/json")
      elif self.path.startswith(base) and self.path.removeprefix(base) in content:
        self.answer(content[self.path.removeprefix(base)], "text/plain")
      else:
        self.send_error(404)

    do_HEAD = do_GET

    def answer(self, data: bytes, kind: str):
      self.send_response(200)
      self.send_header("Content-Type", kind)
      self.send_header("Content-Length", str(len(data)))
      self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
      self.send_header("X-Repo-Commit", commit)
      self.end_headers()
      if self.command == "GET":
        self.wfile.write(data)

    def log_message(self, *_):
      pass

  return Handler


def test_names_are_taken_apart():
  assert hub.parse("a/b") == ("a/b", None, None, None)
  assert hub.parse("a/b@r:c[s]") == ("a/b", "r", "c", "s")
  assert hub.parse("a/b[s]") == ("a/b", None, None, "s")
  for other in ("a", "/a/b", "a/b/c", "a/b[s", "./a", "embedded:x/train", "a/b.jsonl"):
    assert hub.parse(other) is None
  assert readers.known("x.jsonl.gz")
  assert "messages" in formats.FIELDS
