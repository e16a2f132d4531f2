"""The prompt and the right answer of a row, in any of the forms that training takes."""

from collections.abc import Sequence

from jaxpeft.data import formats
from jaxpeft.errors import InputError
from jaxpeft.generation.ask import Conversation, plain_content

Prompt = str | Conversation


def split(row: dict, task: str) -> tuple[Prompt, str]:
  """(prompt, completion): what the model is given, and what it should answer.

  Of a conversation, the last message is the completion and must be the assistant's.

  Args:
    row: of a form in `formats`.
    task: name of the task, for messages.
  Raises:
    InputError: the row has no known form, or no answer.
  """
  form, row = formats.checked(row, f"task {task}: a row")
  if form != "messages":
    return formats.prompt_and_completion(row, form)
  *before, last = row["messages"]
  if last["role"] != "assistant" or not before or not plain_content(last).strip():
    raise InputError(
      f"task {task}: a conversation must end with a text of the assistant, which is "
      f"the right answer; this one has the roles {[m['role'] for m in row['messages']]}"
    )
  return Conversation(before, row["tools"]), plain_content(last)


def with_shots(prompt: Prompt, shots: Sequence[tuple[Prompt, str]]) -> Prompt:
  """A prompt after solved examples: blank lines between texts, turns before turns."""
  if isinstance(prompt, str):
    return "\n\n".join([*(f"{before}{after}" for before, after in shots), prompt])
  turns = []
  for before, after in shots:
    assert isinstance(before, Conversation)
    answer = dict(role="assistant", content=after)
    turns += [m for m in before.messages if m["role"] != "system"] + [answer]
  system = [m for m in prompt.messages if m["role"] == "system"]
  rest = [m for m in prompt.messages if m["role"] != "system"]
  return prompt._replace(messages=system + turns + rest) if turns else prompt
