"""The built-in components under certification: what is combined with what, and how small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import torch
import torch.nn.functional as F

from metaloss import links
from metaloss.backbones import BACKBONES
from metaloss.base_optimizers import BASE_OPTIMIZERS
from metaloss.problem.problem import Problem
from metaloss.representations import REPRESENTATIONS
from metaloss.testing.certification.certify import BATCHES, Case, Certificate, certify

#: Options that use everything an optimizer has. eps is large where it is a divisor: the first step
#: of Adam with 1e-8 is all but a sign, of which no finite difference knows the slope.
OPTIMIZERS: dict[str, dict[str, object]] = {
    "sgd": {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "adam": {"lr": 0.02, "eps": 0.1, "weight_decay": 0.01, "amsgrad": True},
    "adamw": {"lr": 0.02, "eps": 0.1, "weight_decay": 0.01},
    "rmsprop": {"lr": 0.02, "eps": 0.1, "momentum": 0.9, "centered": True, "weight_decay": 0.01},
    "adagrad": {"lr": 0.02, "lr_decay": 0.1, "eps": 0.1, "weight_decay": 0.01},
    "adadelta": {"lr": 0.2, "eps": 0.1, "weight_decay": 0.01},
    "adamax": {"lr": 0.02, "eps": 0.1, "weight_decay": 0.01},
    "nadam": {"lr": 0.02, "eps": 0.1, "weight_decay": 0.01},
    "radam": {"lr": 0.02, "eps": 0.1, "weight_decay": 0.01, "betas": (0.5, 0.6)},
    "asgd": {"lr": 0.02, "lambd": 0.01, "weight_decay": 0.01},
}
#: Its step takes the signs of gradients alone, whose derivative is zero: nothing can be learned
#: through it, and `MissingGradientError` says so.
WITHOUT_GRADIENT = ("rprop",)
#: Learned losses, by the name in the table.
LOSSES: dict[str, tuple[str, dict[str, object]]] = {
    "nn": ("nn", {"hidden": (8, 8)}),
    "nn (ReLU, Softplus)": (
        "nn",
        {"hidden": (8, 8), "activation": "relu", "output": "softplus"},
    ),
    "taylor (2)": ("taylor", {"order": 2}),
    "taylor (3)": ("taylor", {"order": 3}),
    "taylor (5)": ("taylor", {"order": 5}),
    "scale_shape": ("scale_shape", {"of": "nn", "settings": {"hidden": (8, 8)}}),
    "terms": ("terms", {"terms": ("y*log(f)", "(1-y)*f^2"), "coefficients": (-1.0, 0.5)}),
    "residual": ("residual", {"settings": {"hidden": (8, 8)}, "factor": 0.5}),
    "step_conditioned": ("step_conditioned", {"settings": {"hidden": (8, 8)}, "degree": 2}),
    "class_set": ("class_set", {"hidden": (8, 8)}),
    "class_set (attention)": ("class_set", {"hidden": (8, 8), "context": "attention"}),
    "monotone_spline": ("monotone_spline", {"intervals": 4}),
    "robust": ("robust", {"alpha": -1.0, "c": 0.5}),
    "poly": ("poly", {"terms": 2}),
    "focal": ("focal", {"gamma": 2.0}),
    "label_smoothing": ("label_smoothing", {}),
}
#: Those in the product with every optimizer on every small backbone.
PRODUCT = ("nn", "nn (ReLU, Softplus)", "taylor (2)", "taylor (3)", "scale_shape")
#: Input shape and arguments of each backbone, small.
MODELS: dict[str, tuple[tuple[int, ...], dict[str, object]]] = {
    "logistic": ((1, 4, 4), {}),
    "mlp": ((1, 4, 4), {"hidden": (12, 8)}),
    "lenet5": ((1, 16, 16), {}),
    "timm": ((3, 8, 8), {"name": "test_vit", "arguments": {"img_size": 8, "patch_size": 4}}),
    "wide_resnet": ((1, 8, 8), {"depth": 10, "width": 1, "dropout": 0.3}),
    "allcnn": ((3, 8, 8), {}),
    "squeezenet": ((3, 8, 8), {}),
    "resnet18": ((3, 8, 8), {}),
    "vgg16": ((3, 32, 32), {}),
}
SMALLEST = ("logistic", "mlp")
LARGE = ("allcnn", "squeezenet", "resnet18", "vgg16")
VERY_LARGE = ("resnet18", "vgg16")
#: Engine, base steps before, inner steps.
WAYS = (
    ("exact", 0, 1),
    ("exact", 2, 1),
    ("sweep", 0, 3),
    ("sweep", 2, 3),
    ("logit_difference", 0, 1),
    ("logit_difference", 2, 1),
)
#: Where a difference of the outputs is certified: a ReLU's kink within it would spoil it.
SMOOTH = ("logistic", "timm")
CLASSES, EXAMPLES = 4, 8


def certificates(
    engines: Sequence[str] = (),
    optimizers: Sequence[str] = (),
    losses: Sequence[str] = (),
    backbones: Sequence[str] = (),
) -> Iterator[Certificate]:
    """Every optimizer with every learned loss of `PRODUCT` on every small backbone, in every way.

    The other losses with every optimizer on the smallest backbones, with SGD and Adam on the small
    ones. On the large ones SGD with every learned loss and Adam with the network; on the very large
    SGD and Adam with the network, one step at a time.

    Args:
        engines, optimizers, losses, backbones: only these; empty for all.
    """
    for backbone, optimizer, loss in product(MODELS, OPTIMIZERS, LOSSES):
        usual = optimizer == "sgd" or (optimizer, loss) == ("adam", "nn")
        if loss not in PRODUCT and backbone not in SMALLEST and optimizer not in ("sgd", "adam"):
            continue
        if (backbone in LARGE and not usual) or (backbone in VERY_LARGE and loss != "nn"):
            continue
        if not all(
            word in chosen or not chosen
            for word, chosen in ((backbone, backbones), (optimizer, optimizers), (loss, losses))
        ):
            continue
        case = built_in_case(optimizer, loss, backbone)
        for engine, warm, inner_steps in WAYS:
            rough = engine == "logit_difference" and backbone not in SMOOTH
            slow = inner_steps > 1 and backbone in VERY_LARGE
            if not rough and not slow and (engine in engines or not engines):
                yield certify(case, engine, warm, inner_steps)


def built_in_case(optimizer: str, loss: str, backbone: str) -> Case:
    """A case by the words of `OPTIMIZERS`, `LOSSES` and `MODELS`."""
    shape, arguments = MODELS[backbone]
    representation, settings = LOSSES[loss]

    def make() -> Problem:
        torch.manual_seed(0)
        model = BACKBONES[backbone](shape, CLASSES, **arguments)
        learned = REPRESENTATIONS[representation](**settings)
        learned.observe(1, 2)  # half way through the training
        made = BASE_OPTIMIZERS[optimizer](model.parameters(), **OPTIMIZERS[optimizer])
        return Problem(
            model,
            made,
            learned,
            F.cross_entropy,
            links.probabilities,
            tabulate="never",
        )

    generator = torch.Generator().manual_seed(2)
    batches = [
        (
            torch.randn(EXAMPLES, *shape, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES, (EXAMPLES,), generator=generator),
        )
        for _ in range(BATCHES)
    ]
    return Case(optimizer, loss, backbone, make, batches)
