"""One run: the Runner, its loop, its folder, checkpoints, metrics and pictures."""
