"""What engines are made of: implicit differentiation, and a step traced into one graph."""
