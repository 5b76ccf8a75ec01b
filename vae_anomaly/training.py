r"""Training: one generator that yields an :class:`EpochLog` for each epoch and leaves the best weights in the model.

Minibatches are slices of one contiguous tensor that is shuffled once an epoch; the optimiser is fused Adam with a
cosine-annealed learning rate. What the networks are fed is corrupted (:func:`corrupted`), the likelihood is that of
the clean record. Validation is the deterministic ELBO at the posterior mean with beta = 1, and the weights of the best
epoch are kept. Randomness is drawn on the CPU, whatever device trains.

With anomalies among the training records the loss can be trimmed (``contamination_robust``): a minibatch's least likely
records have no say in it.

References: Kingma and Ba, Adam, arXiv 1412.6980; Loshchilov and Hutter, SGDR, arXiv 1608.03983; Im et al., Denoising
criterion for variational auto-encoding, arXiv 1511.06406; Mihaylova and Martins, Scheduled sampling for transformers,
ACL 2019 (the model's guesses in one parallel pass); Rousseeuw, Least median of squares regression, JASA 79 (1984), for
least trimmed squares, and Shen and Sanghavi, Learning with bad training data via iterative trimmed loss minimization,
ICML 2019, arXiv 1810.11874, for minibatches.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vae_anomaly.errors import ConfigError, TrainingError
from vae_anomaly.likelihoods import PixelLayout, TokenDistribution
from vae_anomaly.likelihoods.tokens import PAD, UNKNOWN
from vae_anomaly.nn import UnitEncoder
from vae_anomaly.objectives import BetaElbo
from vae_anomaly.vae import VAE, Inputs, elbo_terms, evaluate

CHUNK = 1024
_SEEDED = threading.Lock()
UNTRIMMED = 0.1  # of the training: before, what is unlikely is what has not been learned yet
ACTIVE_VARIANCE = 0.01  # Burda, Grosse and Salakhutdinov, arXiv 1509.00519, section 5.2


@dataclass(frozen=True)
class TrainingPlan:
    """Sizes of one training run: ``epochs``, records a ``minibatch``, ``learning_rate``, epochs of ``patience``.

    What is corrupted: ``input_noise``, standard deviation of the noise on numbers and pixels that the encoder sees;
    ``word_dropout``, share of the tokens that a text's decoder is fed as unknown; ``teacher_forcing``, share of the
    others that are the true ones and not the model's guess; ``context_dropout``, share of records whose context is not
    told, so that an unknown context has a meaning. ``augmentation`` 1 turns, scales, shears and shifts training images
    a little (:func:`augmented`), 0 leaves them as they are. Gradients of a norm above ``clip`` are shortened to it,
    unless it is 0. ``contamination_robust`` is the share of the least likely records of each minibatch that are left
    out of the loss after the first ``UNTRIMMED`` of the training: the anomalies, if there are any.
    """

    epochs: int
    minibatch: int
    learning_rate: float = 3e-3
    patience: int = 100
    input_noise: float = 0.1
    word_dropout: float = 0.3
    teacher_forcing: float = 1.0
    context_dropout: float = 0.05
    augmentation: float = 0.0
    clip: float = 0.0
    contamination_robust: float = 0.0

    def __post_init__(self) -> None:
        """Raise :class:`ConfigError` where most records of a minibatch would be left out."""
        if not 0 <= self.contamination_robust < 0.5:
            raise ConfigError(
                "training.contamination_robust must be the share of anomalies, at least 0 and below 0.5."
                f" Got {self.contamination_robust!r}."
            )

    @staticmethod
    def for_records(
        records: int,
        *,
        steps: int | None = None,
        epochs: int | None = None,
        minibatch: int | None = None,
        learning_rate: float = 3e-3,
        patience: int | None = None,
        least_epochs: int = 20,
        **more: float,
    ) -> TrainingPlan:
        """Fill what is not given from the number of training ``records``.

        The minibatch is an eighth of the records, between 64 and 256; ``steps`` 4,000 at a minibatch of 64 and fewer
        with the square root of a larger one; patience a fifth of the epochs.
        """
        size = minibatch or min(256, max(64, records // 8))
        steps = steps or round(4000 * math.sqrt(64 / size))
        total = epochs or max(least_epochs, math.ceil(steps / math.ceil(records / size)))
        return TrainingPlan(total, size, learning_rate, patience or max(5, total // 5), **more)


@dataclass(frozen=True)
class EpochLog:
    """One epoch, means over records in nats: training loss, and ELBO, log-likelihood and KL on validation records.

    ``validation_kl_by_dimension`` (K,) sums to the KL; ``active_units`` counts the latent dimensions whose posterior
    mean varies by more than ``ACTIVE_VARIANCE`` among the validation records.
    """

    epoch: int
    beta: float
    loss: float
    validation_elbo: float
    validation_log_likelihood: float
    validation_kl: float
    best: bool
    validation_kl_by_dimension: tuple[float, ...] = ()
    active_units: int = 0


def device_of(name: str) -> torch.device:
    """``auto`` is a CUDA device where there is one; raises :class:`ConfigError` for ``cuda`` where there is none."""
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise ConfigError("execution.device must be a device of this machine. Got 'cuda', which it has not. Use auto.")
    return torch.device("cuda" if found and name != "cpu" else "cpu")


def build_seeded(builder: Callable[[], VAE], seed: int) -> VAE:
    """Call ``builder`` with torch's generator seeded; the caller's random state is untouched.

    One call at a time, for all threads share that generator.
    """
    with _SEEDED, torch.random.fork_rng(devices=[]):
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
    vae: VAE,
    training: Inputs,
    validation: Inputs,
    objective: BetaElbo,
    plan: TrainingPlan,
    seed: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - a constant
) -> Iterator[EpochLog]:
    """Fit ``vae`` in place, and bring it back to the CPU.

    There the same inputs, seed and thread count give the same weights; on a GPU they do but for the rounding of its
    libraries, which may add in another order each time.

    Raises
    ------
    TrainingError
        The loss or the validation ELBO is not finite: the message has the epoch and the value.
    """
    generator = torch.Generator().manual_seed(seed)
    vae.to(device)
    training, validation = (inputs.each(lambda part: part.to(device)) for inputs in (training, validation))
    training = vae.seen(training)
    # fused Adam on CPU: one kernel for all parameters instead of a loop over them
    optimiser = torch.optim.Adam(vae.parameters(), lr=plan.learning_rate, fused=True)
    steps = plan.epochs * math.ceil(len(training) / plan.minibatch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    best, best_epoch, kept = -math.inf, 0, _copy(vae)
    done = 0
    for epoch in range(plan.epochs):
        vae.train()
        shuffled = training[torch.randperm(len(training), generator=generator).to(device)]
        total = 0.0
        for start in range(0, len(training), plan.minibatch):
            rows = shuffled[slice(start, start + plan.minibatch)]
            loss = _step(vae, rows, objective, plan, done / steps, generator)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if plan.clip:
                torch.nn.utils.clip_grad_norm_(vae.parameters(), plan.clip)
            optimiser.step()
            schedule.step()
            total += loss.item() * len(rows)
            done += 1
        _guard(total, epoch, "training loss")
        found = validation_elbo(vae, validation, plan.contamination_robust)
        _guard(found.elbo, epoch, "validation ELBO")
        # while beta warms up the validation ELBO rewards an autoencoder: only later epochs compete
        eligible = done / steps >= objective.warmup
        improved = eligible and found.elbo > best
        if improved:
            best, best_epoch, kept = found.elbo, epoch, _copy(vae)
        yield EpochLog(
            epoch,
            objective.weight(done / steps),
            total / len(training),
            found.elbo,
            found.log_likelihood,
            found.kl,
            improved,
            found.kl_by_dimension,
            found.active_units,
        )
        if eligible and best > -math.inf and epoch - best_epoch >= plan.patience:
            break
    vae.load_state_dict(kept)
    vae.to("cpu").eval()


def _step(
    vae: VAE, rows: Inputs, objective: BetaElbo, plan: TrainingPlan, progress: float, generator: torch.Generator
) -> Tensor:
    rows, encoded, fed = corrupted(vae, rows, plan, generator)
    draws = (objective.samples,) if objective.samples > 1 else ()
    dtype = next(vae.parameters()).dtype
    noise = torch.randn(*draws, len(rows), vae.latent, generator=generator, dtype=dtype).to(rows.x.device)
    terms = elbo_terms(vae, rows, noise, encoded=encoded, fed=fed)
    if plan.contamination_robust and progress >= UNTRIMMED:
        bound = (terms.log_likelihood - terms.kl).detach()
        terms = terms.of(most_likely(bound.mean(0) if draws else bound, plan.contamination_robust))
    return objective.loss(terms, progress)


def most_likely(elbo: Tensor, contamination: float) -> Tensor:
    """Positions, ascending, of all of ``elbo`` (M,) but the smallest ``contamination`` of them; at least one."""
    kept = max(1, len(elbo) - math.floor(contamination * len(elbo)))
    return elbo.topk(kept).indices.sort().values


def corrupted(
    vae: VAE, rows: Inputs, plan: TrainingPlan, generator: torch.Generator
) -> tuple[Inputs, Tensor | None, Tensor | None]:
    """``rows`` with some contexts untold, what the encoder sees, and what the decoder of a text is fed; None for x."""
    layout = vae.likelihood.layout
    if plan.augmentation and isinstance(layout, PixelLayout):
        images = augmented(rows.x.view(-1, *layout.shape), plan.augmentation, generator)
        rows = replace(rows, x=images.flatten(1))
    x = rows.x
    if rows.context is not None and plan.context_dropout:
        told = torch.rand(len(rows), 1, generator=generator) >= plan.context_dropout
        rows = replace(rows, context=rows.context * told.to(x.device))
    if x.is_floating_point():
        if not plan.input_noise:
            return rows, None, None
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        if isinstance(vae.posterior, UnitEncoder):
            noise = vae.posterior.scaled(noise)
        return rows, x + plan.input_noise * noise, None
    fed = x
    if plan.teacher_forcing < 1:
        guess = _guess(vae, rows)
        fed = torch.where(_chance(x, 1 - plan.teacher_forcing, generator), guess, fed)
    dropped = _chance(x, plan.word_dropout, generator) & (x != PAD)
    return rows, None, fed.masked_fill(dropped, UNKNOWN)


def augmented(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """``images`` (B, C, H, W), each under a random affine map; beyond the border is what stands at it.

    For ``strength`` 1 rotations are uniform in +-10 degrees, log-scales and shears in +-0.1 and shifts in +-1 pixel in
    28, independent of each other.
    """
    turn, size, shear, right, down = strength * (2 * torch.rand(5, len(images), generator=generator) - 1)
    turn, size = turn * math.radians(10), (0.1 * size).exp()
    cosine, sine, shift = turn.cos() * size, turn.sin() * size, 2 / 28
    rows = [cosine, 0.1 * shear - sine, shift * right, sine, cosine, shift * down]
    maps = torch.stack(rows, -1).view(-1, 2, 3).to(images)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _chance(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """True for each entry of ``x`` with the probability ``share``."""
    return (torch.rand(x.shape, generator=generator) < share).to(x.device)


@torch.no_grad()
def _guess(vae: VAE, rows: Inputs) -> Tensor:
    likelihood = vae.likelihood(vae.posterior(rows.x, rows.context).mean, rows.context)
    assert isinstance(likelihood, TokenDistribution)
    return likelihood.guess(rows.x)


class HeldOut(NamedTuple):
    """Means over held-out records at the posterior mean, in nats; the ELBO is log-likelihood minus KL."""

    elbo: float
    log_likelihood: float
    kl: float
    kl_by_dimension: tuple[float, ...]
    active_units: int


@torch.no_grad()
def validation_elbo(vae: VAE, inputs: Inputs, contamination: float = 0.0) -> HeldOut:
    """ELBO, log-likelihood, KL and active units of ``inputs``, without the least likely ``contamination`` of them."""
    likelihoods, parts = [], []
    for start in range(0, len(inputs), CHUNK):
        rows = inputs[slice(start, start + CHUNK)]
        evaluation = evaluate(vae, rows)
        likelihoods.append(evaluation.likelihood.log_prob(evaluation.seen.x, rows.observed).double())
        parts.append(torch.stack([evaluation.kl, evaluation.z]))
    each, (kl, mean) = torch.cat(likelihoods), torch.cat(parts, 1).double()
    if contamination:
        kept = most_likely(each - kl.sum(1), contamination)
        each, kl, mean = each[kept], kl[kept], mean[kept]
    likelihood, by_dimension = float(each.mean()), kl.mean(0)
    total = float(by_dimension.sum())
    active = int((mean.var(0, correction=0) > ACTIVE_VARIANCE).sum())
    return HeldOut(likelihood - total, likelihood, total, tuple(by_dimension.tolist()), active)


def _copy(vae: VAE) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in vae.state_dict().items()}


def _guard(value: float, epoch: int, what: str) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"{what} must stay finite. Got {value!r} in epoch {epoch}; nothing was registered."
            " Lower training.learning_rate, or look for absurd values in the training records."
        )
