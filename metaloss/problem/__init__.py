"""The base level: passes over a model, its gradient along a step, and what is refused."""
