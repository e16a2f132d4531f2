"""What is trained on what: losses, and the choice of tokens that carry gradient."""
