"""`Lm`: jaxpeft's models for lm-evaluation-harness, registered there as "jaxpeft".

Importing this module registers it. Where the harness leaves something to a model, its
own Hugging Face model (`lm_eval.models.huggingface.HFLM`) is followed, so that both
give the same numbers: what is cut, which windows a long text is scored in, and that a
text which begins with the beginning-of-text token gets no second one.

Source: lm-evaluation-harness 0.4.13.
"""

import dataclasses
import importlib.metadata
from typing import Any

import jax
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs

from jaxpeft import adapters, console
from jaxpeft import model as models
from jaxpeft.data import contents, template
from jaxpeft.errors import InputError
from jaxpeft.generation import decode, ends
from jaxpeft.generation.sampling import Sampling
from jaxpeft.harness import opened
from jaxpeft.harness.likelihoods import likelihoods

_FIELDS = frozenset(x.name for x in dataclasses.fields(Sampling))
_OTHER = frozenset(("do_sample", "until", "max_gen_toks"))


@register_model("jaxpeft")
class Lm(TemplateLM):
  """A run or a bare model; see `opened.Options` for the arguments."""

  def __init__(self, model: str | models.Model | None = None, **arguments):
    super().__init__()
    given = model if isinstance(model, models.Model) else None
    name = model if isinstance(model, str) else None
    self.options = opened.options(dict(arguments, model=name), loaded=given is not None)
    self.model = opened.read(self.options) if given is None else given
    self.name = str(self.options.ckpt or self.model.name)
    self._noted: set[str] = set()

  @classmethod
  def create_from_arg_obj(cls, arg_dict, additional_config=None):
    """The model that flags of the harness name; --model_args count before others."""
    return cls(**((additional_config or {}) | arg_dict))

  @classmethod
  def create_from_arg_string(cls, arg_string, additional_config=None):
    """As `create_from_arg_obj`, for a text NAME=VALUE,NAME=VALUE."""
    parsed = utils.simple_parse_args_string(arg_string)
    return cls.create_from_arg_obj(parsed, additional_config)

  # ---- facts that the harness asks for

  @property
  def batch_size(self) -> int | str:
    """Most contexts at once; "auto" is as many as memory holds."""
    return self.options.batch_size or "auto"

  @property
  def max_length(self) -> int:
    """Most tokens that the model reads at once."""
    return min(self.options.max_length, self.model.config.max_positions)

  @property
  def max_gen_toks(self) -> int:
    """Most new tokens, where a task does not say."""
    return self.options.max_gen_toks

  @property
  def eot_token_id(self) -> int:
    """The token that ends a text."""
    tokenizer = self.model.tokenizer
    found = (*tokenizer.eos_ids, tokenizer.bos_id, tokenizer.pad_id)
    for token in found:
      if token is not None:
        return token
    raise InputError(
      f"the tokenizer of {self.name} names no token that ends or begins a text; add "
      "eos_token to tokenizer_config.json"
    )

  @property
  def prefix_token_id(self) -> int:
    """The token before a text that has no context."""
    bos = self.model.tokenizer.bos_id
    return self.eot_token_id if bos is None else bos

  @property
  def tokenizer_name(self) -> str:
    """A name for the harness's cache of requests."""
    return self.name.replace("/", "__")

  def get_model_info(self) -> dict[str, Any]:
    """What the harness writes into its results."""
    return dict(
      model_source=self.model.name,
      model_ckpt=str(self.options.ckpt or ""),
      model_num_parameters=adapters.count(self.model.params).total,
      model_dtype=str(self.model.transformer.dtype),
      jaxpeft_version=importlib.metadata.version("jaxpeft"),
      jax_version=jax.__version__,
    )

  # ---- texts and tokens

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **kwargs
  ) -> list[int]:
    """The tokens of a text; with a beginning-of-text token if the tokenizer adds one.

    Args:
      string: the text.
      add_special_tokens: False adds none; None adds none to a text that has it.
      **kwargs: of other models; ignored.
    """
    tokenizer = self.model.tokenizer
    if add_special_tokens is None:
      first = tokenizer.decode([self.prefix_token_id], skip_special=False)
      add_special_tokens = not string.startswith(first)
    return tokenizer.encode(string, bos=add_special_tokens)

  def chat_template(self, chat_template: bool | str = False) -> str | None:
    """The chat template's source, for the harness's log."""
    if isinstance(chat_template, str) and chat_template != "default":
      raise InputError(f"there is no chat template {chat_template!r}; give no name")
    return self.model.tokenizer.template_for(None) if chat_template else None

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> str:
    """The text of a conversation.

    Args:
      chat_history: messages.
      add_generation_prompt: whether the header of an answer follows. Otherwise the text
        ends with the last message, which the model goes on with.
    """
    try:
      return self._rendered(chat_history, add_generation_prompt)
    except InputError:
      rest = [m for m in chat_history if m["role"] != "system"]
      if rest == chat_history:
        raise
      self._note("the chat template takes no system prompt, which is left out")
      return self._rendered(rest, add_generation_prompt)

  def _rendered(self, messages, header: bool) -> str:
    tokenizer = self.model.tokenizer
    source, special = tokenizer.template_for(None), tokenizer.special
    given = template.normalized(contents.for_template(messages, source, special))
    text = template.render(source, given, header, special)
    if header:
      return text
    last = given[-1]["content"]
    at = text.rfind(last.strip())
    if at < 0:
      raise InputError("the chat template changes the last message, which is to go on")
    kept = last.lstrip()  # with its last spaces, if the template keeps them
    end = at + len(kept if text[at:].startswith(kept) else last.strip())
    return text[:end]

  # ---- what the harness asks

  def _loglikelihood_tokens(
    self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs
  ) -> list[tuple[float, bool]]:
    found = self._scored([(context, own) for _, context, own in requests])
    for (texts, _, _), answer in zip(requests, found, strict=True):
      self.cache_hook.add_partial("loglikelihood", texts, answer)
    return found

  def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
    """The log-likelihood of each whole text, in nats; see `LM` for its windows."""
    windows, counts = [], []
    for (text,) in [request.args for request in requests]:
      found = utils.get_rolling_token_windows(
        self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
      )
      some = [utils.make_disjoint_window(x) for x in found]
      windows += some
      counts.append(len(some))
    scores = iter(self._scored(windows))
    out = [sum(next(scores)[0] for _ in range(count)) for count in counts]
    for request, total in zip(requests, out, strict=True):
      self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
    return out

  def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
    """The text that goes on from each context, up to the first stop text."""
    groups: dict[str, list[int]] = {}
    for i, request in enumerate(requests):
      groups.setdefault(repr(request.args[1]), []).append(i)
    out = [""] * len(requests)
    for numbers in groups.values():
      options = normalize_gen_kwargs(requests[numbers[0]].args[1], self.max_gen_toks)
      texts = self._generated([requests[i].args[0] for i in numbers], dict(options))
      for i, text in zip(numbers, texts, strict=True):
        out[i] = text
        self.cache_hook.add_partial("generate_until", requests[i].args, text)
    return out

  def _generated(self, texts: list[str], options: dict[str, Any]) -> list[str]:
    """Answers to contexts that have the same options."""
    for name in sorted(options.keys() - _FIELDS - _OTHER):
      self._note(f"the generation option {name} is unknown here, and is not used")
    new, model = options["max_gen_toks"], self.model
    room = self.max_length - new
    if room < 1:
      raise InputError(
        f"max_gen_toks {new} leaves no room for a context among the {self.max_length} "
        "tokens that the model reads; lower it: --gen_kwargs max_gen_toks=N"
      )
    ids = [self.tok_encode(text) for text in texts]
    cut = sum(len(x) > room for x in ids)
    if cut:
      self._note(f"{cut} contexts lose tokens at their start: over {room} tokens")
    known = {k: x for k, x in options.items() if k in _FIELDS and x is not None}
    found = decode.generate(
      model.transformer, model.params, [x[-room:] for x in ids], new,
      model.tokenizer.eos_ids, Sampling(**known), self.options.seed,
      self.options.batch_size, "answers",
    )  # fmt: skip
    return [ends.before(model.tokenizer.decode(x), options["until"]) for x in found]

  def _scored(self, pairs) -> list[tuple[float, bool]]:
    size = self.options.batch_size
    return likelihoods(self.model, pairs, self.max_length, size, "log-likelihoods")

  def _note(self, text: str):
    """Says something once."""
    if text not in self._noted:
      self._noted.add(text)
      console.note(f"note: {text}")
