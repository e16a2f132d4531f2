"""Trains the embedded tokenizer: python tools/make_tokenizer.py

Byte-level BPE on the embedded problems, so that any text can be encoded; digits are
single tokens. The same input gives the same file.
"""

import json
import pathlib

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxpeft import assets
from jaxpeft.data import sources

VOCABULARY = 512
SPECIAL = ("<pad>", "<bos>", "<eos>")


def main(directory: pathlib.Path = assets.TINY):
  """Writes tokenizer.json and tokenizer_config.json."""
  texts = []
  for name in ("one_step/train", "two_step/train"):
    for row in sources.embedded(name):
      texts.append("".join(sources.prompt_and_completion(row, "question/answer")))
  core = tokenizers.Tokenizer(models.BPE())
  core.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  core.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=VOCABULARY,
    special_tokens=list(SPECIAL),
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  core.train_from_iterator(texts, trainer)
  core.post_processor = tokenizers.processors.TemplateProcessing(
    single="<bos> $A", special_tokens=[("<bos>", core.token_to_id("<bos>"))]
  )
  directory.mkdir(exist_ok=True)
  core.save(str(directory / "tokenizer.json"))
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "pad_token": "<pad>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "model_max_length": 512,
    "chat_template": (
      "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
      "Question: {{ m.content }}\nAnswer:{% else %}{% generation %} {{ m.content }}"
      "{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    ),
  }
  (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
  main()
