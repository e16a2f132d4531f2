"""The chat templates of real models, as TRL ships them: what is supervised of each.

JAXPEFT_TEMPLATES names the directory (trl/chat_templates, from
`pip install --no-deps --target DIR trl`).
"""

# ruff: noqa: RUF001  (DeepSeek's special tokens have fullwidth bars)

import os
import pathlib
import re

import pytest

import jaxpeft
from jaxpeft.data import template
from tests.support import chats

pytest.importorskip("transformers")

_LLAMA = r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n(.*?<\|eot_id\|>)"
_IM = r"<\|im_start\|>assistant\n"
_TURN = r"<\|turn>model\n(.*?<turn\|>)"
# family -> (text start, ends of a text, what is supervised)
STOCK = {
  "cohere2": (
    "<BOS_TOKEN>",
    ["<|END_OF_TURN_TOKEN|>"],
    r"<\|START_RESPONSE\|>(.*?<\|END_OF_TURN_TOKEN\|>)",
  ),
  "cohere": (
    "<BOS_TOKEN>",
    ["<|END_OF_TURN_TOKEN|>"],
    r"<\|CHATBOT_TOKEN\|>(.*?<\|END_OF_TURN_TOKEN\|>)",
  ),
  "deepseek": (
    "<｜begin▁of▁sentence｜>",
    ["<｜end▁of▁sentence｜>"],
    r"(?:<｜Assistant｜>|<｜tool▁outputs▁end｜>)(?:<think>\n)?(.*?<｜end▁of▁sentence｜>)",
  ),
  "gemma4": ("<bos>", ["<eos>"], _TURN),
  "diffusion_gemma": ("<bos>", ["<eos>"], _TURN),
  "gemma": ("<bos>", ["<eos>"], r"<start_of_turn>model\n(.*?<end_of_turn>)"),
  "glm4moe": (
    None,
    ["<|endoftext|>", "<|user|>", "<|observation|>"],
    r"<\|assistant\|>(.*?(?:<\|user\|>|<\|observation\|>|\Z))",
  ),
  "gptoss": (
    "<|startoftext|>",
    ["<|return|>", "<|call|>"],
    r"<\|start\|>assistant((?:(?!<\|start\|>(?:user|functions)).)*)",
  ),
  "idefics3": (
    "<|begin_of_text|>",
    ["<|eot_id|>"],
    r"Assistant:(.*?<end_of_utterance>)",
  ),
  "smolvlm": ("<|im_start|>", ["<|eot_id|>"], r"Assistant:(.*?<end_of_utterance>)"),
  "lfm2": ("<|startoftext|>", ["<|im_end|>"], _IM + r"(.*?<\|im_end\|>\n?)"),
  "llama3": ("<|begin_of_text|>", ["<|eot_id|>"], _LLAMA),
  "llava_next": ("<s>", ["</s>"], r"\[/INST\](.*?</s>)"),
  "muse_glimmer": (
    "<|begin_of_text|>",
    ["<|eot|>"],
    r"<\|start\|>assistant((?:(?!<\|start\|>(?:user|tool|add)).)*)",
  ),
  "nemotron": ("<s>", ["<|im_end|>"], _IM + r"(?:<think>\n?)?(.*?<\|im_end\|>)"),
  "phi3": ("<s>", ["<|endoftext|>", "<|end|>"], r"<\|assistant\|>\n(.*?<\|end\|>)"),
  "qwen3_5_nothink": (
    None,
    ["<|im_end|>"],
    _IM + r"(?:<think>\n(?:\n</think>\n\n)?)?(.*?<\|im_end\|>)",
  ),
  **dict.fromkeys(
    ("qwen3_5_think", "qwen3_6", "qwen3_8"),
    (None, ["<|im_end|>"], _IM + r"(?:<think>\n)?(.*?<\|im_end\|>)"),
  ),
  "qwen": (None, ["<|im_end|>"], _IM + r"(.*?<\|im_end\|>)"),
}
# Conversations of which transformers loses the answers, or prints them as Python code.
_NO_CALLS = ("tools", "numbers", "text_tools")
_TEXTS = tuple(set(chats.CONVERSATIONS) - {"list"} - set(_NO_CALLS))
REFUSED = {
  "cohere2": ("list",),
  "deepseek_r1_distill": _NO_CALLS,
  "gemma": ("list",),
  "idefics3": (*_TEXTS, *_NO_CALLS),
  "lfm2": _NO_CALLS,
  "llama3": ("list", *_NO_CALLS),
  "llama3_1": ("list",),
  "llama3_2": ("list",),
  "nemotron": ("list",),
  "phi3": _NO_CALLS,
  "phi3_5": _NO_CALLS,
  "qwen2_5_vl": _NO_CALLS,
  "qwen3": ("list",),
  "qwen3_instruct_2507": ("list",),
  "smolvlm": (*_TEXTS, *_NO_CALLS),
}


def family(table, name: str):
  """The entry of a table with the longest key that begins the name."""
  return table[max((key for key in table if name.startswith(key)), key=len)]


@pytest.mark.slow
@pytest.mark.parametrize("case", chats.CONVERSATIONS)
def test_stock_templates_are_supervised_exactly(case, monkeypatch):
  """Text and answers; and nothing else is refused than what `REFUSED` lists."""
  place = os.environ.get("JAXPEFT_TEMPLATES")
  if not place:
    pytest.skip("JAXPEFT_TEMPLATES names no directory with TRL's templates")
  messages, tools = chats.CONVERSATIONS[case]
  paths = sorted(pathlib.Path(place).glob("*.jinja"))
  assert len(paths) > 20
  for path in paths:
    name, source = path.stem, path.read_text()
    start, ends, pattern = family(STOCK, name)
    tok = chats.make_tokenizer(source, start, ends)
    them = chats.theirs(tok, monkeypatch)
    options = {"chat_template": source, "tools": tools}
    try:
      want = them.apply_chat_template(messages, tokenize=False, **options)
    except Exception:
      with pytest.raises(jaxpeft.InputError):
        tok.chat(messages, tools=tools)
      continue
    plain = template.normalized(messages)
    assert template.render(source, plain, False, tok.special, tools) == want
    key = name.removesuffix("_training")
    if case in REFUSED.get(key, ()) or (key.startswith("nemotron") and case == "list"):
      with pytest.raises(jaxpeft.InputError):
        tok.chat(messages, tools=tools)
      continue
    ids, mask = tok.chat(messages, tools=tools)
    text = tok.decode(ids, skip_special=False)
    assert text.removesuffix("<|endoftext|>") == want.removesuffix("<|endoftext|>")
    if name.endswith("_training"):  # their tags decide; transformers has the mask
      got = them.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True, **options
      )
      assert mask[: len(got["assistant_masks"])] == got["assistant_masks"], name
    elif not (
      name.startswith(("gemma4", "diffusion")) and tools
    ):  # one turn with tools
      expected = re.findall(pattern, text, re.DOTALL)
      runs = [run.rstrip("\n") for run in chats.supervised(tok, ids, mask)]
      assert runs == [answer.rstrip("\n") for answer in expected], name
