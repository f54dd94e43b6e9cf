"""The zoo: each unusual model's meta-gradient is right, or it is refused by what it does."""

from __future__ import annotations

import pytest

from metaloss.testing.certification.model import check_model
from tests.zoo import REFUSED, ZOO


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # others' own
@pytest.mark.parametrize("name", ZOO)
def test_right_or_refused(name):
    verdict = check_model(ZOO[name])
    if name in REFUSED:
        assert verdict.holds
        assert REFUSED[name] in verdict.said[-1]
    else:
        assert verdict.right, str(verdict)


def test_the_zoo_is_large():
    assert len(ZOO) >= 60
