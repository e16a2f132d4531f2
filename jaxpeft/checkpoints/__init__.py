"""What is read and written: Hugging Face models, adapters, and the state of a run."""
