"""A small hub on this machine: the part of its HTTP interface that is used."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

SHA = "a" * 40


class Hub(http.server.ThreadingHTTPServer):
  """Repositories in memory.

  Attributes:
    repos: {"org/name": {file: bytes}}.
    private: names of those that were made private.
    branches: [(name, branch)] that were made.
    seen: [(method, path, whether it had a token)] of all requests.
    refuse: an HTTP status to answer every request with, or 0.
  """

  daemon_threads = True

  def __init__(self):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.repos, self.private, self.branches, self.seen = {}, set(), [], []
    self.refuse = 0

  @property
  def url(self) -> str:
    return f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def running():
  """A hub that answers until the end of the context."""
  hub = Hub()
  thread = threading.Thread(target=hub.serve_forever, daemon=True)
  thread.start()
  try:
    yield hub
  finally:
    hub.shutdown()
    thread.join()
    hub.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
  server: Hub
  protocol_version = "HTTP/1.1"

  def log_message(self, *_):
    pass

  def _answer(self, value=None, status=200, headers=(), body=None):
    body = json.dumps(value).encode() if body is None else body
    self.send_response(status)
    for name, text in headers:
      self.send_header(name, text)
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(body)

  def _begin(self) -> str | None:
    path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
    self.server.seen.append((self.command, path, "Authorization" in self.headers))
    if self.server.refuse:
      self.rfile.read(int(self.headers.get("Content-Length") or 0))
      self._answer({"error": "no"}, self.server.refuse)
      return None
    return path

  def do_POST(self):
    path = self._begin()
    if path is None:
      return
    data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
    if path == "/api/repos/create":
      given = json.loads(data)
      name = f"{given['organization']}/{given['name']}"
      self.server.repos.setdefault(name, {})
      if given.get("private") or given.get("visibility") == "private":
        self.server.private.add(name)
      return self._answer({"url": f"{self.server.url}/{name}"})
    if path == "/api/validate-yaml":
      return self._answer({"errors": [], "warnings": []})
    found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(\w+)/(.+)", path)
    if not found or found[1] not in self.server.repos:
      return self._missing()
    name, what, rest = found.groups()
    if what == "branch":
      self.server.branches.append((name, rest))
      return self._answer({})
    if what == "preupload":
      files = [
        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
        for f in json.loads(data)["files"]
      ]
      return self._answer({"files": files})
    assert what == "commit", path
    for line in data.splitlines():
      entry = json.loads(line)
      if entry["key"] == "file":
        value = entry["value"]
        assert value["encoding"] == "base64"
        self.server.repos[name][value["path"]] = base64.b64decode(value["content"])
    url = f"{self.server.url}/{name}/commit/{SHA}"
    return self._answer({"commitUrl": url, "commitOid": SHA, "hookOutput": ""})

  def do_GET(self):
    path = self._begin()
    if path is None:
      return None
    found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
    if found and found[1] in self.server.repos:
      if found[2] not in (None, "main", SHA):
        headers = [("X-Error-Code", "RevisionNotFound")]
        return self._answer({"error": "no revision"}, 404, headers)
      files = self.server.repos[found[1]]
      listed = [{"rfilename": k, "size": len(v)} for k, v in files.items()]
      return self._answer({"id": found[1], "sha": SHA, "siblings": listed})
    found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
    if found and found[2] in self.server.repos.get(found[1], {}):
      body = self.server.repos[found[1]][found[2]]
      etag = hashlib.sha1(body).hexdigest()
      headers = [("ETag", f'"{etag}"'), ("X-Repo-Commit", SHA)]
      return self._answer(None, 200, headers, body)
    return self._missing()

  do_HEAD = do_GET

  def _missing(self):
    headers = [("X-Error-Code", "RepoNotFound")]
    self._answer({"error": "Repository not found"}, 404, headers)
