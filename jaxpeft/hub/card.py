"""The model card of a run: what it is, how it was made, and what was measured."""

import functools
import importlib.metadata

from jaxpeft.hub import client
from jaxpeft.hub.facts import Facts, short
from jaxpeft.training import report

_LIBRARIES = {"peft": "peft", "hf": "transformers", "gguf": None}


def make(
  facts: Facts, repo: str, format: str, base: str | None, license: str | None, parity
) -> str:
  """The card's text, with its YAML header.

  Args:
    facts: of the run.
    repo: "org/name" where it will be.
    format: "peft", "hf" or "gguf".
    base: hub id of the base model; None if there is none.
    license: an identifier of the hub, or None.
    parity: what was measured when the export was read back.
  """
  hub = client.package()
  names = [fields["name"] for fields in facts.methods.values()]
  tags = ["jaxpeft", *dict.fromkeys(x.lower() for x in names)]
  tags += ["gguf"] if format == "gguf" else []
  results = _results(facts)
  data = hub.ModelCardData(
    base_model=base,
    base_model_relation=("adapter" if format == "peft" else "finetune")
    if base
    else None,
    datasets=facts.datasets() or None,
    library_name=_LIBRARIES[format],
    license=license,
    model_name=repo.split("/")[1] if results else None,
    eval_results=results or None,
    pipeline_tag="text-generation",
    tags=tags,
  )
  parts = [
    f"---\n{data.to_yaml()}\n---",
    f"# {repo.split('/')[1]}",
    _summary(facts, format, base, names),
    "## Results\n\n" + _measured(facts),
    "## Use\n\n" + _use(facts, repo, format, base),
    "## Training\n\n" + _training(facts),
    f"The files were read back and compared with the run: {parity}.",
    "Neither safety nor fitness for any purpose was tested beyond the numbers above.",
  ]
  return "\n\n".join(parts) + "\n"


def _results(facts: Facts) -> list:
  """The measured numbers as the hub's EvalResult."""
  final, held = facts.final, facts.data().get("eval")
  if not held:
    return []
  result = functools.partial(
    client.package().EvalResult,
    task_type="text-generation",
    dataset_type=held if held in facts.datasets() else "custom",
    dataset_name=held,
  )
  out = []
  if final.get("accuracy") is not None:
    low, high = final["accuracy_ci95"]
    out.append(
      result(
        metric_type="accuracy",
        metric_value=round(final["accuracy"], 4),
        metric_name=f"accuracy, {facts.config.eval.task} (95 % interval {low:.3f} to "
        f"{high:.3f}, {report.asked(final)})",
      )
    )
  if final.get("eval_loss") is not None:
    out.append(
      result(
        metric_type="loss",
        metric_value=round(final["eval_loss"], 4),
        metric_name="held-out loss, nats per token",
      )
    )
  return out


def _summary(facts: Facts, format: str, base: str | None, names) -> str:
  what = {
    "peft": "An adapter",
    "hf": "A model with its adapter merged",
    "gguf": "A model with its adapter merged, as a GGUF file",
  }[format]
  source = base or short(facts.config.model.source)
  share = facts.final.get("trainable_parameters")
  return (
    f"{what}: `{source}` fine-tuned by {', '.join(dict.fromkeys(names))} with jaxpeft "
    f"{importlib.metadata.version('jaxpeft')}, {share:,} trained parameters."
  )


