"""Another backward rule for every ReLU of any function: a JAX transformation.

Section 2.1 of Zeiler & Fergus 2013 rectifies what goes down through a network, where
the gradient would mask it by the forward ReLU instead. Springenberg et al. 2015 (arXiv
1412.6806, section 3.4) put the two and their union, guided backpropagation, side by
side: three backward rules of one ReLU. Here a function is traced, its equations are run
again one by one, and each ReLU among them gets the chosen rule; the model is neither
hooked nor rewritten, and `jax.vjp` does the rest.

A ReLU is known by its structure, a maximum with 0, never by its name. What else a
function does must leave the rules meaningful, and so is checked as well, by what the
values on the way down depend on.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend import core, source_info_util
from jax.extend.core import primitives

Rule = Literal["deconvnet", "guided", "gradient"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def with_relu_rule(
    fn: Callable[_P, _T], rule: Rule, allow: Collection[str] = ()
) -> Callable[_P, _T]:
    """Give every ReLU of a function another backward rule.

    The result does the operations of `fn` on the same values, so that under `jax.jit`
    the two agree bit for bit; run by themselves they do too, but where JAX compiles a
    function of its own as one, such as `jnp.mean`, whose rounding then may differ. It
    composes with `jax.jit`, `jax.vmap`, `jax.vjp` and `jax.grad`. Of a signal R that
    arrives at a ReLU of x

    - "deconvnet" sends on max(R, 0) (Zeiler & Fergus 2013, section 2.1),
    - "guided" max(R, 0) where x > 0, else 0 (Springenberg et al. 2015),
    - "gradient" R where x > 0, else 0: the derivative as `jax.nn.relu` has it. That of
      a plain `jnp.maximum(x, 0)` differs from it at x == 0 alone, where JAX halves R.

    A ReLU is a maximum of a value and a constant 0: `jax.nn.relu`, `flax.nnx.relu`,
    `jnp.maximum`, `lax.max` or `jnp.clip(x, 0)`, the 0 on either side, a scalar or an
    array; at any depth within `jit`, `vmap`, `checkpoint`, `scan`, `cond`, `switch`,
    `while_loop`, `custom_jvp` and `custom_vjp`. A function with a custom derivative
    loses it if there is a ReLU in it, since its body is then what the rule is for, and
    keeps it otherwise. Around it all is as it was.

    Between its ReLUs `fn` must be linear in its inputs, or choose among values by
    comparing them with each other, as max pooling does. An operation on inputs that is
    neither (tanh, exp, a leaky ReLU, a `where` on x > 0, a product of two values that
    both depend on the inputs as in layer normalisation, a minimum with 6 as in relu6)
    is refused, since a rule for ReLUs alone says nothing of it. Integer arguments count
    as constants. Parameters are constants if `fn` closes over them, as a model does
    that is called itself; passed as arguments they are inputs as well, and a layer is
    then a product of two inputs. A maximum over a map that was padded or joined with
    constants counts as a choice, not as a ReLU; so does one over a value stacked with a
    multiple of itself, which is not seen through.

    Only reverse mode is defined: the rules are not linear in R, so `jax.jvp` raises
    TypeError. Each call traces `fn` anew; for repeated calls, `jax.jit` the result.

    Args:
        fn: Takes and returns pytrees. What is no array or float among its arguments
            (flags, strings, modules' functions) reaches it as it is.
        rule: What ReLUs do on the way down.
        allow: Names of primitives, such as "tanh" or "mul", to be differentiated as
            they are where they would be refused; the message of a refusal names them.

    Returns:
        A function of the arguments of `fn`. When called it raises ValueError if no ReLU
        depends on its inputs, or if the rule is not defined for one of its operations:
        the message names the primitive and the line that it came from.

    Raises:
        ValueError: There is no such rule.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be one of {get_args(Rule)}, not {rule!r}")
    study = _Study(rule, frozenset([allow] if isinstance(allow, str) else allow))

    # A module's attributes are none of the function's, hence no update of its __dict__.
    @functools.wraps(fn, updated=())
    def ruled(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        leaves, tree = jax.tree.flatten((args, kwargs))
        arrays = {
            i: leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
            for i, leaf in enumerate(leaves)
            if isinstance(leaf, jax.Array | np.ndarray | np.generic | float | complex)
        }

        def flat(arrays: dict[int, jax.Array]) -> Any:
            filled = [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]
            args, kwargs = jax.tree.unflatten(tree, filled)
            return cast(Callable[..., Any], fn)(*args, **kwargs)

        closed, shapes = jax.make_jaxpr(flat, return_shape=True)(arrays)
        kinds = [_Kind(_SIGNAL * _is_float(v)) for v in closed.jaxpr.invars]
        program = study.body(closed, kinds)
        if not program.changes:
            raise ValueError(
                f"fn applies no ReLU to its inputs, so the rule {rule!r} would change "
                "nothing"
            )
        results = program(*jax.tree.leaves(arrays))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return ruled


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _relu(rule: Rule, zero_first: bool, x: jax.Array) -> jax.Array:
    return jnp.maximum(0, x) if zero_first else jnp.maximum(x, 0)


def _relu_forward(rule, zero_first, x):
    return _relu(rule, zero_first, x), None if rule == "deconvnet" else x > 0


def _relu_backward(rule, zero_first, positive, signal):
    if rule != "gradient":
        signal = jnp.maximum(signal, 0)
    if rule != "deconvnet":
        signal = jnp.where(positive, signal, 0)
    return (signal,)


_relu.defvjp(_relu_forward, _relu_backward)


# What a value is to the inputs. A step is no float: it tells on which side of a
# constant an input lies, and whatever chooses by it bends the function there.
_CONSTANT, _SIGNAL, _STEP = range(3)


@dataclasses.dataclass(frozen=True, eq=False)
class _Kind:
    """What is known of a value without running anything.

    Attributes:
        level: Constant, signal or step.
        source: Of a constant the array that it is in another shape or type, if known.
            Of a signal an object, the same for all that are a multiple of it plus a
            constant, so that max(x, x / 10) is not taken for a choice.
    """

    level: int
    source: Any = dataclasses.field(default_factory=object)

    def is_zero(self) -> bool:
        """Whether this is a constant known to be 0 throughout."""
        if self.level or isinstance(self.source, Tracer):
            return False
        return bool((np.asarray(self.source) == 0).all())


@dataclasses.dataclass(frozen=True, eq=False)
class _Program:
    """A jaxpr that can be run, with other functions in place of some equations.

    Attributes:
        jaxpr: The equations.
        consts: The values of its constants.
        changes: By index of an equation, what takes its place.
        kinds: What its results are.
    """

    jaxpr: core.Jaxpr
    consts: Sequence[Any]
    changes: dict[int, Callable[..., Sequence[Any]]]
    kinds: list[_Kind]

    def __call__(self, *args: Any) -> list[Any]:
        """Run the equations in order."""
        values = dict(zip(self.jaxpr.constvars, self.consts, strict=True))
        values.update(zip(self.jaxpr.invars, args, strict=True))

        def read(atom: core.Var | core.Literal) -> Any:
            return atom.val if isinstance(atom, core.Literal) else values[atom]

        stack = source_info_util.current_name_stack()
        for index, eqn in enumerate(self.jaxpr.eqns):
            run = self.changes.get(index) or functools.partial(_bind, eqn)
            info = eqn.source_info
            names = stack + info.name_stack
            with (
                source_info_util.user_context(info.traceback, name_stack=names),
                eqn.ctx.manager,
            ):
                results = run(*map(read, eqn.invars))
            values.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in self.jaxpr.outvars]


def _bind(eqn: core.JaxprEqn, *values: Any) -> Sequence[Any]:
    """An equation as it was."""
    bound: Any = eqn.primitive.get_bind_params(eqn.params)
    # Older releases of JAX give functions and parameters apart.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    results = eqn.primitive.bind(*functions, *values, **params)
    return results if eqn.primitive.multiple_results else [results]


# A constant that one of these makes of another is 0 if that one is.
_SHAPING = {
    *"""broadcast_in_dim convert_element_type copy dynamic_slice reshape rev slice
    squeeze transpose""".split()
}
# What one of these makes of a signal and constants is a multiple of it plus a constant.
_SCALING = {*"add convert_element_type copy div mul neg sub".split()}
# Linear in all operands together.
_LINEAR = {
    *"""add add_any all_gather broadcast_in_dim complex concatenate conj
    convert_element_type copy copy_p cumsum device_put dynamic_slice
    dynamic_update_slice fft gather imag name neg optimization_barrier pad ppermute psum
    psum_invariant pvary real reduce_precision reduce_sum reduce_window_sum reshape rev
    scatter scatter-add scatter-sub select_and_gather_add select_and_scatter_add
    sharding_constraint slice split squeeze stack stop_gradient sub tile transpose
    unstack""".split()
}
# Linear in one operand while the others are constant.
_BILINEAR = {*"conv_general_dilated dot_general mul ragged_dot_general".split()}
# Picks among values by comparing them with each other.
_CHOOSING = {
    *"""approx_top_k argmax argmin cummax cummin is_finite max min reduce_max reduce_min
    reduce_window_max reduce_window_min select_n sort top_k""".split()
}
_COMPARING = {*"eq ge gt le lt ne".split()}

_BY_SIDE = "it depends on which side of a constant an input-dependent value lies"


class _Finding(NamedTuple):
    """What results an equation has, and what takes its place, if anything does."""

    kinds: list[_Kind]
    change: Callable[..., Sequence[Any]] | None = None


@dataclasses.dataclass(frozen=True)
class _Study:
    """Finds the ReLUs of a jaxpr and refuses what the rule is not defined for.

    Attributes:
        rule: What the ReLUs get.
        allow: Names of primitives that are not refused.
        lenient: Refuse nothing.
        sources: Where the equations come from in which those at hand are nested.
    """

    rule: Rule
    allow: frozenset[str]
    lenient: bool = False
    sources: tuple[source_info_util.SourceInfo, ...] = ()

    def body(
        self,
        closed: core.ClosedJaxpr | core.Jaxpr,
        kinds: Sequence[_Kind],
    ) -> _Program:
        """Follow inputs of the given kinds through the equations."""
        open_, consts = (
            (closed.jaxpr, closed.consts)
            if isinstance(closed, core.ClosedJaxpr)
            else (closed, ())
        )
        known = dict(zip(open_.invars, kinds, strict=True))
        for var, value in zip(open_.constvars, consts, strict=True):
            known[var] = _Kind(_CONSTANT, value)

        def read(atom: core.Var | core.Literal) -> _Kind:
            if isinstance(atom, core.Literal):
                return _Kind(_CONSTANT, atom.val)
            return known[atom]

        changes = {}
        for index, eqn in enumerate(open_.eqns):
            here = dataclasses.replace(self, sources=(*self.sources, eqn.source_info))
            method = _HIGHER_ORDER.get(eqn.primitive, _Study.first_order)
            finding = method(here, eqn, [read(atom) for atom in eqn.invars])
            known.update(zip(eqn.outvars, finding.kinds, strict=True))
            if finding.change:
                changes[index] = finding.change
        return _Program(open_, consts, changes, [read(v) for v in open_.outvars])

    def refuse(self, name: str, why: str) -> None:
        """Raise unless `name` is allowed."""
        if self.lenient or name in self.allow:
            return
        lines = filter(None, map(source_info_util.summarize, reversed(self.sources)))
        raise ValueError(
            f"the rule {self.rule!r} is not defined for {name!r} ({why}), "
            f"{next(lines, 'at an unknown line')}; allow=({name!r},) has it "
            "differentiated as it is"
        )

    def first_order(self, eqn: core.JaxprEqn, kinds: list[_Kind]) -> _Finding:
        name = eqn.primitive.name
        signals = [kind for kind in kinds if kind.level]
        if not signals:
            kept = [kinds[0].source] if name in _SHAPING else []
            return _Finding([_Kind(_CONSTANT, *kept) for _ in eqn.outvars])
        if not any(map(_is_float, eqn.outvars)):
            return _Finding([_Kind(_level(eqn, kinds)) for _ in eqn.outvars])
        if name == "max" and any(kind.is_zero() for kind in kinds):
            return _Finding([_Kind(_SIGNAL)], self.relu(eqn, kinds[0].is_zero()))
        if why := _obstacle(name, kinds, signals):
            self.refuse(name, why)
        elif name in _SCALING and len(signals) == 1:
            return _Finding([_Kind(_SIGNAL, signals[0].source)])
        return _Finding([_Kind(_SIGNAL) for _ in eqn.outvars])

    def relu(self, eqn: core.JaxprEqn, zero_first: bool) -> Callable[..., list[Any]]:
        aval: Any = eqn.outvars[0].aval

        def apply(*operands: Any) -> list[jax.Array]:
            # The zeros may have the larger shape.
            x = jnp.broadcast_to(operands[zero_first], aval.shape)
            return [_relu(self.rule, zero_first, x)]

        return apply

    def custom(self, eqn: core.JaxprEqn, kinds: list[_Kind]) -> _Finding:
        body = self.body(eqn.params["call_jaxpr"], kinds)
        return _Finding(body.kinds, body if body.changes else None)

    def jit(self, eqn: core.JaxprEqn, kinds: list[_Kind]) -> _Finding:
        params = eqn.params
        body = self.body(params["jaxpr"], kinds)
        if not body.changes:
            return _Finding(body.kinds)
        if len(body.jaxpr.eqns) == 1:
            # The same program either way, and not compiled anew at each call.
            return _Finding(body.kinds, body)

        def call(*args: Any) -> list[Any]:
            results = body(*map(_constrained, args, params["in_shardings"]))
            return [*map(_constrained, results, params["out_shardings"])]

        call.__name__ = params["name"]
        options = dict(params["compiler_options_kvs"]) or None
        return _Finding(body.kinds, jax.jit(call, compiler_options=options))

    def checkpoint(self, eqn: core.JaxprEqn, kinds: list[_Kind]) -> _Finding:
        body = self.body(eqn.params["jaxpr"], kinds)
        options = {name: eqn.params[name] for name in ("prevent_cse", "policy")}
        change = jax.checkpoint(body, **options) if body.changes else None
        return _Finding(body.kinds, change)

    def cond(self, eqn: core.JaxprEqn, kinds: list[_Kind]) -> _Finding:
        index, *operands = kinds
        if index.level == _STEP:
            self.refuse("cond", _BY_SIDE)
        branches = [self.body(branch, operands) for branch in eqn.params["branches"]]
        results = zip(*(branch.kinds for branch in branches), strict=True)
        levels = [max(kind.level for kind in kinds) for kinds in results]
        kinds = [_Kind(max(level, min(index.level, _SIGNAL))) for level in levels]
        if not any(branch.changes for branch in branches):
            return _Finding(kinds)
        return _Finding(kinds, lambda i, *args: lax.switch(i, branches, *args))

    def scan(self, eqn: core.JaxprEqn, kinds: list[_Kind]) -> _Finding:
        params = eqn.params
        fixed, carried = params["num_consts"], params["num_carry"]
        body = self.loop(params["jaxpr"], kinds, fixed, carried)

        def run(*args: Any) -> list[Any]:
            consts, start, xs = _split(args, fixed, carried)

            def step(state: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
                results = body(*consts, *state, *x)
                return results[:carried], results[carried:]

            options = {name: params[name] for name in ("length", "reverse", "unroll")}
            state, ys = lax.scan(step, start, xs, **options)
            return [*state, *ys]

        return _Finding(_levels(body.kinds), run if body.changes else None)

    def while_(self, eqn: core.JaxprEqn, kinds: list[_Kind]) -> _Finding:
        params = eqn.params
        counts = params["cond_nconsts"], params["body_nconsts"]
        for_cond, for_body, state = _split(kinds, *counts)
        body = self.loop(params["body_jaxpr"], for_body + state, counts[1], len(state))
        state = _levels(body.kinds)
        condition = self.body(params["cond_jaxpr"], for_cond + state)
        if condition.kinds[0].level == _STEP:
            self.refuse("while", _BY_SIDE)

        def run(*args: Any) -> list[Any]:
            for_cond, for_body, start = _split(args, *counts)
            return lax.while_loop(
                lambda state: condition(*for_cond, *state)[0],
                lambda state: body(*for_body, *state),
                start,
            )

        return _Finding(state, run if body.changes or condition.changes else None)

    def loop(
        self, closed: core.ClosedJaxpr, kinds: list[_Kind], fixed: int, carried: int
    ) -> _Program:
        """The body of a loop, its state of the kinds that it has after many turns."""
        consts, state, xs = _split(kinds, fixed, carried)
        lenient = dataclasses.replace(self, lenient=True)
        while True:
            # Without sources, which differ from turn to turn.
            kinds = consts + _levels(state) + _levels(xs)
            before = [kind.level for kind in state]
            turn = lenient.body(closed, kinds).kinds[:carried]
            state = [_Kind(max(a, b.level)) for a, b in zip(before, turn, strict=True)]
            # Levels only rise, so this comes to an end.
            if [kind.level for kind in state] == before:
                return self.body(closed, kinds)


_HIGHER_ORDER: dict[core.Primitive, Callable[..., _Finding]] = {
    primitives.cond_p: _Study.cond,
    primitives.custom_jvp_call_p: _Study.custom,
    primitives.custom_vjp_call_p: _Study.custom,
    primitives.jit_p: _Study.jit,
    primitives.remat_p: _Study.checkpoint,
    primitives.scan_p: _Study.scan,
    primitives.while_p: _Study.while_,
}


def _obstacle(name: str, kinds: list[_Kind], signals: list[_Kind]) -> str | None:
    """Why a primitive is neither linear in the signals nor a choice among them."""
    if any(kind.level == _STEP for kind in signals):
        return _BY_SIDE
    if name in ("max", "min"):
        if len(signals) == 1:
            return "only a maximum with a constant known to be 0 is a ReLU"
        if signals[0].source is signals[1].source:
            return "of a value and a multiple of itself"
    if name in _BILINEAR and len(signals) > 1:
        return "of two input-dependent values; close over parameters, do not pass them"
    if name == "div":
        return "by an input-dependent value" if kinds[1].level else None
    if name in _LINEAR | _BILINEAR | _CHOOSING:
        return None
    return "it is not linear in its operands"


def _level(eqn: core.JaxprEqn, kinds: list[_Kind]) -> int:
    """The level of results that are no floats."""
    name, top = eqn.primitive.name, max(kind.level for kind in kinds)
    operands = zip(kinds, eqn.invars, strict=True)
    floats = [kind for kind, atom in operands if kind.level and _is_float(atom)]
    if not floats or name in _CHOOSING:
        return top
    if name in _COMPARING and len(floats) == 2:
        # Whether a value equals itself says only whether it is a number.
        one = floats[0].source is floats[1].source and name not in ("eq", "ne")
        return _STEP if one else top
    return _STEP


def _levels(kinds: Sequence[_Kind]) -> list[_Kind]:
    return [_Kind(kind.level) for kind in kinds]


def _is_float(atom: core.Var | core.Literal) -> bool:
    dtype = getattr(atom.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def _constrained(x: Any, sharding: Any) -> Any:
    if isinstance(sharding, jax.sharding.Sharding):
        return lax.with_sharding_constraint(x, sharding)
    return x


def _split(items: Sequence[Any], *counts: int) -> tuple[list[Any], ...]:
    """As many as each count says, then the rest."""
    ends = [0, *itertools.accumulate(counts), len(items)]
    return tuple([*items[a:b]] for a, b in itertools.pairwise(ends))
