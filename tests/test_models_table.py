"""docs/models.md claims what tests cover: every cell of its table is one."""

import pathlib

from jaxpeft.checkpoints.families import FAMILIES
from tests.checkpoints import test_families
from tests.data import test_stock_templates
from tests.support import families, gguf_files
from tests.transformer import test_decoder

PAGE = pathlib.Path(__file__).parents[1] / "docs/models.md"


def table():
  """{model_type: {column: cell}}, without references to notes."""
  rows = [r.strip("| ").split(" | ") for r in PAGE.read_text().splitlines()
          if r.startswith("| ")]  # fmt: skip
  head, *rows = [[cell.split(" [")[0].strip() for cell in row] for row in rows]
  return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def test_the_table_has_every_family_once():
  rows = table()
  assert sorted(rows) == sorted(families.ROWS)
  kinds = {n.replace("qwen3-moe", "qwen3_moe") for n in rows}
  assert {n.replace("gemma3", "gemma3_text") for n in kinds} == set(FAMILIES)


def test_cells_are_tests():
  everywhere = set(families.FAMILIES)
  covered = {
    "logits": everywhere,  # test_decoder is parametrised over all of them
    "greedy": everywhere,
    "HF export": everywhere,  # and so is test_checkpoints
    "LoRA step": set(test_families.ROWS),
    "PEFT": set(test_families.ROWS),
    "NF4": set(test_families.ROWS),
    "GGUF": set(gguf_files.ARCHITECTURES),
  }
  assert test_decoder.FAMILIES is families.FAMILIES
  for name, row in table().items():
    for column, names in covered.items():
      assert (row[column] != "-") == (name in names), (name, column)
    if row["template"] != "-":
      assert test_stock_templates.family(test_stock_templates.STOCK, row["template"])