def _measured(facts: Facts) -> str:
  """A table of base and result."""
  final, rows = facts.final, []
  if final.get("accuracy") is not None:
    low, high = final["accuracy_ci95"]
    before = final.get("base_accuracy")
    rows.append(
      (
        f"accuracy, {facts.config.eval.task}, {report.asked(final)}",
        "" if before is None else f"{before:.1%}",
        f"{final['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%})",
      )
    )
  if final.get("eval_loss") is not None:
    before = final.get("first_eval_loss")
    rows.append(
      (
        "held-out loss, nats per token",
        "" if before is None else f"{before:.4f}",
        f"{final['eval_loss']:.4f}",
      )
    )
  if not rows:
    return "Nothing was measured on held-out data."
  held = facts.data().get("eval", "")
  chosen = facts.config.train.keep_best and final.get("eval_loss") is not None
  best = "; the least loss on it chose the step" if chosen else ""
  known = {facts.hashes.get(key) for key in ("data.train", "data.eval")}
  trained = len(known) == 1 and None not in known
  which = "which **was trained on**" if trained else "which was not trained on"
  return f"On `{held}`, {which}{best}:\n\n" + _table(("", "base", "fine-tuned"), rows)


def _training(facts: Facts) -> str:
  c, final = facts.config, facts.final
  rows = []
  for entry, fields in facts.methods.items():
    options = ", ".join(
      f"{k}={v!r}" for k, v in fields.items() if k not in ("name", "match")
    )
    rows.append((f"method `{entry}`", f"{fields['name']} ({options or 'defaults'})"))
    rows.append((f"weights of `{entry}`", f"`{fields['match']}`"))
  rows += [
    ("trained parameters", f"{final['trainable_parameters']:,}"),
    (
      "base weights",
      c.model.dtype + (f", {c.model.quantize}" if c.model.quantize else ""),
    ),
  ]
  counts = [line.partition(": ") for line in final.get("data") or ()]
  for key, source in facts.data().items():
    text = f"`{source}`"
    digest = facts.hashes.get(f"data.{key}")
    text += f", hash {digest}" if isinstance(digest, str) else ""
    full = str(c.data[key])
    text += "".join(f"; {more}" for name, _, more in counts if name == full)
    rows.append(("training data" if key == "train" else "held-out data", text))
  rows += [
    ("steps", f"{final['step']} of {c.train.batch_size} rows of {c.data.max_tokens} "
     f"tokens; the adapter is that of step {final['adapter_step']}"),
    ("loss on", c.data.loss_on),
    ("optimizer", f"{c.optim.name}, learning rate {c.optim.lr:g}, {c.optim.schedule}, "
     f"warm-up {c.optim.warmup:g}, weight decay {c.optim.weight_decay:g}"),
    ("seed", str(c.seed)),
  ]  # fmt: skip
  if c.tokens.fraction < 1:
    rows.append(("tokens with gradient", f"{c.tokens.fraction:.0%}, {c.tokens.choose}"))
  if facts.elapsed_s:
    rows.append(("time", f"{facts.elapsed_s:.0f} s"))
  return _table(("", ""), rows)


def _use(facts: Facts, repo: str, format: str, base: str | None) -> str:
  toy = facts.config.model.source == "embedded"
  here = base or ("embedded" if toy else "BASE")  # what jaxpeft opens
  base = base or "BASE"
  if format == "peft":
    python = f"""from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{base}")
model = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(model, "{repo}")"""
    shell = f"""python -m jaxpeft pull --from={repo} --out=adapter
python -m jaxpeft chat --model={here} --adapter=mine=adapter"""
  elif format == "hf":
    python = f"""from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repo}")
model = AutoModelForCausalLM.from_pretrained("{repo}")"""
    shell = f"python -m jaxpeft chat --model={repo}"
  else:
    python = ""
    shell = f"""python -m jaxpeft pull --from={repo} --out=model
python -m jaxpeft chat --model=model"""
  first = f"```python\n{python}\n```\n\n" if python else "With llama.cpp, or:\n\n"
  note = ""
  if base == "BASE":
    note = (
      f"\n\nBASE is the base model, which was `{short(facts.config.model.source)}`; it "
      "is not on the hub under a known name."
    )
  return f"{first}```\n{shell}\n```{note}"


def _table(head, rows) -> str:
  lines = [head, ["---"] * len(head), *rows]
  cells = ([str(x).replace("|", "\\|").replace("\n", " ") for x in r] for r in lines)
  return "\n".join(f"| {' | '.join(row)} |" for row in cells)
