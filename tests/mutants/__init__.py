"""Wrong versions on purpose. Next to each statistical test one of these shows that the test can fail."""

from dataclasses import dataclass
from math import exp, sqrt

import torch

from scoretk.core.streams import Stream
from scoretk.solvers.base import Info
from scoretk.solvers.hmc import HMC, HMCState, Point, leapfrog
from scoretk.solvers.mala import MALA
from scoretk.solvers.ula import ULA, ULAState
from scoretk.solvers.underdamped import GHMC, GHMCState, Underdamped, UnderdampedState
from scoretk.solvers.warmup.tuned import StepTunedState


@dataclass(frozen=True)
class HalfTheNoise(ULA):
    """Noise off by sqrt 2: sqrt(h T) z."""

    def step(self, field, state, noise) -> tuple[ULAState, Info]:
        z = noise.normal(state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype)
        x = state.x + self.step_size * state.score + sqrt(self.step_size * self.temperature) * z
        return ULAState(x, field.score(x), state.step + 1), {}


@dataclass(frozen=True)
class WrongSign(ULA):
    """Climbs the energy."""

    def step(self, field, state, noise) -> tuple[ULAState, Info]:
        z = noise.normal(state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype)
        x = state.x - self.step_size * state.score + sqrt(2 * self.step_size * self.temperature) * z
        return ULAState(x, field.score(x), state.step + 1), {}


@dataclass(frozen=True)
class NoCorrection(MALA):
    """Accepts everything."""

    def step(self, field, state, noise) -> tuple[StepTunedState, Info]:
        z = noise.normal(state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype)
        x = state.x - self.step_size * state.grad + sqrt(2 * self.step_size) * z
        return StepTunedState(x, *field.energy_and_grad(x), state.step + 1), {
            "accept": torch.ones_like(state.energy)
        }


@dataclass(frozen=True)
class SymmetricProposal(MALA):
    """Forgets that the proposal is not symmetric."""

    def step(self, field, state, noise) -> tuple[StepTunedState, Info]:
        z = noise.normal(state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype)
        x = state.x - self.step_size * state.grad + sqrt(2 * self.step_size) * z
        proposed = StepTunedState(x, *field.energy_and_grad(x), state.step + 1)
        u = noise.uniform(state.step, Stream.ACCEPT, (), x.dtype)
        accept = u.log() < state.energy - proposed.energy
        return _pick(accept, proposed, state), {"accept": accept.to(x.dtype)}


@dataclass(frozen=True)
class StaleGradient(MALA):
    """After a rejection keeps the proposal's gradient."""

    def step(self, field, state, noise) -> tuple[StepTunedState, Info]:
        right, info = super().step(field, state, noise)
        z = noise.normal(state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype)
        x = state.x - self.step_size * state.grad + sqrt(2 * self.step_size) * z
        return right._replace(grad=field.energy_and_grad(x)[1]), info


@dataclass(frozen=True)
class NaNIsReplaced(MALA):
    """Replaces non-finite positions by 0 and accepts."""

    def step(self, field, state, noise) -> tuple[StepTunedState, Info]:
        z = noise.normal(state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype)
        x = state.x - self.step_size * state.grad + sqrt(2 * self.step_size) * z
        bad = ~torch.isfinite(field.energy(x))
        x = torch.where(bad[:, None], torch.zeros_like(x), x)
        proposed = StepTunedState(x, *field.energy_and_grad(x), state.step + 1)
        right, info = super().step(field, state, noise)
        return _pick(bad, proposed, right), info


def _pick(chosen, new, old):
    leaves = []
    for a, b in zip(new, old, strict=True):
        leaves.append(
            a if a.ndim == 0 else torch.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b)
        )
    return type(new)(*leaves) if hasattr(new, "_fields") else tuple(leaves)


@dataclass(frozen=True)
class NoEnergyCheck(HMC):
    """Hamiltonian Monte Carlo that accepts every finite end."""

    def step(self, field, state, noise) -> tuple[HMCState, Info]:
        p = noise.normal(state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype)
        here = Point(state.x, state.energy, state.grad)
        end = leapfrog(field, here, p, self.step_size, self.leapfrogs, state.scale)
        return state._replace(**end.point._asdict(), step=state.step + 1), {
            "accept": torch.ones_like(state.energy)
        }


@dataclass(frozen=True)
class ForgottenMomentum(HMC):
    """Decides by the potential energy alone."""

    def step(self, field, state, noise) -> tuple[HMCState, Info]:
        p = noise.normal(state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype)
        here = Point(state.x, state.energy, state.grad)
        end = leapfrog(field, here, p, self.step_size, self.leapfrogs, state.scale).point
        u = noise.uniform(state.step, Stream.ACCEPT, (), p.dtype)
        chosen = _pick(u.log() < here.energy - end.energy, end, here)
        return state._replace(**chosen._asdict(), step=state.step + 1), {
            "accept": torch.ones_like(state.energy)
        }


@dataclass(frozen=True)
class OneSided(HMC):
    """Kicks after each drift only: keeps the volume, but is not its own inverse once the momentum is turned round."""

    def step(self, field, state, noise) -> tuple[HMCState, Info]:
        p = noise.normal(state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype)
        here, x, q = Point(state.x, state.energy, state.grad), state.x, p
        for _ in range(self.leapfrogs):
            x = x + self.step_size * q
            energy, grad = field.energy_and_grad(x)
            q = q - self.step_size * grad
        error = (
            energy - here.energy + (q.square().flatten(1).sum(1) - p.square().flatten(1).sum(1)) / 2
        )
        u = noise.uniform(state.step, Stream.ACCEPT, (), p.dtype)
        chosen = _pick(u.log() < -error, Point(x, energy, grad), here)
        return state._replace(**chosen._asdict(), step=state.step + 1), {
            "accept": torch.ones_like(state.energy)
        }


@dataclass(frozen=True)
class KickDriftOnce(Underdamped):
    """Symplectic Euler with the friction behind it: first order, and biased on a Gaussian."""

    def step(self, field, state, noise) -> tuple[UnderdampedState, Info]:
        h, kept = self.step_size, exp(-self.friction * self.step_size)
        z = noise.normal(state.step, Stream.PROPOSAL, tuple(state.x.shape[1:]), state.x.dtype)
        v = (state.velocity + h * state.score) * kept + sqrt((1 - kept**2) * self.temperature) * z
        x = state.x + h * v
        return UnderdampedState(x, v, field.score(x), state.step + 1), {}


@dataclass(frozen=True)
class NeverTurns(GHMC):
    """After a rejection the velocity goes on: the kernel no longer keeps the joint law."""

    def step(self, field, state, noise) -> tuple[GHMCState, Info]:
        new, info = super().step(field, state, noise)
        rejected = (new.x == state.x).flatten(1).all(1)
        return new._replace(velocity=_pick(rejected, (-new.velocity,), (new.velocity,))[0]), info
