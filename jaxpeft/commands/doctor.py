"""Prints backend, devices, versions, caches, and which optional parts are missing."""

import importlib.metadata
import os
import platform

_OPTIONAL = {
  "huggingface_hub": "[hub]: fetch models by hub id",
  "pyarrow": "[data]: parquet files, data sets of the hub",
  "lm_eval": "[eval]: python -m jaxpeft lm_eval",
  "math-verify": "[eval]: eval.task=math",
  "httpx": "[remote]: scale-test --server",
  "gguf": "[gguf]: GGUF files, in and out",
  "jax-triton": "[gpu]: kernels for 4-bit weights on NVIDIA GPUs",
  "wandb": "[wandb]: log.tracker=wandb",
  "trackio": "[trackio]: log.tracker=trackio",
  "torch": "[dev]: parity tests and peer benchmarks",
  "transformers": "[dev]: parity tests and peer benchmarks",
  "peft": "[dev]: parity tests and peer benchmarks",
}
_CORE = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "numpy",
  "safetensors",
  "tokenizers",
  "ml_collections",
)


def add(_):
  """It has no flags."""


def run(_):
  """Prints the report."""
  import jax

  from jaxpeft.caches import compiled, disk

  print(
    f"python {platform.python_version()} on {platform.platform()}, "
    f"{os.cpu_count()} CPU cores"
  )
  for name in _CORE:
    print(f"  {name:<18} {importlib.metadata.version(name)}")
  print(f"backend {jax.default_backend()}")
  for device in jax.devices():
    stats = device.memory_stats() or {}
    free = stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
    memory = f", {free / 2**30:.1f} GiB free for JAX" if stats else ""
    print(f"  {device.device_kind} ({device}){memory}")
  if jax.default_backend() == "cpu":
    print("  no accelerator: for an NVIDIA GPU, pip install -e '.[gpu]'")
  print("caches")
  print("\n".join(disk.summary()))
  kept = compiled.enable()
  if kept is None:
    print("  programs are compiled anew: the cache is off, or not this user's alone")
  elif kept != disk.folder("compiled"):
    print(f"  programs are kept by JAX in {kept}")
  print("optional parts")
  for name, use in _OPTIONAL.items():
    try:
      print(f"  {name:<18} {importlib.metadata.version(name)}")
    except importlib.metadata.PackageNotFoundError:
      print(f"  {name:<18} missing {use}")
