"""Looking at what was learned: loss curves and figures. Each figure takes data, not a run."""
