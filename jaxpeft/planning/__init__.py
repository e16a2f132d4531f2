"""What a training step needs, compiled for devices that need not be there."""
