"""A real server on this machine: transformers serves SmolLM2, and we ask it.

The model is found by JAXPEFT_REAL, see tests/support/real.py.
"""

import pathlib
import socket
import subprocess
import sys
import time

import pytest

from jaxpeft.generation.ask import Conversation, Request
from jaxpeft.generation.remote import RemoteAsk
from tests.support import real

pytestmark = pytest.mark.slow
CHAT = Conversation([dict(role="user", content="What is the capital of France?")])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A directory of the model as transformers writes it."""
  transformers = pytest.importorskip("transformers")
  for name in ("fastapi", "uvicorn", "openai", "httpx"):
    pytest.importorskip(name)
  path = real.path()
  out = tmp_path_factory.mktemp("served") / "smollm2"
  options = dict(pretrained_model_name_or_path=str(path.parent), gguf_file=path.name)
  model = transformers.AutoModelForCausalLM.from_pretrained(**options)
  model.hf_quantizer = None  # its weights are plain numbers now
  if hasattr(model.config, "quantization_config"):
    del model.config.quantization_config
  model.save_pretrained(out)
  transformers.AutoTokenizer.from_pretrained(**options).save_pretrained(out)
  return out


@pytest.fixture(scope="module")
def url(folder):
  """The address of the server, which is stopped at the end."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  log = folder.parent / "log"
  program = pathlib.Path(sys.executable).with_name("transformers")
  words = [
    program,
    "serve",
    folder,
    "--host=127.0.0.1",
    f"--port={port}",
    "--device=cpu",
  ]
  with log.open("w") as out:
    server = subprocess.Popen(words, stdout=out, stderr=out)
  try:
    end = time.monotonic() + 600
    while True:
      assert server.poll() is None, log.read_text()
      assert time.monotonic() < end, log.read_text()
      try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        break
      except OSError:
        time.sleep(0.5)
    yield f"http://127.0.0.1:{port}/v1"
  finally:
    server.terminate()
    server.wait(300)


def test_a_served_model_answers(folder, url):
  asked = RemoteAsk(url, str(folder), max_new_tokens=12, concurrency=2)
  chat, text, short = asked(
    [
      Request(CHAT),
      Request("The capital of France is"),
      Request(CHAT, max_new_tokens=2),
    ]
  )
  assert "Paris" in chat.text
  assert text.text
  assert chat.text.startswith(short.text)
  assert not short.ended
  for reply, most in ((chat, 13), (text, 13), (short, 3)):
    assert 1 <= reply.tokens <= most
    assert reply.prompt_tokens > 4
  stopped = asked([Request(CHAT, stop=("France",))])[0]
  assert stopped.text == chat.text.split("France")[0]
