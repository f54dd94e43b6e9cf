"""What losses are made of: networks, activations, smooth functions, expressions."""
