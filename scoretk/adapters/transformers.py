r"""Language models of transformers as fields over token ids.

A text of L tokens is L one-hot rows over the vocabulary, so that the energy is a smooth function of
real x and its gradient is one over tokens, as `scoretk.GibbsWithGradients` needs it. A causal model
is the normalised law

    log p(x) = sum_i log p(x_i | prefix, x_1 ... x_(i-1)),

from which `draw` samples token by token. Where tokens within the text are given (infilling) it is
the law of the others up to a constant. A masked model has conditionals and no joint law; its energy
is minus the pseudo-log-likelihood

    -sum_i log p(x_i | all others),

one pass of the model for each site.

A model is asked by embeddings, of which a one-hot row picks one and any other row a mixture. They are
what its embedding layer says of every token, as some layers scale what they hold. That this is the
model that token ids ask, and that a causal one is causal, is tried on random texts when the field
is made. Some models, RoBERTa's kind, count positions by ids: a pad token has none, and is left out of the
count. They are told the positions of the text that a row is nearest to.

References:
    Besag, "Statistical analysis of non-lattice data" (1975): the pseudo-likelihood.
    Salazar, Liang, Nguyen, Kirchhoff, "Masked language model scoring" (2020).
    Grathwohl, Swersky, Hashemi, Duvenaud, Maddison, "Oops I took a gradient: scalable sampling for
    discrete distributions" (2021).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from scoretk.core.arguments import count, integer, is_integer
from scoretk.core.devices import on
from scoretk.core.keywords import explained
from scoretk.core.modules import left_as_found
from scoretk.core.rows import row_sum
from scoretk.core.streams import Stream
from scoretk.core.warned import warn
from scoretk.errors import InvalidArgument, MissingCapability
from scoretk.fields.answers import check_asked
from scoretk.fields.foreign import answered, misfit, owners, within
from scoretk.fields.gradient import grad_energy
from scoretk.fields.protocols import NoiseSource, drawn
from scoretk.fields.states import pick, uniform_states

__all__ = ["LanguageField", "from_language_model"]

OF_GENERATE: Mapping[str, float | None] = MappingProxyType(
    {
        "temperature": 1,
        "top_k": 0,
        "top_p": 1,
        "min_p": 0,
        "top_h": 1,
        "typical_p": 1,
        "epsilon_cutoff": 0,
        "eta_cutoff": 0,
        "repetition_penalty": 1,
        "no_repeat_ngram_size": 0,
        "min_length": 0,
        "min_new_tokens": 0,
        "guidance_scale": 1,
        "bad_words_ids": None,
        "sequence_bias": None,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
        "forced_bos_token_id": None,
        "exponential_decay_length_penalty": None,
        "watermarking_config": None,
    }
)
"""Settings by which `generate` of transformers draws from another law than the logits', and the
values with which they change nothing."""

CLOSE = 4.0
"""How near answers by embeddings are to those by ids, in roots of the dtype's precision."""


