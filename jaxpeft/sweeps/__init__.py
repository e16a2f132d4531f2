"""Many runs with an equal tuning budget, side by side."""
