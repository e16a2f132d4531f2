"""The model: configuration, layers, attention, and the functions that compose them."""
