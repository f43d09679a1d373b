"""Named variables: the parts of x by name, each with its shape and its constraint.

A law of `mu`, `tau > 0` and `theta` in R^8 is sampled as one tensor z of free coordinates,

    z = (z_mu, z_tau, z_theta),    mu = z_mu,    tau = exp(z_tau),    theta = z_theta,

and what its function says of the variables becomes the energy

    E(z) = E_user(mu, tau, theta) - sum_v log |det dT_v/dz_v|

with T_v the bijection onto the constraint of variable v (`scoretk.fields.supports`). Draws, moments
and starts hold the variables side by side, in the user's space and in the order in which they were
given; a `Layout` says which entries are whose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter, Signature, signature
from keyword import iskeyword
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.distributions.constraints import Constraint

from scoretk.core.arguments import event_shape as as_event_shape
from scoretk.core.arguments import is_integer, tensor_like
from scoretk.errors import InvalidArgument, near_match
from scoretk.fields.answers import check_energy, noted
from scoretk.fields.gradient import followed
from scoretk.fields.layout import Layout, Shape, Variable, layout_of, variable_name
from scoretk.fields.protocols import optional
from scoretk.fields.supports import REAL, Bijection, bijection, trailing_sum

__all__ = [
    "ByName",
    "Derived",
    "FreeEnergy",
    "Named",
    "OfSome",
    "Variables",
    "argument_name",
    "check_takes",
    "named",
    "of_some",
    "outside",
    "rows_by_name",
    "variables_of",
]


@runtime_checkable
class Named(Protocol):
    """The names of what a field's draws hold: the field's `variables`.

    Draws are in the user's space, where they have one (`scoretk.fields.constrained`).
    """

    @property
    def layout(self) -> Layout:
        """Which variables there are."""
        ...

    def values(self, x: Tensor) -> Tensor:
        """The variables at draws x `(.., *event_shape)`, side by side, `(.., layout.size)`.

        It is x itself where draws hold the variables.
        """
        ...

    def point(self, values: Mapping[str, Any]) -> Tensor:
        """Starts x `(chains, *event_shape)` at values by name, `(chains, *shape)` each.

        Raises:
            InvalidArgument: A value is missing, is no variable's, has another shape, or is not in
                its support.
        """
        ...


@dataclass(frozen=True, eq=False)
class Variables:
    """Variables side by side, and the bijection from free space onto all their supports.

    Attributes:
        specs: The variables by name.
        names: Their order, which is part of what they are.
        parts: The bijections onto the supports, one a variable.
        layout: Which entries of x are whose.
        free: Which free coordinates are whose.
    """

    specs: Mapping[str, Variable]
    names: tuple[str, ...] = field(init=False)
    parts: list[Bijection] = field(init=False)
    layout: Layout = field(init=False)
    free: Layout = field(init=False)

    event_dim = 1

    def __post_init__(self) -> None:
        # All at once: what a field is made of does not change by being used.
        parts = [bijection(v.constraint) for v in self.specs.values()]
        specs = zip(self.specs.items(), parts, strict=True)
        free = {name: Variable(part.free_shape(v.shape)) for (name, v), part in specs}
        made = {
            "names": tuple(self.specs),
            "parts": parts,
            "layout": layout_of(self.specs),
            "free": layout_of(free),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        shown = (f"{n}: {tuple(v.shape)} {v.constraint}" for n, v in self.specs.items())
        return f"variables({', '.join(shown)})"

    def values(self, x: Tensor) -> Tensor:
        return x

    def point(self, values: Mapping[str, Any]) -> Tensor:
        rows = rows_by_name(values, self.layout.shapes)
        for (name, v), part in zip(self.specs.items(), self.parts, strict=True):
            row = rows[name]
            if not bool(part.contains(row).all() and part.unconstrain(row).isfinite().all()):
                raise outside(f"init[{name!r}]", values[name], v.constraint)
        return self.layout.joined(rows)

    # The bijection, part by part.

    def free_shape(self, shape: Shape) -> Shape:
        if shape != (self.layout.size,):
            raise ValueError(f"the variables hold {self.layout.size} entries")
        return (self.free.size,)

    def _each(self, ask: str, layout: Layout, x: Tensor) -> dict[str, Tensor]:
        """What each part says of its own entries."""
        parts = zip(layout.split(x).items(), self.parts, strict=True)
        return {name: getattr(part, ask)(value) for (name, value), part in parts}

    def constrain(self, z: Tensor) -> Tensor:
        if all(part is REAL for part in self.parts):
            return z
        return self.layout.joined(self._each("constrain", self.free, z))

    def unconstrain(self, x: Tensor) -> Tensor:
        return self.free.joined(self._each("unconstrain", self.layout, x))

    def clamped(self, x: Tensor) -> Tensor:
        return self.layout.joined(self._each("clamped", self.layout, x))

    def contains(self, x: Tensor) -> Tensor:
        found = self._each("contains", self.layout, x).values()
        return torch.stack([_all(inside, x.ndim - 1) for inside in found]).all(0)

    def log_jacobian(self, z: Tensor, x: Tensor) -> Tensor:
        found = self._log_jacobian(self.free.split(z), self.layout.split(x))
        return z.new_zeros(z.shape[:-1]) if found is None else found

    def _log_jacobian(self, z: Mapping[str, Tensor], x: Mapping[str, Tensor]) -> Tensor | None:
        """The sum over the variables; None where all are their own free coordinates."""
        logs = [
            trailing_sum(part.log_jacobian(z[name], x[name]), len(v.shape) - part.event_dim)
            for (name, v), part in zip(self.specs.items(), self.parts, strict=True)
            if part is not REAL
        ]
        return sum(logs[1:], logs[0]) if logs else None

    def at(self, z: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """The variables at z, by name, and the logarithm of the Jacobian; None for 0."""
        free = self.free.split(z)
        x = {
            name: part.constrain(free[name])
            for name, part in zip(self.specs, self.parts, strict=True)
        }
        return x, self._log_jacobian(free, x)


def rows_by_name(values: Any, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """Starts by name, as tensors of one row a chain.

    Args:
        values: What a user gives as `init`.
        shapes: The shape of each variable.

    Returns:
        `(chains, *shape)` by name, in the order of the shapes; all are finite, and on one device.

    Raises:
        InvalidArgument: A value is missing, is no variable's, or has another shape or other rows.
    """
    if not isinstance(values, Mapping) or values.keys() != shapes.keys():
        by_name = isinstance(values, Mapping)
        raise InvalidArgument(
            "init",
            [*values] if by_name else values,
            f"one value a chain of each of {', '.join(shapes)}",
            _amiss(values, shapes) if by_name else "",
        )
    rows = {
        name: tensor_like(f"init[{name!r}]", values[name], (None, *shape))
        for name, shape in shapes.items()
    }
    first = next(iter(rows))
    for name, row in rows.items():
        if len(row) != len(rows[first]) or row.device != rows[first].device:
            raise InvalidArgument(
                f"init[{name!r}]",
                row,
                f"one row a chain on one device, as init[{first!r}] has: "
                f"{len(rows[first])} on {rows[first].device}",
            )
    return rows


def outside(argument: str, value: Any, constraint: Any) -> InvalidArgument:
    """The error for a start that is not in its support."""
    return InvalidArgument(argument, value, f"values inside the constraint {constraint}")


def _amiss(given: Iterable[Any], known: Mapping[str, Any]) -> str:
    """The names that are missing, and those that no variable has, as a hint."""
    names = list(given)
    missing = [name for name in known if name not in names]
    left = [f"{', '.join(missing)} missing"] if missing else []
    unknown = [f"{n!r} is no variable{near_match(n, known)}" for n in names if n not in known]
    return "; ".join([*left, *unknown])


def _all(inside: Tensor, lead: int) -> Tensor:
    """Whether all entries are inside, over all axes but `lead` leading ones."""
    return inside.flatten(lead).all(-1) if inside.ndim > lead else inside


@dataclass(frozen=True, eq=False)
class Derived:
    """Variables that are functions of x, such as `theta = mu + tau x_theta`.

    Attributes:
        named: The variables.
        of: Takes x `(.., *event_shape)` to the variables `(.., *shape)`, by name.
        at: Takes the variables, as keyword arguments, to x: the inverse.
    """

    named: Variables
    of: Callable[[Tensor], Mapping[str, Tensor]]
    at: Callable[..., Tensor]

    @property
    def layout(self) -> Layout:
        return self.named.layout

    def values(self, x: Tensor) -> Tensor:
        return self.layout.joined(self.of(x))

    def point(self, values: Mapping[str, Any]) -> Tensor:
        return self.at(**self.layout.split(self.named.point(values)))


def argument_name(name: Any) -> str:
    """A name of a variable that a function takes by it.

    Raises:
        InvalidArgument: It is no identifier, or no name of a variable.
    """
    if not isinstance(name, str) or not name.isidentifier() or iskeyword(name):
        raise InvalidArgument(
            "variables", name, "names that a function can have arguments of: Python identifiers"
        )
    return variable_name(name)


def variables_of(value: Any, name_of: Callable[[Any], str] = argument_name) -> Variables:
    """Variables from what a user gives.

    Args:
        value: By name a shape, a constraint (of one number) or a `Variable`.
        name_of: What checks a name: `variable_name` where no function takes the variables by name.

    Returns:
        The variables.

    Raises:
        InvalidArgument: A name does not serve or is taken, a constraint has no bijection onto
            values of the shape, or axes disagree.
    """
    if isinstance(value, Variables):
        return value
    if not isinstance(value, Mapping) or not value:
        raise InvalidArgument(
            "variables",
            value,
            "at least one variable by name",
            "Such as {'mu': (), 'tau': torch.distributions.constraints.positive, 'theta': (8,)}",
        )
    specs = {name_of(name): _variable(name, spec) for name, spec in value.items()}
    for name, v in specs.items():
        _check_bijection(name, v)
    return Variables(specs)


def _variable(name: str, spec: Any) -> Variable:
    if isinstance(spec, Variable):
        return spec
    if isinstance(spec, Constraint):
        return Variable((), spec)
    if isinstance(spec, Sequence) and any(isinstance(s, Constraint) for s in spec):
        shape = next((s for s in spec if isinstance(s, Sequence)), (3,))
        raise InvalidArgument(
            f"variables[{name!r}]",
            spec,
            "a shape such as (8,), a constraint, or scoretk.Variable(shape, constraint)",
            f"Both together: scoretk.Variable({tuple(shape)}, constraints.positive)",
        )
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        return Variable(as_event_shape(spec, f"variables[{name!r}]"))
    raise InvalidArgument(
        f"variables[{name!r}]",
        spec,
        "a shape such as (8,), a constraint, or scoretk.Variable(shape, constraint)",
        _meant(spec),
    )


def _meant(spec: Any) -> str:
    """A hint on how to write what this spec probably means; "" where that is not known."""
    if isinstance(spec, Distribution):
        shape = tuple(spec.batch_shape + spec.event_shape)
        kind = type(spec).__name__
        made = f"scoretk.Variable({shape}, law.support)" if shape else "law.support"
        return f"Of a prior law, here a {kind}, its support, {made}: its density is fn's to add"
    if is_integer(spec) and spec > 0:
        return f"Of {spec} numbers: ({spec},)"
    if isinstance(spec, str) and isinstance(getattr(constraints, spec, None), Constraint):
        return f"torch.distributions.constraints.{spec}"
    return ""


def _check_bijection(name: str, v: Variable) -> None:
    """Check that there is a bijection onto values of the variable's shape.

    Raises:
        InvalidArgument: There is none.
    """
    hint = "Of more than one number: scoretk.Variable(shape, constraint)"
    try:
        part = bijection(v.constraint)
        z = torch.zeros((2, *part.free_shape(v.shape)))
        x = part.constrain(z)
        fits = (
            x.shape == (2, *v.shape)
            and bool(part.contains(x).all())
            and bool(part.unconstrain(x).isfinite().all())
        )
    except (NotImplementedError, ValueError, RuntimeError, AssertionError, IndexError) as error:
        fits, hint = False, f"{hint}. {error}" if str(error) else hint
    if not fits:
        raise InvalidArgument(
            f"variables[{name!r}]",
            v.constraint,
            f"a constraint with a bijection onto values of shape {v.shape}",
            hint,
        )


@dataclass(frozen=True, eq=False)
class ByName:
    """A function of named variables as one of x.

    Attributes:
        fn: Called as `fn(mu=..., tau=..., **cond)`.
        layout: Which entries of x are whose.
    """

    fn: Callable[..., Tensor]
    layout: Layout

    @property
    def __signature__(self) -> Signature:
        """`(x, /, *, conditions)`: what `fn` takes beside the variables."""
        of_x = Parameter("x", Parameter.POSITIONAL_ONLY)
        taken = _parameters(self.fn)
        if taken is None:
            return Signature([of_x, Parameter("cond", Parameter.VAR_KEYWORD)])
        kinds = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
        others = [
            p.replace(kind=Parameter.KEYWORD_ONLY) if p.kind in kinds else p
            for p in taken
            if p.name not in self.layout.shapes and p.kind in (*kinds, Parameter.VAR_KEYWORD)
        ]
        return Signature([of_x, *others])

    def __call__(self, x: Tensor, /, **cond: Tensor) -> Tensor:
        return _called(self.fn, self.layout.split(x), cond)


def _called(
    fn: Callable[..., Tensor], values: Mapping[str, Tensor], cond: Mapping[str, Tensor]
) -> Tensor:
    """`fn(**values, **cond)`.

    Raises:
        InvalidArgument: A condition has the name of a variable.
    """
    if cond.keys() & values.keys():
        twice = ", ".join(sorted(cond.keys() & values.keys()))
        raise InvalidArgument("cond", twice, "names that no variable has: rename one of them")
    if torch.compiler.is_compiling():
        return fn(**values, **cond)
    try:
        return fn(**values, **cond)
    except Exception as error:
        noted(error, "fn", {**values, **cond})
        raise


@dataclass(frozen=True, eq=False)
class OfSome:
    """A function of some of the named variables as one of x.

    Attributes:
        fn: Called as `fn(mu=..., **cond)`, with the variables that it takes.
        of: The variables.
        taken: The names of those that it takes.
    """

    fn: Callable[..., Tensor]
    of: Named
    taken: tuple[str, ...]

    def __call__(self, x: Tensor, /, **cond: Tensor) -> Tensor:
        values = self.of.layout.split(self.of.values(x))
        return _called(self.fn, {name: values[name] for name in self.taken}, cond)


def of_some(fn: Any, law: object) -> Any:
    """A function of a field's variables as one of x, where its first argument is a variable's name.

    Args:
        fn: A function of x, or of some of the variables.
        law: The field.

    Returns:
        A function of x; what is no function of variables as it is.
    """
    names, parameters = named(law), _parameters(fn) if callable(fn) else None
    if names is None or not parameters or parameters[0].name not in names.layout.shapes:
        return fn
    kinds = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    known = {p.name for p in parameters if p.kind in kinds}
    return OfSome(fn, names, tuple(name for name in names.layout.shapes if name in known))


@dataclass(frozen=True, eq=False)
class FreeEnergy:
    """The energy of named variables in free space, without x in between.

    Attributes:
        fn: Called as `fn(mu=..., tau=..., **cond) -> (batch,)`.
        space: The variables.
    """

    fn: Callable[..., Tensor]
    space: Variables

    def __call__(self, z: Tensor, /, **cond: Tensor) -> Tensor:
        """`E_user(T(z)) - log |det dT/dz|`, `(batch,)`."""
        values, log_jacobian = self.space.at(z)
        energy = check_energy(_called(self.fn, values, cond), z)
        if log_jacobian is None:
            return energy
        return followed(energy, z) - log_jacobian


def check_takes(fn: Any, layout: Layout) -> None:
    """Check that a function takes each variable as a keyword argument.

    Raises:
        InvalidArgument: It cannot be called so.
    """
    form = f"fn({', '.join(layout.shapes)}, **cond)"
    if not callable(fn) or isinstance(fn, type):
        raise InvalidArgument("fn", fn, f"a callable {form}")
    taken = _parameters(fn)
    if taken is None:
        return
    by_keyword = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    known = {p.name for p in taken if p.kind in by_keyword}
    unnamed = [
        p.name for p in taken if p.kind is Parameter.POSITIONAL_ONLY and p.default is p.empty
    ]
    any_name = any(p.kind is Parameter.VAR_KEYWORD for p in taken)
    missing = [] if any_name else [name for name in layout.shapes if name not in known]
    if missing or unnamed:
        if missing:
            said = f"does not take {', '.join(missing)} by name"
        else:
            said = f"takes {', '.join(unnamed)} by position only"
        expected = f"a callable {form}, each variable an argument of its name"
        raise InvalidArgument("fn", fn, expected, f"It {said}")


def _parameters(fn: Any) -> list[Parameter] | None:
    """The parameters of a function or module; None where it does not say."""
    try:
        found = signature(fn.forward if isinstance(fn, nn.Module) else fn)
    except (TypeError, ValueError):  # C code does not say
        return None
    return list(found.parameters.values())


def named(law: object) -> Named | None:
    """The names of what a field's draws hold; None where they have none."""
    found = optional(law, "variables")
    return found if isinstance(found, Named) else None
