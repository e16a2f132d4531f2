"""Forms of a prompt: how what a person types is put to the model.

A model with a chat template sees the whole conversation. A run that was trained on
rows without a template sees each line alone, worded as its training prompts were.
"""

from jaxpeft.data import formats, sources
from jaxpeft.errors import InputError
from jaxpeft.generation import ask

# form -> what is said about it
FORMS = {
  "chat": "the tokenizer's chat template, with the whole conversation",
  "question/answer": 'every line alone, as "Question: ...\\nAnswer:"',
  "alpaca": "every line alone, as an instruction in Alpaca's words",
  "plain": "every line alone, to be continued",
}
# form of training rows -> form of a prompt
_OF_ROWS = {
  "messages": "chat",
  "question/answer": "question/answer",
  "choices": "question/answer",
  "alpaca": "alpaca",
  "prompt/completion": "plain",
  "segments": "plain",
}


def of_model(tokenizer) -> str:
  """The form for a model as it is: its chat template, if it has one."""
  return "chat" if tokenizer.chat_template else "plain"


def of_run(config, tokenizer) -> tuple[str, str]:
  """(form, why): the form in which a run was trained.

  Args:
    config: of the run. The first row of its data says which form they have.
    tokenizer: its tokenizer.
  """
  d = config.data
  for source in (d.train, d.eval):
    try:
      first = next(iter(sources.find(source, d.columns).placed(1)))
      rows = formats.checked(first.row, first.place)[0]
    except (InputError, OSError):  # the data are elsewhere
      continue
    return _OF_ROWS[rows], f"the run was trained on rows with {rows}"
  return of_model(tokenizer), f"{d.train}, on which the run was trained, is not here"


def tokens(form: str, tokenizer, messages: list[dict]) -> list[int]:
  """The tokens of a prompt.

  Args:
    form: a key of `FORMS`.
    tokenizer: a `Tokenizer`.
    messages: the conversation; the last message is the user's.
  Raises:
    InputError: the chat template refuses the conversation, or the text has no tokens.
  """
  if form == "chat":
    return ask.prompt_ids(tokenizer, ask.Conversation(messages))
  line = messages[-1]["content"]
  row = dict(question=line, answer="", instruction=line, output="")
  text = line if form == "plain" else formats.prompt_and_completion(row, form)[0]
  ids = tokenizer.encode(text, bos=True)
  if not ids:
    raise InputError("the line has no tokens")
  return ids
