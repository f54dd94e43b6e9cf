"""The paper's learned loss: a small feed-forward network, applied to each output."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from metaloss.config.arguments import PositiveInt
from metaloss.representations.base import REPRESENTATIONS, Representation
from metaloss.representations.parts import activations, network

HiddenActivation = Literal["smooth_leaky_relu", "relu", "tanh", "softplus"]
OutputActivation = Literal["identity", "softplus", "smooth_leaky_relu"]


@REPRESENTATIONS.register("nn")
class NN(Representation):
    """Feed-forward network without biases on (prediction, target) pairs (paper, section 2.2).

    ℓ_φ maps each pair (f_i, y_i) to a number by the same weights, so that one loss serves any
    number of outputs; the loss is the mean over the outputs (eqs. 3 and 14). Weights start
    Kaiming-normal. `activation="relu", output="softplus"` is the form of ML³ (Bechtle et al.,
    2021), which the paper finds prone to flat regions (appendix B.1).

    Its gradients in the prediction, and their gradients, are closed forms (see `parts.network`).
    Under autocast it computes in the precision of its parameters.

    Args:
        hidden: units of each hidden layer.
        activation: of the hidden layers: "smooth_leaky_relu" (eq. 4), "relu", "tanh", "softplus".
        output: of the output: "identity", "softplus" or "smooth_leaky_relu".
        gamma: leak of the smooth leaky ReLU.
        beta: its smoothness: the kink at 0 is about 1/beta wide.

    Raises:
        ConfigError: a width below 1, or an unknown activation.
    """

    pairs = "mean"
    takes_stacks = True

    def __init__(
        self,
        hidden: Sequence[PositiveInt] = (40, 40),
        activation: HiddenActivation = "smooth_leaky_relu",
        output: OutputActivation = "identity",
        gamma: float = 0.01,
        beta: float = 10.0,
    ) -> None:
        super().__init__()
        self.hidden = tuple(hidden)
        self.activation = activation
        self.output = output
        self.gamma = gamma
        self.beta = beta
        self.layers = nn.ModuleList(
            nn.Linear(fan_in, fan_out, bias=False)
            for fan_in, fan_out in pairwise((2, *self.hidden, 1))
        )
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]

    @property
    def linear_in(self) -> tuple[str, ...]:  # type: ignore[override]
        return (f"layers.{len(self.hidden)}.weight",) if self.output == "identity" else ()

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self._of_pairs(prediction, target).mean(-1)

    def pair_losses(self, prediction: Tensor, target: Tensor, outputs: int) -> Tensor:
        return self._of_pairs(prediction, target) / outputs

    def _of_pairs(self, prediction: Tensor, target: Tensor) -> Tensor:
        """ℓ_φ of each pair, shaped like the prediction."""
        weights = list(self.layers.parameters())
        sigma, output = (
            activations.by_name(name, self.gamma, self.beta)
            for name in (self.activation, self.output)
        )
        with network.without_autocast(prediction.device):
            f, y = prediction.to(weights[0].dtype), target.to(weights[0].dtype)
            return output.value(network.apply(sigma, f, y, weights))
