"""Certificates as lines and as a document."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Sequence

import torch

from metaloss.testing.certification.certify import (
    APPROXIMATE_BOUND,
    DIFFERENCE_BOUND,
    DIRECTIONS,
    EPSILONS,
    REFERENCE_BOUND,
    Certificate,
)

HEADER = (
    f"{'engine':17} {'optimizer':9} {'learned loss':21} {'backbone':11} warm  K  "
    "reference    alpha  differences"
)


def line(certificate: Certificate) -> str:
    """One certificate."""
    case = certificate.case
    return (
        f"{certificate.engine:17} {case.optimizer:9} {case.representation:21} {case.backbone:11} "
        f"{certificate.warm:4} {certificate.inner_steps:2}    {certificate.reference:7.1e}  "
        f"{certificate.alpha:7.1e}      {certificate.difference:7.1e}"
        + ("" if certificate.holds else "  MISSED")
    )


def document(certificates: Sequence[Certificate]) -> str:
    """A Markdown page: the worst error by each component, and what the numbers mean."""
    missed = sum(not certificate.holds for certificate in certificates)
    by: dict[str, Callable[[Certificate], str]] = {
        "optimizer": lambda c: c.case.optimizer,
        "learned loss": lambda c: c.case.representation,
        "backbone": lambda c: c.case.backbone,
    }
    parts = [
        "# Certified meta-gradients",
        "Written by `python tools/check_gradients.py --markdown=docs/certification.md` "
        f"(torch {torch.__version__.split('+')[0]}, {platform.machine()} CPU, float64): "
        f"{len(certificates)} certificates, {missed} missed.",
        INTRODUCTION,
    ]
    for title, key in by.items():
        parts += [f"## By {title}", _table(title, key, certificates)]
    return "\n\n".join([*parts, LIMITS, ELSEWHERE]) + "\n"


QUOTIENTS = DIRECTIONS * len(EPSILONS)

INTRODUCTION = f"""\
A certificate compares an engine's meta-gradient on one problem with two independent computations:

* **reference**: ‖g − r‖ / ‖r‖, r by plain double backward through the whole step; at most
  {REFERENCE_BOUND:g} for the exact engines, {APPROXIMATE_BOUND:g} for `logit_difference`, whose
  derivative of the outputs is a difference quotient. The larger one of φ and of the learning rate
  α.
* **differences**: |⟨g, d⟩ − dL/dd| / ‖g‖, dL/dd by central differences of fourth order of the
  task loss after steps that the `torch.optim` object itself makes, with none of our derivatives
  in it; at most {DIFFERENCE_BOUND:g}. A quotient has an error of its own: large steps cross
  kinks of a ReLU, and small ones drown in rounding. So up to {QUOTIENTS} quotients are tried, in
  {DIRECTIONS} directions and by {len(EPSILONS)} sizes of a step, and the first within the bound
  is taken. The number below is therefore not the size of an error. It says that our gradient
  agrees with a step that was really made, to the bound; smaller errors are the reference's.

`exact` and `logit_difference` go back through one step, `sweep` through three; each cold (the
optimizer's state is empty) and warm (after two steps). Optimizers use everything they have
(momentum, weight decay, AMSGrad, centring; ε = 0.1 where it is a divisor, since a first step of
Adam with 1e-8 is all but a sign); BatchNorm and dropout are in training mode. Each number in the
tables is the worst of all certificates that its row and its column are about."""

LIMITS = """\
## What this does not say

* The product is complete on logistic regression and MLP. On LeNet-5, a vision transformer of timm
  and a wide residual net it is for the network in both forms, the quadratic and cubic Taylor
  polynomials and `scale_shape`; the other learned losses have SGD and Adam there. AllCNN-C and
  SqueezeNet have every learned loss with SGD, and Adam with the network; ResNet-18 and VGG-16 the
  network with SGD and Adam, one step at a time.
* `logit_difference` is certified on the smooth models (logistic regression, the transformer). On
  others a kink of a ReLU between θ − εu and θ + εu spoils its quotient, the more the deeper the
  net.
* Rprop is missing: its step looks at the signs of gradients alone, so the derivative is zero,
  nothing can be learned through it, and a run says so (`MissingGradientError`).
* `unrolled` is the reference itself; finite differences hold it too, through the others'
  agreement.
* `compiled` is `exact`, recorded with the step of SGD in it: `tests/engines/test_compiled.py`
  holds its steps to that, to 1e-13 as they are recorded and 1e-10 as they are compiled.
* `conjugate_gradient` and `neumann` are exact at a minimum only: `tests/engines/test_engines.py`
  holds them to the closed form on least squares (1e-8), to the truncated series, and shows that
  no iterate is lost.
* `evolution` and `persistent_evolution` are estimates: along the axes they are held to the exact
  gradient (1e-5), and to windows trained by hand.
* The cosine of a run's bf16 meta-gradient with the float32 one is in its metrics
  (`precision_cosine`).

One's own gin file or plugin is certified by `tools/check_gradients.py --gin_file=...
--plugin=...`, one's own optimizer by `metaloss.testing.check_base_optimizer`."""


#: Where the rest is told.
ELSEWHERE = "What is certified while a model trains: [certificates of steps](step_certificates.md)."


def _table(
    title: str, key: Callable[[Certificate], str], certificates: Sequence[Certificate]
) -> str:
    engines = list(dict.fromkeys(c.engine for c in certificates))
    head = [title, *(f"{engine}: {what}" for engine in engines for what in ("ref.", "diff."))]
    lines = [head, ["---"] * len(head)]
    for word in dict.fromkeys(key(c) for c in certificates):
        cells = [f"`{word}`"]
        for engine in engines:
            own = [c for c in certificates if key(c) == word and c.engine == engine]
            cells += [
                _worst(max(c.reference, c.alpha) for c in own),
                _worst(c.difference for c in own),
            ]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _worst(errors: Iterable[float]) -> str:
    found = list(errors)
    return f"{max(found):.1e}" if found else "—"
