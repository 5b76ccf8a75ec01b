"""Laws of views: increasing, invertible, learned from observed cells only, and finite for whatever comes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vae_anomaly.errors import ConfigError
from vae_anomaly.views import VIEWS, view_of

each_view = pytest.mark.parametrize("kind", VIEWS)


def features(rows: int = 700, seed: int = 0) -> Tensor:
    """A normal, a heavy-tailed, a zero-inflated, a few-valued and a constant column, and a Bernoulli one."""
    g = np.random.default_rng(seed)
    columns = [
        g.normal(size=rows),
        g.standard_t(1.5, rows) * 3 + 1,
        np.where(g.random(rows) < 0.7, 0.0, g.exponential(4.0, rows)),
        g.integers(0, 5, rows),
        np.full(rows, 2.5),
        g.integers(0, 2, rows),
    ]
    return torch.tensor(np.column_stack(columns), dtype=torch.float32)


@each_view
def test_a_view_increases_and_goes_back(kind: str) -> None:
    view, x = view_of(kind, 5), features()
    view.learn(x)
    other = features(400, 1)
    np.testing.assert_allclose(view.inverse(view(other)), other, rtol=2e-3, atol=2e-3)
    assert torch.equal(view(other)[:, 5], other[:, 5])  # no Gaussian feature
    line = torch.linspace(-60.0, 60.0, 4001)[:, None].expand(-1, 6)
    steps = view(line)[:, :5].diff(dim=0)
    assert (steps >= 0).all()
    assert (steps > 0).float().mean() > 0.95
    assert view(torch.tensor([[1e30] * 6, [-1e30] * 6])).isfinite().all()


@each_view
def test_a_hidden_cell_teaches_nothing(kind: str) -> None:
    x, g = features(), np.random.default_rng(2)
    observed = torch.tensor(g.random(x.shape) < 0.8, dtype=torch.float32)
    views = [view_of(kind, 5) for _ in range(2)]
    views[0].learn(x * observed, observed)
    views[1].learn(torch.where(observed > 0, x, 777.0), observed)
    assert torch.equal(views[0](x), views[1](x))


def test_what_a_view_makes_of_training_values() -> None:
    x = features()
    for kind in ("standard", "rank"):
        view = view_of(kind, 5)
        view.learn(x)
        seen = view(x)[:, :4]
        np.testing.assert_allclose(seen.mean(0), 0.0, atol=0.02)
        np.testing.assert_allclose(seen.std(0), 1.0, atol=0.02)
    # the ranks of a heavy tail are those of a normal column
    np.testing.assert_allclose(np.quantile(view(x)[:, 1], [0.05, 0.5, 0.95]), [-1.645, 0.0, 1.645], atol=0.1)
    far = torch.tensor([[3.5] * 6])
    assert view(far)[0, 4] > 3  # another value in a column that never varied


def test_views_are_saved_with_the_model() -> None:
    views = [view_of("rank", 5) for _ in range(2)]
    views[0].learn(features())
    views[1].load_state_dict(views[0].state_dict())
    assert torch.equal(views[0](features(50, 3)), views[1](features(50, 3)))
    with pytest.raises(ConfigError, match="view"):
        view_of("ranks", 5)
