"""One training: its steps, its evaluations, and the moment from which another run can go on."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from scoretk.core.anatomy import walk
from scoretk.core.arguments import count, function, tensor_like
from scoretk.core.arrays import aligned
from scoretk.core.devices import sent
from scoretk.core.identity import Identity, stable_text, tensor_digest
from scoretk.core.modules import learning
from scoretk.core.noise import derive
from scoretk.core.sealed import is_count
from scoretk.errors import CheckpointError, InvalidArgument, ScoretkError
from scoretk.learn import processes
from scoretk.learn.contrastive import CDStep, ContrastiveDivergence
from scoretk.learn.recipe import Fit, Loss, Numbers, Player, Progress, Recipe
from scoretk.learn.resume import Whose
from scoretk.learn.states import States

__all__ = ["NotFinite", "Training"]


class NotFinite(ArithmeticError):
    """Something is not finite; raised inside an optimiser's step, before it moves the weights."""


class Training:
    """Everything that changes from step to step of a fit; its arguments are those of `fit`."""

    def __init__(
        self,
        module: nn.Module,
        players: list[Player],
        data: Tensor,
        recipe: Recipe,
        seed: int,
        evaluate: Loss | None,
        state: Any,
        held_out: Tensor | None = None,
    ) -> None:
        self.module = module
        self.players = players
        self.recipe = recipe
        self.seed = count("seed", seed)
        self.measure = players[0].loss if evaluate is None and len(players) == 1 else evaluate
        for player in players:
            function("loss", player.loss, "loss(rows, generator)")
        for part in (module, *(player.module for player in players)):
            _check_module(part)
        share = recipe.held_out if held_out is None else len(held_out)
        if not players or (self.measure is None and share):
            raise InvalidArgument(
                "evaluate", evaluate, "what to measure on held-out rows, or held_out=0, for a game"
            )
        rows = tensor_like("data", data, (None, *_one_array(data).shape[1:]))
        self.generator = torch.Generator().manual_seed(self.seed)
        self.train, self.held_out = _split(
            rows, recipe.held_out if held_out is None else 0.0, self.generator
        )
        self.given = held_out is not None
        if held_out is not None:
            self.held_out = tensor_like("held_out", held_out, (None, *data.shape[1:]))
        self.batch = min(recipe.batch, len(self.train))
        self.parts = _parts(recipe, self.batch)
        processes.same_start(module)
        self.optimisers = [
            (player.optimiser or recipe.make)(_parameters(player, module)) for player in players
        ]
        self.rates = [[group["lr"] for group in o.param_groups] for o in self.optimisers]
        self.average = AveragedModel(module)
        self.average.update_parameters(module)  # the first is a copy, and counted
        draws = self.generator if self.parts == 1 else torch.Generator()
        self.randomness = [draws, *_generators(module)]
        losses = [player.loss for player in players]
        contrasts = [p for p in walk(losses) if isinstance(p, ContrastiveDivergence)]
        self.states = States([*losses, state, *contrasts], self.parts)
        self.widest_gap = bool(contrasts) and evaluate is None and len(self.held_out) > 0
        self.step, self.turns, self.stale, self.lowest = 0, 0, 0, math.inf
        self.sums: dict[str, float | Tensor] = {}
        self.best = Fit(self.averaged(), 0)

    def averaged(self) -> dict[str, Tensor]:
        """A state dict of the module with the averaged weights, a copy."""
        return copy.deepcopy(self.average.module.state_dict())

    def settle(self, weights: dict[str, Tensor]) -> None:
        """Leave the module with these weights."""
        self.module.load_state_dict(weights)
        self.module.eval()

    def advance(self) -> None:
        """Make one step: every player's turn.

        Raises:
            NotFinite: Where a loss, a gradient or a weight is not finite.
        """
        for player, optimiser, rates in zip(self.players, self.optimisers, self.rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * self.recipe.rate(self.step)
            for _ in range(player.steps):
                self._turn(player, optimiser)
        _take_in(self.average, self.module, self.recipe.decay)
        self.step += 1

    def _turn(self, player: Player, optimiser: Optimizer) -> None:
        drawn = torch.randint(len(self.train), (self.batch,), generator=self.generator)
        batch = self.train[sent(drawn, self.train.device)]
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        before = [g.get_state() for g in self.randomness]
        told: list[dict[str, float | Tensor]] = []
        self.module.train()

        def closure() -> Tensor:
            if told:  # some optimisers call again, at other weights: with the same randomness
                _set_states(self.randomness, before)
            optimiser.zero_grad()
            value, numbers = self._gradient(player.loss, batch, parameters)
            norm = nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
            lost, length = torch.stack([value, norm.to(value)]).tolist()  # a device waits once
            if not math.isfinite(lost + length):
                raise NotFinite
            told.append({"loss": lost, "gradient": norm, **numbers})
            return value

        optimiser.step(closure)  # type: ignore[arg-type]
        if not bool(torch.isfinite(nn.utils.get_total_norm(parameters))):
            raise NotFinite
        self.turns += 1
        for name, number in told[0].items():
            name = f"{player.name} {name}".lstrip()
            self.sums[name] = self.sums.get(name, 0.0) + number / player.steps

    def _gradient(
        self, loss: Loss, batch: Tensor, parameters: list[nn.Parameter]
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """The loss of a batch, whose gradients are set, over all processes.

        Returns:
            The loss, and the numbers that it tells of the last slice of this process.
        """
        total, numbers = torch.zeros((), device=parameters[0].device), dict[str, float | Tensor]()
        slices = batch.tensor_split(self.parts)
        for part in processes.own(self.parts):
            if self.parts > 1:
                for i, generator in enumerate(self.randomness):
                    generator.manual_seed(derive(self.seed, self.turns, part, i))
            with self.states.of(part), learning():
                rows = aligned(slices[part])
                try:
                    value, numbers = _mean(loss(rows, self.randomness[0]))
                except Exception as error:
                    _note(error, rows, parameters)
                    raise
            if not value.requires_grad:
                raise _unmoved(loss, "It was computed under torch.no_grad(), or from .detach()")
            value = value * (len(slices[part]) / len(batch))
            # a device would wait for the answer, and its gradients may be of what is not finite
            if value.device.type != "cpu" or bool(torch.isfinite(value)):
                value.backward(inputs=parameters)
                if all(p.grad is None for p in parameters):
                    raise _unmoved(loss, "Is it of another module?")
            total = total + value.detach()
        return processes.summed(parameters, total), numbers

    def evaluate(self) -> None:
        """Add to the history, and keep the averaged weights where they are the best so far.

        Raises:
            NotFinite: Where the value on held-out rows is NaN.
        """
        found = processes.agreed(self._held_out_value())
        if found is not None and math.isnan(found):
            raise NotFinite
        steps = self.step - (self.best.history[-1].step if self.best.history else 0)
        means = {name: float(total) / steps for name, total in self.sums.items()}
        lost = means[f"{self.players[-1].name} loss".lstrip()]
        means.pop("loss", None)
        self.best.history.append(Progress(self.step, lost, found, means, self.recipe.steps))
        self.sums, self.stale = {}, self.stale + 1
        if found is None or found < self.lowest:
            self.lowest, self.stale = math.inf if found is None else found, 0
            self.best.weights, self.best.step = self.averaged(), self.step

    def _held_out_value(self) -> float | None:
        """The value of the averaged weights on held-out rows, None without such rows.

        The random numbers are the same at each evaluation.
        """
        if len(self.held_out) == 0 or self.measure is None:
            return None
        present = copy.deepcopy(self.module.state_dict())
        self.settle(self.averaged())
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad(), self.states.unchanged():
            values = [
                _mean(self.measure(self.held_out, generator))[0] for _ in range(self.recipe.repeats)
            ]
        self.module.load_state_dict(present)
        return float(torch.stack(values).mean())

    def whose(self, data: Tensor, settings: Mapping[str, Any] | None) -> Whose:
        """What tells this run from others: its settings, and the code of its losses.

        The weights are not, nor what the training itself changes; a moment has both.
        """
        modules = [self.module, *(player.module for player in self.players)]
        states = self.states.objects
        learned = {
            "modules": modules,
            "weights": [v for m in modules for v in (*m.parameters(), *m.buffers())],
            "states": states,
        }
        code = Identity(
            state=[_settings_of(state) for state in states],
            **learned,
            loss=[player.loss for player in self.players],
            evaluate=None if self.measure is self.players[0].loss else self.measure,
            optimiser=[self.recipe.optimiser, *(player.optimiser for player in self.players)],
        )
        return Whose(self._settings(data, settings), code, tuple(f"{name}*" for name in learned))

    def _settings(self, data: Tensor, settings: Mapping[str, Any] | None) -> dict[str, Any]:
        weights = {
            name: [str(v.dtype), list(v.shape)] for name, v in self.module.state_dict().items()
        }
        rows = {"data": torch.as_tensor(data)}
        if self.given:
            rows["held_out"] = self.held_out
        return {
            "run": "fit",
            "seed": self.seed,
            "data": tensor_digest(rows),
            "weights": weights,
            "module": stable_text(repr(self.module)),
            "recipe": asdict(self.recipe)
            | {"optimiser": _name(self.recipe.optimiser), "parts": self.parts},
            "players": [[p.name, p.steps, _name(p.optimiser)] for p in self.players],
            "settings": dict(settings or {}),
        }

    def moment(self) -> dict[str, Any]:
        """All that is needed to go on exactly from here; called by every process."""
        return {
            "step": self.step,
            "turns": self.turns,
            "stale": self.stale,
            "lowest": self.lowest,
            "weights": self.module.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "generators": [g.get_state() for g in (self.generator, *self.randomness)],
            "states": self.states.moment(),
            "best": (
                self.best.weights,
                self.best.step,
                [(*p[:3], dict(p.health)) for p in self.best.history],
            ),
        }

    def restore(self, moment: dict[str, Any]) -> None:
        """Go on from a moment.

        Raises:
            CheckpointError: Where it does not fit this training.
        """
        try:
            for optimiser, its in zip(self.optimisers, moment["optimisers"], strict=True):
                optimiser.load_state_dict(its)
            _set_states([self.generator, *self.randomness], moment["generators"])
            self.states.restore(moment["states"])
            self.step, self.turns, self.stale = (
                _number(moment, name) for name in ("step", "turns", "stale")
            )
            self.lowest = float(moment["lowest"])
            weights, step, history = moment["best"]
            weights = _in_place_of(self.module.state_dict(), weights)
            reports = [
                Progress(at, lost, held_out, health, self.recipe.steps)
                for at, lost, held_out, health in history
            ]
            self.best = Fit(weights, step, reports)
            self.average.load_state_dict(moment["average"])
            self.module.load_state_dict(moment["weights"])
        except (
            KeyError,
            IndexError,
            ValueError,
            TypeError,
            AttributeError,
            RuntimeError,
            ScoretkError,
        ) as error:
            raise CheckpointError(
                f"the checkpoint does not fit this training: {error}. It is left untouched"
            ) from error


def _settings_of(state: Any) -> dict[str, Any]:
    """What a state that is a dataclass has been given; of what has a state of its own its kind."""
    given = {f.name: getattr(state, f.name) for f in fields(state)} if is_dataclass(state) else {}
    return {"": type(state)} | {
        name: type(value) if hasattr(value, "load_state_dict") else value
        for name, value in given.items()
    }


def _in_place_of(own: dict[str, Any], weights: dict[str, Any]) -> dict[str, Any]:
    """Weights that were saved, each on the device of the module's own.

    Raises:
        ValueError: They have other names, shapes or types.
    """
    theirs, ours = (
        {
            name: (value.shape, value.dtype)
            for name, value in of.items()
            if isinstance(value, Tensor)
        }
        for of in (weights, own)
    )
    if theirs != ours:
        raise ValueError("the best weights are not of the module's names, shapes and types")
    return {n: v.to(own[n].device) if isinstance(v, Tensor) else v for n, v in weights.items()}


def _number(moment: dict[str, Any], name: str) -> int:
    if not is_count(moment[name]):
        raise ValueError(f"{name} cannot be {moment[name]!r:.80}")
    return moment[name]


def _one_array(data: Any) -> Any:
    """The data, if they are one array.

    Raises:
        InvalidArgument: They are several, a data set or a loader.
    """
    if hasattr(data, "shape"):
        return data
    raise InvalidArgument(
        "data",
        type(data),
        "rows in one tensor, (n, *event_shape)",
        "What goes with them, such as labels, is found by the rows' numbers: "
        "fit(module, loss, torch.arange(n), recipe), whose loss takes x[rows.long()] and "
        "y[rows.long()]. Of a TensorDataset: its tensors",
    )


def _split(rows: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(rows), generator=generator)
    kept = round(share * len(rows))
    if len(rows) - kept < 1:
        raise InvalidArgument("data", rows, "at least one row to fit, beside those held out")
    return rows[order[kept:]], rows[order[:kept]]


def _parts(recipe: Recipe, batch: int) -> int:
    workers = processes.process_count()
    parts = workers if recipe.parts is None else recipe.parts
    if parts % workers or parts > batch:
        raise InvalidArgument(
            "parts",
            parts,
            f"a multiple of {workers} processes, at most the {batch} rows of a batch",
        )
    return parts


def _check_module(module: Any) -> None:
    """Refuse what has no parameters to be asked for, such as a field or a function.

    Raises:
        InvalidArgument: It is no module.
    """
    if not isinstance(module, nn.Module):
        raise InvalidArgument(
            "module",
            module,
            "a torch.nn.Module, whose parameters are fitted",
            "Of several: torch.nn.ModuleList; of a field: the network that it calls",
        )


def _unmoved(loss: Loss, why: str) -> InvalidArgument:
    """The error for a loss that teaches a module nothing."""
    return InvalidArgument(
        "loss", loss, "one that depends on the module's parameters, so that it has a gradient", why
    )


def _note(error: Exception, rows: Tensor, parameters: list[nn.Parameter]) -> None:
    """Add to an error of a loss what it was given."""
    if not isinstance(error, ScoretkError):
        kinds = ", ".join(sorted({str(p.dtype) for p in parameters}))
        error.add_note(
            f"scoretk: loss(rows, generator) is given rows of shape {tuple(rows.shape)}, "
            f"{rows.dtype}; the module's parameters are {kinds}"
        )


def _parameters(player: Player, module: nn.Module) -> list[nn.Parameter]:
    known = set(module.parameters())
    found = [p for p in player.module.parameters() if p.requires_grad]
    if not found or not known.issuperset(found):
        raise InvalidArgument(
            "module",
            player.module,
            "a module with parameters to fit, part of the module that is fitted",
        )
    return found


@torch.no_grad()
def _take_in(average: AveragedModel, module: nn.Module, decay: float) -> None:
    """Count present weights in the averaged ones; buffers are not averaged.

    The count stays on the host, where torch's own update sends it to the device and waits for it.
    """
    done = int(average.n_averaged)
    averages: list[Tensor] = [*average.module.parameters()]
    present: list[Tensor] = [*module.parameters()]
    torch._foreach_lerp_(averages, present, 1 - min(decay, done / (done + 9)))
    for own, buffer in zip(average.module.buffers(), module.buffers(), strict=True):
        own.copy_(buffer)
    average.n_averaged += 1


def _generators(module: nn.Module) -> list[torch.Generator]:
    """The generators that modules hold as attributes, as those with dropout do."""
    held = [
        value
        for m in module.modules()
        for value in vars(m).values()
        if isinstance(value, torch.Generator)
    ]
    return list({id(g): g for g in held}.values())


def _set_states(generators: list[torch.Generator], states: list[Tensor]) -> None:
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


def _mean(outcome: Tensor | tuple[Tensor, Numbers]) -> tuple[Tensor, dict[str, float | Tensor]]:
    values, numbers = outcome if isinstance(outcome, tuple) else (outcome, {})
    if not isinstance(values, Tensor) or not isinstance(numbers, Mapping):
        raise InvalidArgument(
            "loss",
            outcome,
            "a tensor, or a tensor and a dict of numbers, from loss(rows, generator)",
            "Of contrastive divergence: step.loss, cd.last" if isinstance(outcome, CDStep) else "",
        )
    return values.mean(), dict(numbers)


def _name(make: Any) -> Any:
    """What tells one maker of optimisers from another, without addresses in memory."""
    if isinstance(make, partial):
        return [_name(make.func), repr(make.args), repr(make.keywords)]
    if make is None:
        return None
    return f"{make.__module__}.{getattr(make, '__qualname__', type(make).__qualname__)}"
