"""The tangent loss for metaloss."""
