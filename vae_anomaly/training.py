r"""Training: one generator that yields an :class:`EpochLog` for each epoch and leaves the best weights in the model.

Minibatches are slices of one contiguous tensor that is shuffled once an epoch; the optimiser is fused Adam with a
cosine-annealed learning rate. The encoder sees the record with small Gaussian noise (denoising), the likelihood is
that of the clean record. Validation is the deterministic ELBO at the posterior mean with beta = 1, and the weights of
the best epoch are kept.

References: Kingma and Ba, Adam, arXiv 1412.6980; Loshchilov and Hutter, SGDR, arXiv 1608.03983; Im et al., Denoising
criterion for variational auto-encoding, arXiv 1511.06406.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_anomaly.errors import TrainingError
from vae_anomaly.objectives import BetaElbo
from vae_anomaly.vae import VAE, Inputs, elbo_terms, evaluate

CHUNK = 1024


@dataclass(frozen=True)
class TrainingPlan:
    """Sizes of one training run: ``epochs``, records a ``minibatch``, ``learning_rate``, epochs of ``patience``."""

    epochs: int
    minibatch: int
    learning_rate: float = 3e-3
    patience: int = 100
    input_noise: float = 0.1

    @staticmethod
    def for_records(
        records: int,
        *,
        steps: int | None = None,
        epochs: int | None = None,
        minibatch: int | None = None,
        learning_rate: float = 3e-3,
        patience: int | None = None,
        input_noise: float = 0.1,
    ) -> TrainingPlan:
        """Fill what is not given from the number of training ``records``.

        The minibatch is an eighth of the records, between 64 and 512; ``steps`` 4,000 at a minibatch of 64 and fewer
        with the square root of a larger one; patience a fifth of the epochs.
        """
        size = minibatch or min(512, max(64, records // 8))
        steps = steps or round(4000 * math.sqrt(64 / size))
        total = epochs or max(20, math.ceil(steps / math.ceil(records / size)))
        return TrainingPlan(total, size, learning_rate, patience or max(5, total // 5), input_noise)


@dataclass(frozen=True)
class EpochLog:
    """One epoch, means over records in nats: training loss, and ELBO, log-likelihood and KL on validation records."""

    epoch: int
    beta: float
    loss: float
    validation_elbo: float
    validation_log_likelihood: float
    validation_kl: float
    best: bool


def build_seeded(builder: Callable[[], VAE], seed: int) -> VAE:
    """Call ``builder`` with torch's generator seeded; the caller's random state is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return builder()


@contextlib.contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Run torch with ``count`` intra-op threads; more than one is slower for small networks on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(
    vae: VAE, training: Inputs, validation: Inputs, objective: BetaElbo, plan: TrainingPlan, seed: int
) -> Iterator[EpochLog]:
    """Fit ``vae`` in place; same inputs, seed and thread count give the same weights.

    Raises
    ------
    TrainingError
        The loss or the validation ELBO is not finite: the message has the epoch and the value.
    """
    generator = torch.Generator().manual_seed(seed)
    # fused Adam on CPU: one kernel for all parameters instead of a loop over them
    optimiser = torch.optim.Adam(vae.parameters(), lr=plan.learning_rate, fused=True)
    steps = plan.epochs * math.ceil(len(training) / plan.minibatch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    best, best_epoch, kept = -math.inf, 0, _copy(vae)
    done = 0
    for epoch in range(plan.epochs):
        shuffled = training[torch.randperm(len(training), generator=generator)]
        total = 0.0
        for start in range(0, len(training), plan.minibatch):
            rows = shuffled[slice(start, start + plan.minibatch)]
            loss = _step(vae, rows, objective, plan, done / steps, generator)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += loss.item() * len(rows)
            done += 1
        _guard(total, epoch, "training loss")
        elbo, likelihood, kl = validation_elbo(vae, validation)
        _guard(elbo, epoch, "validation ELBO")
        # while beta warms up the validation ELBO rewards an autoencoder: only later epochs compete
        eligible = done / steps >= objective.warmup
        improved = eligible and elbo > best
        if improved:
            best, best_epoch, kept = elbo, epoch, _copy(vae)
        yield EpochLog(epoch, objective.weight(done / steps), total / len(training), elbo, likelihood, kl, improved)
        if eligible and best > -math.inf and epoch - best_epoch >= plan.patience:
            break
    vae.load_state_dict(kept)
    vae.eval()


def _step(
    vae: VAE, rows: Inputs, objective: BetaElbo, plan: TrainingPlan, progress: float, generator: torch.Generator
) -> Tensor:
    encoded = rows.x
    if plan.input_noise:
        encoded = rows.x + plan.input_noise * torch.randn(rows.x.shape, generator=generator, dtype=rows.x.dtype)
    latent = vae.prior(None).noise_dim
    noise = torch.randn(len(rows), latent, generator=generator, dtype=rows.x.dtype)
    return objective.loss(elbo_terms(vae, rows, noise, encoded=encoded), progress)


@torch.no_grad()
def validation_elbo(vae: VAE, inputs: Inputs) -> tuple[float, float, float]:
    """Mean ELBO, log-likelihood and KL at the posterior mean, in nats."""
    likelihood, kl = 0.0, 0.0
    for start in range(0, len(inputs), CHUNK):
        rows = inputs[slice(start, start + CHUNK)]
        evaluation = evaluate(vae, rows)
        likelihood += float(evaluation.likelihood.log_prob(rows.x, rows.observed).sum())
        kl += float(evaluation.kl.sum())
    likelihood, kl = likelihood / len(inputs), kl / len(inputs)
    return likelihood - kl, likelihood, kl


def _copy(vae: VAE) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in vae.state_dict().items()}


def _guard(value: float, epoch: int, what: str) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"{what} must stay finite. Got {value!r} in epoch {epoch}; nothing was registered."
            " Lower training.learning_rate, or look for absurd values in the training records."
        )
