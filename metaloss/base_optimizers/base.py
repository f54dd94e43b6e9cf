"""What a base optimizer is: a recipe, called with parameters, that returns a torch.optim object.

Contract: `recipe(parameters, lr, ...) -> torch.optim.Optimizer`; the arguments carry torch.optim's
own names and defaults; the returned class has an `Update` (see metaloss.update) that equals its
step. `metaloss.testing.check_base_optimizer` holds a recipe to it.

torch.optim's switches `foreach`, `fused` and `capturable` change no step and are not among the
arguments; an optimizer that was built with them is used as it is.
"""

from metaloss.registry import Registry

BASE_OPTIMIZERS = Registry("base_optimizers", supplied=("parameters",))
