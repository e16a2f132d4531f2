"""Exports a run, checks it, writes a model card, and uploads all to the hub."""

from jaxpeft.commands import export


def add(parser):
  """Declares the flags."""
  parser.add_argument("--ckpt", required=True, help="directory of a finished run")
  parser.add_argument("--to", required=True, help="org/name on the hub")
  parser.add_argument("--format", choices=("peft", "hf", "gguf"), default="peft")
  parser.add_argument("--private", action="store_true", help="if it is made")
  parser.add_argument("--revision", help="branch; default main")
  parser.add_argument("--license", help="of what is pushed, e.g. apache-2.0")
  parser.add_argument(
    "--base_model", "--base-model", help="org/name, if the run's base was a path"
  )
  parser.add_argument(
    "--dry_run",
    "--dry-run",
    action="store_true",
    help="upload nothing, write the files to --out",
  )
  parser.add_argument("--out", help="directory in which to keep what is uploaded")
  export.quality(parser)


def run(args):
  """Writes the files and uploads them."""
  import pathlib
  import tempfile

  from jaxpeft import console, experiment
  from jaxpeft.errors import InputError
  from jaxpeft.hub import push
  from jaxpeft.parallel import sharding

  if args.dry_run and not args.out:
    raise InputError("--dry-run writes a directory: give --out=DIR")
  options = push.Options(
    args.format, args.base_model, args.license, args.dtype, args.rank, args.tolerance
  )
  experiment.enter_mesh(sharding.mesh())
  with tempfile.TemporaryDirectory() as tmp:
    folder = pathlib.Path(args.out or pathlib.Path(tmp) / "files")
    parity = push.write(args.ckpt, args.to, folder, options)
    console.note(f"exported: {parity}")
    if args.license is None:
      console.note("note: the card names no license; give one with --license=NAME")
    if args.dry_run:
      console.say(f"wrote {folder}; nothing was uploaded")
      return
    url = push.upload(folder, args.to, args.private, args.revision)
  console.say(f"pushed: {url}")
