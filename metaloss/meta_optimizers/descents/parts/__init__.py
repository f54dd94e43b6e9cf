"""What descents are made of."""
