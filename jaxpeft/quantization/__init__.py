"""4-bit weights (NF4) and products with them."""