@dataclass(frozen=True, eq=False)
class LanguageField:
    """The static field of a language model over one-hot tokens; made by `from_language_model`.

    Attributes:
        lm: The model.
        masked: Whether it is a masked one.
        before: The ids before the text, `(k,)`.
        template: The ids of the text, `(length,)`, -1 where they are free.
        after: The ids after the text, `(k,)`.
        mask: The id of the mask token, of a masked model.
        pad: The id that is not counted among the positions; None where all are.
    """

    lm: Any
    masked: bool
    before: Tensor
    template: Tensor
    after: Tensor
    mask: int | None = None
    pad: int | None = None

    states = "one-hot"

    def __repr__(self) -> str:
        kind = "masked" if self.masked else "causal"
        return f"from_language_model({type(self.lm).__name__}, {kind}, {self.event_shape})"

    @property
    def _free(self) -> Tensor:
        """Which sites of the text are free, `(length,)` of bool."""
        return self.template < 0

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(free tokens, vocabulary)`."""
        return (int(self._free.sum()), _vocabulary(self.lm))

    @property
    def _normalised(self) -> bool:
        return not self.masked and bool(self._free.all())

    @property
    def provides(self) -> frozenset[str]:
        """Energy, score, states and decode; of a causal model without given tokens `log_prob` and
        `draw`.
        """
        own = {"energy", "score", "states", "decode"}
        return frozenset(own | ({"log_prob", "draw"} if self._normalised else set()))

    def initial(self, n: int, noise: NoiseSource) -> Tensor:
        """Every free token uniform over the vocabulary, `(n, *event_shape)`."""
        return uniform_states("one-hot", self.event_shape, noise)

    def energy(self, x: Tensor) -> Tensor:
        """Minus the log likelihood, or pseudo-log-likelihood, `(batch,)`."""
        check_asked(x, self.event_shape)
        if len(x) == 0:
            return row_sum(x)
        ask = self._masked if self.masked else self._causal
        return -answered(lambda: ask(x), self.lm, x, {})

    def energy_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`E(x)`, `(batch,)`, and its gradient, like x, in one evaluation."""
        return grad_energy(self.energy, x)

    def score(self, x: Tensor) -> Tensor:
        """`-grad E(x)`, like x."""
        return -self.energy_and_grad(x)[1]

    def log_prob(self, x: Tensor) -> Tensor:
        """`log p(x)`, `(batch,)`, of a causal model.

        Raises:
            MissingCapability: It is a masked model, or tokens within the text are given.
        """
        self._must_be_normalised("log_prob")
        return -self.energy(x)

    @torch.no_grad()
    @drawn
    def draw(self, n: int, noise: NoiseSource) -> Tensor:
        """Exact samples, token by token: `field.draw(8, scoretk.Noise(0, 8))`.

        Args:
            n: How many.
            noise: Noise of as many chains, such as `scoretk.Noise(seed, n)`.

        Returns:
            One-hot rows, `(n, *event_shape)`; `decode` makes token ids of them.

        Raises:
            MissingCapability: It is a masked model, or tokens within the text are given.
        """
        self._must_be_normalised("draw")
        ids = on(self.before, noise.chains.device).expand(n, -1)
        for i in range(len(self.template)):
            u = noise.uniform(i, Stream.START, (), torch.float64)
            ids = torch.cat([ids, pick(self._following(ids), u)[:, None]], 1)
        return self.one_hot(ids[:, len(self.before) :])

    def _following(self, ids: Tensor) -> Tensor:
        """The logits of the token after texts `(n, k)`, `(n, vocabulary)`."""
        logits: Tensor = answered(lambda: self.lm(input_ids=ids).logits[:, -1], self.lm, ids, {})
        return logits.double()

    def one_hot(self, ids: Tensor) -> Tensor:
        """The x of texts, such as a start for `init=`: `(n, length)` of ids to `(n, *event_shape)`.

        Raises:
            InvalidArgument: They are not so many ids.
        """
        ids = torch.as_tensor(ids)
        length, vocabulary = len(self.template), self.event_shape[1]
        fits = ids.ndim == 2 and ids.shape[1] == length and not ids.is_floating_point()
        if not fits or bool(((ids < 0) | (ids >= vocabulary)).any()):
            raise InvalidArgument("ids", ids, f"(n, {length}) ids below {vocabulary}")
        weight = self.lm.get_input_embeddings().weight
        rows = one_hot(ids[:, on(self._free, ids.device)].long(), vocabulary)
        return rows.to(weight.device, torch.promote_types(weight.dtype, torch.float32))

    def decode(self, x: Tensor) -> Tensor:
        """The ids of the text, those that were given among them, `(batch, length)` of int64."""
        ids = on(self.template, x.device).expand(*x.shape[:-2], -1).clone()
        ids[..., on(self._free, x.device)] = x.argmax(-1)
        return ids

    def _table(self) -> Tensor:
        """The embeddings of all tokens, `(vocabulary, d)`."""
        layer = self.lm.get_input_embeddings()
        table: Tensor = layer(torch.arange(_vocabulary(self.lm), device=layer.weight.device))
        return table

    def _rows(self, x: Tensor) -> Tensor:
        """The whole text as rows over the vocabulary, `(batch, length, vocabulary)`."""
        free = on(self._free, x.device)
        given = one_hot(on(self.template, x.device).clamp(min=0), x.shape[-1]).to(x)
        place = (free.cumsum(0) - 1).clamp(min=0)
        return torch.where(free[:, None], x[:, place], given)

    def _embedded(self, rows: Tensor, table: Tensor) -> Tensor:
        """The embeddings of the text between what stands before and after it."""
        before, after = (table[on(ids, table.device)] for ids in (self.before, self.after))
        first, last = (part.expand(len(rows), -1, -1) for part in (before, after))
        return torch.cat([first, rows.to(table) @ table, last], 1)

    def _whole(self, rows: Tensor) -> Tensor:
        """The ids of texts, with what stands before and after them, `(batch, whole)`."""
        first, last = (
            on(ids, rows.device).expand(len(rows), -1) for ids in (self.before, self.after)
        )
        return torch.cat([first, rows.argmax(-1), last], 1)

    def _causal(self, x: Tensor) -> Tensor:
        rows, k = self._rows(x), len(self.before)
        seen = self._embedded(rows, self._table())[:, :-1]
        logits = _logits(self.lm, seen, self._whole(rows)[:, :-1], self.pad)[:, k - 1 :]
        return row_sum(torch.log_softmax(logits.to(x), -1) * rows)

    def _masked(self, x: Tensor) -> Tensor:
        rows, k = self._rows(x), len(self.before)
        table = self._table()
        seen, length, mask = self._embedded(rows, table), rows.shape[1], table[self.mask]
        whole = self._whole(rows)
        hidden_id = torch.tensor([[self.mask]], device=rows.device).expand(len(x), 1)
        total = x.new_zeros(len(x))
        for i in range(length):
            hidden = torch.cat(
                [seen[:, : k + i], mask.expand(len(x), 1, -1), seen[:, k + i + 1 :]], 1
            )
            ids = torch.cat([whole[:, : k + i], hidden_id, whole[:, k + i + 1 :]], 1)
            logits = _logits(self.lm, hidden, ids, self.pad)[:, k + i]
            total = total + (torch.log_softmax(logits.to(x), -1) * rows[:, i]).sum(-1)
        return total

    def _must_be_normalised(self, name: str) -> None:
        if name not in self.provides:
            why = "A masked model has no joint law" if self.masked else "Tokens are given within it"
            raise MissingCapability(
                repr(self),
                self.provides,
                {name},
                f"{why}: sample it with GibbsWithGradients or DiscreteLangevin",
            )

    @torch.no_grad()
    def _check(self) -> None:
        """Compare the answers to embeddings with those to token ids, on random texts.

        Raises:
            InvalidArgument: They differ, or a model that is taken for a causal one is not.
        """
        vocabulary, length = _vocabulary(self.lm), len(self.template)
        tokens = _plain(self.lm)
        generator = torch.Generator().manual_seed(0)
        text = tokens[torch.randint(len(tokens), (2, length), generator=generator)]
        if self.mask is not None:  # which some models treat apart
            text[0, self._free.int().argmax()] = self.mask
        text = torch.where(self._free, text, self.template)
        first, last = (part.expand(2, -1) for part in (self.before, self.after))
        ids = on(torch.cat([first, text, last], 1), self.lm.get_input_embeddings().weight.device)
        rows = one_hot(ids[:, first.shape[1] : first.shape[1] + length], vocabulary)
        with left_as_found(self.lm):
            try:
                by_ids = self.lm(input_ids=ids).logits
                found = _logits(self.lm, self._embedded(rows, self._table()), ids, self.pad)
                later, own = (True, True) if self.masked else _looks_at(self.lm, ids)
            except Exception as error:  # whatever a model of its own kind raises
                raise _refused(self.lm, f"It cannot be asked: {error!r}") from error
        if by_ids.shape[-1] != vocabulary:
            raise _refused(self.lm, f"It answers with {by_ids.shape[-1]} of {vocabulary} tokens")
        if not _alike(found, by_ids, CLOSE * torch.finfo(found.dtype).eps ** 0.5):
            raise _refused(self.lm, "It answers otherwise to embeddings than to token ids")
        if later and not self.masked:
            raise _refused(
                self.lm,
                "It looks at tokens that come later: it is no causal model. A masked one is told by its "
                "mask token, mask=id",
            )
        if not own:
            raise _refused(
                self.lm,
                "What it says at a place hangs on the tokens before it alone: a model of transformers "
                "says there what comes after its token. Move its logits one place ahead",
            )


@explained
def from_language_model(
    lm: Any,
    length: int,
    constraint: Mapping[int, int] | Sequence[int | None] | None = None,
    *,
    before: Sequence[int] | None = None,
    after: Sequence[int] = (),
    mask: int | None = None,
) -> LanguageField:
    """A field over the token ids of texts from a causal or masked language model.

    Args:
        lm: A model of transformers with a head over the vocabulary, `...LMHeadModel`,
            `...ForCausalLM` or `...ForMaskedLM`. Its logits are taken as they are: those at a place are
            of the token after it, of a masked model of the token there.
        length: How many tokens the text has.
        constraint: Tokens that are given, by their place in the text, or as one entry a place with
            None where it is free; None for none. Those that a causal model is given at the
            beginning join `before`. What a text should hold wherever it is, is a likelihood:
            `scoretk.posterior(field, log_likelihood)`.
        before: The ids before the text; None for the beginning-of-sentence token of a causal
            model's configuration, and for none of a masked one.
        after: The ids after the text, of a masked model.
        mask: The id of the mask token; None for that of the configuration. A model of a class that is
            either (XLM, Flaubert) is a masked one where this is given.

    Returns:
        The field, of x of shape `(free tokens, vocabulary)` with states "one-hot".

    Raises:
        InvalidArgument: An argument does not fit, or the model has no head over tokens.

    Warns:
        UserWarning: Texts that hold the pad token are others for it by token ids than by embeddings;
            or its `generation_config` has settings, such as a temperature, by which `generate` draws
            from another law than the logits'.
    """
    if isinstance(lm, partial):
        raise InvalidArgument("lm", type(lm), "a model without arguments that are bound to it")
    kinds = [name for _, name in owners(within(lm))]
    lm = lm if hasattr(lm, "get_input_embeddings") else within(lm)
    if not callable(getattr(lm, "get_input_embeddings", None)):
        raise misfit("lm", lm, "a language model of transformers")
    masked = any("ForMaskedLM" in name for name in kinds)
    if getattr(lm.config, "is_encoder_decoder", False):
        raise InvalidArgument(
            "lm",
            type(lm),
            "a causal or masked model: this one's law is of texts given a source",
            "Some have a causal decoder of their own, such as BartForCausalLM",
        )
    headed = getattr(lm, "get_output_embeddings", lambda: None)() is not None
    if not headed and not any("LMHead" in n or "CausalLM" in n or "MaskedLM" in n for n in kinds):
        raise InvalidArgument(
            "lm", type(lm), "a model with a head over the vocabulary", "Such as GPT2LMHeadModel"
        )
    template = _template(constraint, count("length", length, least=1))
    vocabulary = _vocabulary(lm)
    lead = [] if before is None else _ids("before", before, vocabulary)
    trail = _ids("after", after, vocabulary)
    if mask is not None and not masked:
        masked = _looks_ahead(lm)  # some are of either kind, by their configuration
        if not masked:
            raise InvalidArgument("mask", mask, "nothing with a causal model")
    if masked:
        mask = _mask(lm, mask)
    else:
        if trail:
            raise InvalidArgument("after", after, "nothing with a causal model")
        if before is None:
            start = getattr(lm.config, "bos_token_id", None)
            if start is None:
                raise InvalidArgument("before", None, "the ids before the text: the model has none")
            lead = _ids("before", [start], vocabulary)
        if not lead:
            raise InvalidArgument("before", before, "at least one id with a causal model")
        while template and template[0] >= 0 and len(template) > 1:
            lead.append(template.pop(0))
    if all(i >= 0 for i in template) or max([*template, *lead]) >= vocabulary:
        raise InvalidArgument("constraint", constraint, f"ids below {vocabulary}, some place free")
    pad = _uncounted(lm)
    _check_length(lm, length, len(lead) + len(template) + len(trail), pad)
    field = LanguageField(
        lm,
        masked,
        torch.tensor(lead, dtype=torch.int64),
        torch.tensor(template, dtype=torch.int64),
        torch.tensor(trail, dtype=torch.int64),
        mask if masked else None,
        pad,
    )
    field._check()
    if not masked:
        _tell_of_generate(lm)
    return field


def _tell_of_generate(lm: Any) -> None:
    """Say which settings of `generate` are no part of the law.

    Warns:
        UserWarning: There are some.
    """
    config: Any = getattr(lm, "generation_config", None)
    if config is None:
        return
    usual = type(config)()
    held = {name: getattr(config, name, None) for name in OF_GENERATE}
    told = [
        f"{name}={value!r}"
        for name, value in held.items()
        if value not in (None, OF_GENERATE[name], getattr(usual, name, None))
    ]
    if told:
        warn(
            "from_language_model: the law is that of the model's logits as they are; "
            f"{', '.join(told)} of its generation_config are for generate() and no part of it"
        )


def _logits(lm: Any, embedded: Tensor, ids: Tensor, pad: int | None) -> Tensor:
    """What a model says of embedded texts, `(batch, k, vocabulary)`.

    Args:
        lm: The model.
        embedded: The texts, `(batch, k, d)`.
        ids: Their ids, `(batch, k)`.
        pad: The id that is not counted among the positions; None where all are.
    """
    if pad is None:
        found: Tensor = lm(inputs_embeds=embedded).logits
        return found
    counted = on(ids != pad, embedded.device).long()
    found = lm(inputs_embeds=embedded, position_ids=counted.cumsum(1) * counted + pad).logits
    return found


@torch.no_grad()
def _uncounted(lm: Any) -> int | None:
    """The id of the pad token, of a model that does not count it among the positions.

    Warns:
        UserWarning: Texts with the pad token are others by ids, in a way that is not known.
    """
    for pad in _pads(lm):
        if _is_uncounted(lm, pad):
            return pad
    return None


def _pads(lm: Any) -> list[int]:
    """The ids that a configuration, or a part of the model, holds for that of the pad token."""
    parts = [getattr(part, "padding_idx", None) for part in lm.modules()]
    found = [getattr(lm.config, "pad_token_id", None), *parts]
    vocabulary = _vocabulary(lm)
    held = (int(i) for i in found if i is not None and is_integer(i))
    return [i for i in dict.fromkeys(held) if 0 <= i < vocabulary > 1]


def _plain(lm: Any) -> Tensor:
    """The ids of a model's tokens without those of pad tokens, which some do not look at by ids."""
    pads, vocabulary = _pads(lm), _vocabulary(lm)
    return torch.tensor([i for i in range(vocabulary) if i not in pads] or [*range(vocabulary)])


def _is_uncounted(lm: Any, pad: int) -> bool:
    """Whether a model does not count a token among the positions.

    Warns:
        UserWarning: Texts with the token are others by ids, in a way that is not known.
    """
    vocabulary, device = _vocabulary(lm), lm.get_input_embeddings().weight.device
    # within: transformers logs advice about one at an end
    ids = torch.tensor([[pad - 1, pad, pad + 1, pad - 1]], device=device) % vocabulary
    with left_as_found(lm):
        try:
            if _is_asked_alike(lm, ids, None):
                return False
            if _is_asked_alike(lm, ids, pad):
                return True
            without = _is_asked_alike(lm, ids[:, ::2], None)
        except Exception:  # noqa: BLE001 (whatever a model of its own kind raises: it is told later)
            return False
    if without:
        warn(
            f"from_language_model: texts that hold the pad token, {pad}, are others for a "
            f"{type(lm).__name__} by token ids than by embeddings, by which this field asks it"
        )
    return False


def _is_asked_alike(lm: Any, ids: Tensor, pad: int | None) -> bool:
    """Whether a model says the same of texts by their embeddings as by their ids."""
    by_ids = lm(input_ids=ids).logits
    found = _logits(lm, lm.get_input_embeddings()(ids), ids, pad)
    return _alike(found, by_ids, CLOSE * torch.finfo(by_ids.dtype).eps ** 0.5)


def _check_length(lm: Any, length: int, whole: int, pad: int | None) -> None:
    """Check that a text, with what stands beside it, has no more tokens than a model has positions.

    Args:
        lm: The model, whose configuration may say how many it has.
        length: How many tokens the text has.
        whole: How many it has with those before and after it.
        pad: The id behind whose own position the model counts; None where it counts from 0.

    Raises:
        InvalidArgument: It is.
    """
    names = ("max_position_embeddings", "n_positions")
    stated = (getattr(lm.config, name, None) for name in names)
    most = next((int(n) for n in stated if n is not None and is_integer(n)), 0)
    most -= 0 if pad is None else pad + 1
    beside = whole - length
    if 0 < most < whole:
        taken = f", of which {beside} are for tokens beside the text" if beside else ""
        raise InvalidArgument(
            "length",
            length,
            f"at most {most - beside}",
            f"length {length} exceeds the model's {most} positions{taken}",
        )


def _vocabulary(lm: Any) -> int:
    """How many tokens the embedding layer of a model knows."""
    return int(lm.get_input_embeddings().weight.shape[0])


@torch.no_grad()
def _looks_ahead(lm: Any) -> bool:
    """Whether a model looks at tokens that come later.

    Raises:
        InvalidArgument: It cannot be asked.
    """
    tokens = on(_plain(lm), lm.get_input_embeddings().weight.device)
    with left_as_found(lm):
        try:
            return _looks_at(lm, tokens[torch.arange(4) % len(tokens)][None])[0]
        except Exception as error:  # whatever a model of its own kind raises
            raise _refused(lm, f"It cannot be asked: {error!r}") from error


def _looks_at(lm: Any, ids: Tensor) -> tuple[bool, bool]:
    """What a model's logits hang on: whether on later tokens, and whether on that of their own place.

    The second is told where they hang on the token before: what no token moves may be a law, too.

    Args:
        lm: The model.
        ids: Texts of at least two tokens, `(batch, k)`.
    """
    by_ids = lm(input_ids=ids).logits
    rounding = 32 * torch.finfo(by_ids.dtype).eps  # of the same arithmetic on the same numbers
    other, tokens = ids.clone(), on(_plain(lm), ids.device)

    def moves(place: int, asked: slice) -> bool:
        next_one = torch.searchsorted(tokens, ids[:, place].contiguous()) + 1
        other.copy_(ids)[:, place] = tokens[next_one % len(tokens)]
        return not _alike(lm(input_ids=other).logits[:, asked], by_ids[:, asked], rounding)

    last, before = slice(-1, None), slice(None, -1)
    return moves(-1, before), moves(-1, last) or not moves(-2, last)


def _alike(found: Tensor, expected: Tensor, close: float) -> bool:
    """Whether logits are the same but for rounding, in units of the largest."""
    return bool(((found - expected).abs() <= close * expected.abs().amax()).all())


def _refused(lm: Any, why: str) -> InvalidArgument:
    return InvalidArgument(
        "lm",
        type(lm),
        "a causal or masked model that answers to inputs_embeds as it does to input_ids",
        why,
    )


def _ids(name: str, ids: Any, vocabulary: int) -> list[int]:
    """Token ids, as a list."""
    listed = ids.tolist() if isinstance(ids, Tensor | np.ndarray) else ids
    if isinstance(listed, str | bytes | Mapping) or not isinstance(listed, Iterable):
        raise InvalidArgument(name, ids, f"a list of token ids below {vocabulary}")
    return [integer(name, i, below=vocabulary) for i in listed]


def _mask(lm: Any, mask: int | None) -> int:
    """The id of the mask token."""
    found = getattr(lm.config, "mask_token_id", None) if mask is None else mask
    if found is None:
        raise InvalidArgument(
            "mask", mask, "the id of the mask token, which the model does not say"
        )
    return integer("mask", found, below=int(lm.get_input_embeddings().weight.shape[0]))


def _template(constraint: Any, length: int) -> list[int]:
    """The ids of the text, -1 where they are free."""
    if constraint is None:
        return [-1] * length
    if isinstance(constraint, Mapping):
        for place in constraint:
            if not is_integer(place) or not 0 <= place < length:
                raise InvalidArgument(
                    "constraint",
                    place,
                    f"a place in 0..{length - 1} of a text of {length} tokens",
                    "It is a token by its place: {place: token}",
                )
        listed = [constraint.get(i) for i in range(length)]
    elif isinstance(constraint, Sequence) and len(constraint) == length:
        listed = list(constraint)
    else:
        raise InvalidArgument("constraint", constraint, f"ids by place, or {length} entries")
    return [-1 if i is None else integer("constraint", i) for i in listed]
