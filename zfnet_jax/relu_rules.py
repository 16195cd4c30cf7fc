"""Another backward rule for every ReLU of any function: a JAX transformation.

Section 2.1 of Zeiler & Fergus 2013 rectifies the backward signal of a network; the
gradient would mask it by the forward ReLU instead. Springenberg et al. 2015 (arXiv
1412.6806, section 3.4) compare the two and their combination, guided backpropagation.
A function is traced, and its equations are run again with the chosen rule.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, ParamSpec, TypeVar, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from zfnet_jax.relu_audit import Audit, Path, explain_training_mode
from zfnet_jax.tracing import at_source, bind, bodies

Rule = Literal["deconvnet", "guided", "gradient"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def with_relu_rule(
    fn: Callable[_P, _T], rule: Rule, *, strict: bool = True
) -> Callable[_P, _T]:
    """Give every ReLU of a function another backward rule.

    The result computes the same values as `fn`, bit for bit under `jax.jit`, and
    composes with `jax.jit`, `jax.vmap`, `jax.vjp` and `jax.grad`. A signal R that
    arrives at a ReLU of x goes on as

    - max(R, 0) by "deconvnet" (Zeiler & Fergus 2013, section 2.1),
    - max(R, 0) where x > 0, else 0, by "guided" (Springenberg et al. 2015),
    - R where x > 0, else 0, by "gradient": the derivative of `jax.nn.relu`. (At x == 0,
      JAX's derivative of a plain `jnp.maximum(x, 0)` is R / 2.)

    A ReLU is a maximum of an input-dependent value and a constant 0, as `jax.nn.relu`
    is, inside any nest of `jit`, `vmap`, `checkpoint`, `scan`, `cond`, `while_loop` and
    custom derivatives. A function with a custom derivative loses it if it contains a
    ReLU. In a clipped ReLU such as `jax.nn.relu6`, "guided" and "gradient" pass the
    signal where x lies strictly inside the clip. By "deconvnet" and "guided" the signal
    passes unchanged through this package's contrast normalization.

    Everything else must be linear in the inputs, or choose among values by comparing
    them with each other as max pooling does. Float arguments are inputs; integers are
    constants, and so are parameters that `fn` closes over. Only reverse mode is
    defined: `jax.jvp` raises TypeError. Each call traces `fn` anew: for repeated calls,
    wrap the result in `jax.jit`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x, signal = jnp.array([-2.0, 3.0, 5.0]), jnp.array([1.0, -4.0, 6.0])
        >>> for rule in ("deconvnet", "guided", "gradient"):
        ...     _, vjp = jax.vjp(with_relu_rule(jax.nn.relu, rule), x)
        ...     print(rule, vjp(signal)[0])
        deconvnet [1. 0. 6.]
        guided [0. 0. 6.]
        gradient [ 0. -4.  6.]

    Args:
        fn: Takes and returns pytrees. Arguments that are neither arrays nor floats
            (flags, strings, functions) reach it unchanged.
        rule: Backward rule for ReLUs.
        strict: Refuse operations that the rule says nothing about (tanh, GELU, leaky
            ReLU, softmax, layer normalization, ...) instead of differentiating them.

    Returns:
        A function of the arguments of `fn`. It raises ValueError if no ReLU depends on
        its inputs (except by "gradient"), if the model is in training mode, and, if
        `strict`, if the rule says nothing about some operations: the message lists all
        of them by source line.

    Raises:
        ValueError: There is no such rule.
    """
    check_rule(rule)

    # The attributes of a module do not belong to the function.
    @functools.wraps(fn, updated=())
    def ruled(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        closed, arrays, tree = _trace(fn, args, kwargs)
        audit = Audit(closed)
        _check(rule, audit, strict)
        results = Interpreter(rule, audit).run(closed, arrays)
        return jax.tree.unflatten(tree, results)

    return ruled


def check_rule(rule: str) -> None:
    """Raise ValueError if there is no such rule."""
    if rule not in get_args(Rule):
        raise ValueError(f"rule {rule!r} is not one of {', '.join(get_args(Rule))}")


def _check(rule: Rule, audit: Audit, strict: bool) -> None:
    complaints = []
    if not audit.rectifiers and rule != "gradient":
        complaints.append(
            f"no ReLU depends on the inputs, so the rule {rule!r} would change nothing"
        )
    if strict and audit.findings:
        complaints.append(
            f"the rule {rule!r} says nothing about these operations (the rule "
            f"'gradient' does, and strict=False differentiates them as they are): "
            f"{audit.describe()}"
        )
    if complaints:
        raise ValueError("; ".join(complaints))


def _trace(fn: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, list, Any]:
    """The jaxpr of a call, its array arguments, and the structure of its result."""
    leaves, tree = jax.tree.flatten((args, kwargs))
    arrays = {
        i: leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, jax.Array | np.ndarray | np.generic | float | complex)
    }

    def call(arrays: dict[int, jax.Array]) -> Any:
        filled = [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]
        args, kwargs = jax.tree.unflatten(tree, filled)
        return fn(*args, **kwargs)

    with explain_training_mode():
        closed, shapes = jax.make_jaxpr(call, return_shape=True)(arrays)
    return closed, jax.tree.leaves(arrays), jax.tree.structure(shapes)


@dataclasses.dataclass
class Interpreter:
    """Runs a jaxpr with another rule for its ReLUs."""

    rule: Rule
    audit: Audit

    def __post_init__(self):
        """Note which equations differ from the original, themselves or inside."""
        changed = self.audit.norms.union(self.audit.rectifiers)
        self._changed = {path[:n] for path in changed for n in range(1, len(path) + 1)}

    def run(
        self, closed: core.ClosedJaxpr, args: Sequence[Any], path: Path = ()
    ) -> list[Any]:
        """Run the equations in order."""
        values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        values.update(zip(closed.jaxpr.invars, args, strict=True))

        def read(atom: core.Var | core.Literal) -> Any:
            return atom.val if isinstance(atom, core.Literal) else values[atom]

        for index, eqn in enumerate(closed.jaxpr.eqns):
            with at_source(eqn):
                results = self._apply(eqn, [*map(read, eqn.invars)], (*path, index))
            values.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in closed.jaxpr.outvars]

    def _apply(self, eqn: core.JaxprEqn, operands: list, path: Path) -> Sequence[Any]:
        if path not in self._changed:
            return bind(eqn, operands)
        if path in self.audit.rectifiers:
            return [self._rectify(eqn, operands, self.audit.rectifiers[path])]
        if path in self.audit.norms:
            if self.rule == "gradient":
                return bind(eqn, operands)
            return _pass_signal(functools.partial(bind, eqn), operands)
        name = eqn.primitive.name
        inner = bodies(eqn)
        runs = [
            functools.partial(self.run, body, path=(*path, index))
            for index, body in enumerate(inner)
        ]
        # A jit of one equation is dispatched as fast without being compiled anew.
        if name.startswith("custom") or (name == "jit" and len(inner[0].eqns) == 1):
            return runs[0](operands)
        if name in ("remat2", "checkpoint"):
            options = {key: eqn.params[key] for key in ("prevent_cse", "policy")}
            return jax.checkpoint(lambda *args: runs[0](args), **options)(*operands)
        rewritten = [
            jax.make_jaxpr(lambda *args, run=run: run(args))(*body.in_avals)
            for body, run in zip(inner, runs, strict=True)
        ]
        if name == "cond":
            return bind(eqn, operands, branches=tuple(rewritten))
        key = "body_jaxpr" if name == "while" else "jaxpr"
        return bind(eqn, operands, **{key: rewritten[0]})

    def _rectify(self, eqn: core.JaxprEqn, operands: list, index: int) -> jax.Array:
        bounds = dict(enumerate(operands))
        # A bound may have the larger shape.
        x = jnp.broadcast_to(bounds.pop(index), cast(Any, eqn.outvars[0].aval).shape)
        # As an argument of `_clip`, a literal would lose its weak type.
        arrays = {
            i: bound for i, bound in bounds.items() if isinstance(bound, jax.Array)
        }

        def clip(x: jax.Array, arrays: dict[int, jax.Array]) -> tuple[jax.Array, Any]:
            known = bounds | arrays
            (y,) = bind(eqn, [known.get(i, x) for i in range(len(operands))])
            # False for NaN, which is on neither side.
            return y, [(y < bound) | (y > bound) for bound in known.values()]

        return _clip(self.rule, clip, x, arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _clip(rule, clip, x, arrays):
    return clip(x, arrays)[0]


def _clip_forward(rule, clip, x, arrays):
    y, inside = clip(x, arrays)
    return y, None if rule == "deconvnet" else functools.reduce(jnp.logical_and, inside)


def _clip_backward(rule, clip, inside, signal):
    if rule != "gradient":
        signal = jnp.maximum(signal, 0)
    if rule != "deconvnet":
        signal = jnp.where(inside, signal, 0)
    return signal, None


_clip.defvjp(_clip_forward, _clip_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pass_signal(run, operands):
    return run(operands)


_pass_signal.defvjp(
    lambda run, operands: (run(operands), None), lambda run, _, signal: (signal,)
)
