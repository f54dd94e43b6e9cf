"""What meta-optimizers are made of: learning by gradient, of several seeds, recorded."""
