"""huggingface_hub, imported when it is needed, and its failures as one line each."""

import contextlib
import re

from jaxpeft import optional
from jaxpeft.errors import InputError

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NETWORK = (
  "httpx",
  "httpcore",
  "requests",
  "urllib3",
)  # whose errors are of many kinds
_SECRET = re.compile(r"hf_\w+|Bearer \S+")


def package():
  """The module huggingface_hub; raises InputError if it is not installed."""
  need = "the hub needs huggingface_hub"
  optional.package("huggingface_hub.errors", need, "hub")
  return optional.package("huggingface_hub", need, "hub")


def check_name(name: str, flag: str) -> str:
  """A repository's name.

  Raises:
    InputError: it is not of the form org/name.
  """
  if not _REPO.fullmatch(name) or ".." in name or "--" in name or len(name) > 96:
    raise InputError(f"{flag}={name} is no name of a repository, org/name")
  return name


@contextlib.contextmanager
def one_line(what: str):
  """Turns what the hub's library raises into an InputError that begins with `what`.

  No token is ever in the message.
  """
  errors = package().errors
  try:
    yield
  except (InputError, KeyboardInterrupt):
    raise
  except errors.LocalTokenNotFoundError as e:
    raise InputError(f"{what}: you are not logged in; run `hf auth login`") from e
  except errors.RevisionNotFoundError as e:
    raise InputError(f"{what}: there is no such revision") from e
  except errors.GatedRepoError as e:
    raise InputError(
      f"{what}: access must be granted first; ask for it on the model's page and log "
      "in with `hf auth login`"
    ) from e
  except errors.RepositoryNotFoundError as e:
    raise InputError(
      f"{what}: there is no such repository, or you may not see it; check the name, or "
      "log in with `hf auth login`"
    ) from e
  except Exception as e:
    status = getattr(getattr(e, "response", None), "status_code", None)
    reason = _SECRET.sub("***", (str(e).strip() or type(e).__name__).splitlines()[0])
    if status in (401, 403):
      reason = "no permission; log in with `hf auth login` as somebody who may do that"
    elif status is None and (
      isinstance(e, ConnectionError | TimeoutError)
      or type(e).__module__.startswith(_NETWORK)
    ):
      reason = f"the hub cannot be reached ({reason})"
    raise InputError(f"{what}: {reason[:300]}") from e
