"""What steps of optimizers are made of: a step with its way back, and what adaptive ones share."""
