"""Find the ReLUs of a function, and the operations that a ReLU rule says nothing about.

A backward rule for ReLUs is meaningful if everything between them is linear in the
inputs or chooses among values by comparing them with each other, as max pooling does.
The audit walks a jaxpr without running it, recognizes rectifiers by their structure
(never by a name) and reports every operation that is neither. Softmax, normalization
and dropout consist of several operations and are reported as one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core, source_info_util

# The index of an equation, of a body inside it, of an equation of that body, and so on.
# Paths sort in the order of execution.
Path = tuple[int, ...]

# How a value depends on the inputs. A SIDE is an integer or boolean that tells on which
# side of a constant an input lies: whatever it selects has a kink there.
CONSTANT, SIGNAL, SIDE = range(3)


@dataclasses.dataclass(frozen=True, eq=False)
class Dependence:
    """What is known of a value without running anything.

    Attributes:
        level: CONSTANT, SIGNAL or SIDE.
        source: The array that a constant was broadcast or converted from, if known. For
            a signal, an object that all its multiples share, so that max(x, x / 10) is
            not taken for a choice.
        role: Part that the value plays in a pattern of several operations.
        paths: Findings that this pattern will explain.
    """

    level: int
    source: Any = dataclasses.field(default_factory=object)
    role: str = ""
    paths: frozenset[Path] = frozenset()

    def is_known(self, test: Callable[[np.ndarray], Any]) -> bool:
        """Whether this is a known constant that passes a test in every element."""
        known = isinstance(self.source, np.ndarray | np.generic | jax.Array | float | int)
        if self.level or not known or isinstance(self.source, Tracer):
            return False
        return bool(np.all(test(np.asarray(self.source))))


@dataclasses.dataclass(frozen=True, eq=False)
class Rectified:
    """Source of a rectified signal; two of opposite sign add up to a leaky ReLU."""

    signal: Any
    negated: bool


SHAPING = {
    *"""broadcast_in_dim convert_element_type copy dynamic_slice reshape rev slice
    squeeze transpose""".split()
}
# A multiple of a signal plus a constant.
SCALING = {*"add convert_element_type copy div mul neg sub".split()}
# Linear in all operands together.
LINEAR = {
    *"""add add_any all_gather broadcast_in_dim complex concatenate conj
    convert_element_type copy copy_p cumsum device_put dynamic_slice
    dynamic_update_slice fft gather imag name neg optimization_barrier pad ppermute psum
    psum_invariant pvary real reduce_precision reduce_sum reduce_window_sum reshape rev
    scatter scatter-add scatter-sub select_and_gather_add select_and_scatter_add
    sharding_constraint slice split squeeze stack stop_gradient sub tile transpose
    unstack""".split()
}
# Linear in one operand while the others are constant.
LAYERS = {*"conv_general_dilated dot_general ragged_dot_general".split()}
CHOOSING = {
    *"""approx_top_k argmax argmin cummax cummin is_finite max min reduce_max reduce_min
    reduce_window_max reduce_window_min select_n sort top_k""".split()
}
COMPARING = {*"eq ge gt le lt ne".split()}
SUMMING = {*"psum psum_invariant reduce_sum reduce_window_sum".split()}
# A softmax or a normalization applies these to a sum of exponentials or squares.
DIVIDING = {*"abs div integer_pow log mul pow rsqrt sign sqrt square".split()}
STATISTICS = {"sum of exp", "moment", "scale"}

SOFTMAX = "a softmax"


def bodies(eqn: core.JaxprEqn) -> list[core.ClosedJaxpr]:
    """The jaxprs inside an equation through which a signal passes."""
    params = eqn.params
    match eqn.primitive.name:
        case "cond":
            return [*params["branches"]]
        case "while":
            return [params["body_jaxpr"]]
        case "jit" | "scan":
            return [params["jaxpr"]]
        case "remat2" | "checkpoint":
            return [core.ClosedJaxpr(params["jaxpr"], ())]
        case "custom_jvp_call" | "custom_vjp_call":
            return [params["call_jaxpr"]]
    return []


class Audit:
    """One walk over a function whose float arguments are its inputs.

    Attributes:
        rectifiers: Paths of the equations that are ReLUs, or that clip ReLUs, and which
            operand each of them rectifies.
        norms: Paths of this package's own contrast normalizations.
        findings: Source line and description of each operation that the rules say
            nothing about.
    """

    def __init__(self, closed: core.ClosedJaxpr):
        """Walk over the jaxpr of a function."""
        self.rectifiers: dict[Path, int] = {}
        self.norms: set[Path] = set()
        self.findings: dict[Path, tuple[str, str]] = {}
        self._clips: dict[Path, int] = {}
        self._over_batch: set[Path] = set()
        self._last_layer: Path = ()
        self._sources: list[source_info_util.SourceInfo] = []
        inputs = [Dependence(int(_is_float(var))) for var in closed.jaxpr.invars]
        self._walk(closed, inputs, ())

    def describe(self, limit: int = 10) -> str:
        """List the findings by source line, those that `model.eval()` cures first."""
        rows: dict[str, dict[str, None]] = {}
        for path in sorted(
            self.findings, key=lambda path: ("eval()" not in self.findings[path][1], path)
        ):
            line, operation = self.findings[path]
            if operation == SOFTMAX and path > self._last_layer:
                operation += " at the end: take the logits instead"
            rows.setdefault(line, {})[operation] = None
        lines = [f"{line}: {', '.join(operations)}" for line, operations in rows.items()]
        if len(lines) > limit:
            lines[limit:] = [f"and {len(lines) - limit} more lines"]
        return lines[0] if len(lines) == 1 else "".join(f"\n  {line}" for line in lines)

    def _walk(
        self, closed: core.ClosedJaxpr, inputs: Sequence[Dependence], path: Path
    ) -> list[Dependence]:
        known = dict(zip(closed.jaxpr.invars, inputs, strict=True))
        for var, value in zip(closed.jaxpr.constvars, closed.consts, strict=True):
            known[var] = Dependence(CONSTANT, value)

        def read(atom: core.Var | core.Literal) -> Dependence:
            if isinstance(atom, core.Literal):
                return Dependence(CONSTANT, atom.val)
            return known[atom]

        for index, eqn in enumerate(closed.jaxpr.eqns):
            self._sources.append(eqn.source_info)
            results = self._visit(eqn, [*map(read, eqn.invars)], (*path, index))
            self._sources.pop()
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in closed.jaxpr.outvars]

    def _visit(
        self, eqn: core.JaxprEqn, operands: list[Dependence], path: Path
    ) -> list[Dependence]:
        if _is_contrast_norm(eqn) and operands[0].level:
            self.norms.add(path)
            return [Dependence(SIGNAL)]
        inner, params = bodies(eqn), eqn.params
        if not inner:
            return self._visit_operation(eqn, operands, path)
        match eqn.primitive.name:
            case "cond":
                # Either branch may be taken; what it is chosen by does not matter.
                branches = [
                    self._walk(branch, operands[1:], (*path, index))
                    for index, branch in enumerate(inner)
                ]
                return [*map(_join, *branches)]
            case "scan":
                fixed, carried = params["num_consts"], params["num_carry"]
                return self._walk_loop(inner[0], operands, fixed, carried, path)
            case "while":
                operands = operands[params["cond_nconsts"] :]
                fixed = params["body_nconsts"]
                carried = len(operands) - fixed
                return self._walk_loop(inner[0], operands, fixed, carried, path)
        return self._walk(inner[0], operands, (*path, 0))

    def _walk_loop(
        self,
        body: core.ClosedJaxpr,
        operands: list[Dependence],
        fixed: int,
        carried: int,
        path: Path,
    ) -> list[Dependence]:
        """Walk over the body until the levels of the loop's state have settled."""
        # A source would differ from turn to turn.
        operands = operands[:fixed] + _levels(operands[fixed:])
        while True:
            self._forget(path)
            results = self._walk(body, operands, (*path, 0))
            state = operands[fixed : fixed + carried]
            raised = [_join(a, b) for a, b in zip(state, results, strict=False)]
            # Levels only rise, so this ends.
            if [x.level for x in raised] == [x.level for x in state]:
                return _levels(results)
            operands[fixed : fixed + carried] = raised

    def _forget(self, path: Path) -> None:
        """Drop the records of a loop, whose body is walked over again."""
        inside = {p for p in self.rectifiers | self.findings if p[: len(path)] == path}
        for earlier in inside:
            self.rectifiers.pop(earlier, None)
            self.findings.pop(earlier, None)

    def _visit_operation(
        self, eqn: core.JaxprEqn, operands: list[Dependence], path: Path
    ) -> list[Dependence]:
        name, signals = eqn.primitive.name, [x for x in operands if x.level]
        if name in LAYERS and signals:
            self._last_layer = max(self._last_layer, path)
        if not signals:
            result = _constant(eqn, operands)
        elif not any(map(_is_float, eqn.outvars)):
            result = Dependence(_level_of_integers(eqn, operands))
        elif name in ("max", "min", "clamp") and [x.level for x in signals] == [SIGNAL]:
            result = self._visit_clip(name, operands, signals[0], path)
        elif obstacle := _obstacle(eqn, operands, signals):
            result = self._visit_obstacle(eqn, obstacle, signals, path)
        else:
            result = self._visit_linear(eqn, signals)
        return [result] * len(eqn.outvars)

    def _visit_clip(
        self, name: str, operands: list[Dependence], x: Dependence, path: Path
    ) -> Dependence:
        """A maximum, a minimum or both of a signal and constants."""
        self._clips[path] = operands.index(x)
        bounds = [bound for bound in operands if not bound.level]
        zero = any(bound.is_known(lambda value: value == 0) for bound in bounds)
        positive = any(bound.is_known(lambda value: value > 0) for bound in bounds)
        if name != "clamp" and bounds[0].is_known(np.isinf):
            return x
        if name == "max" and zero and x.role == "moment":
            return x  # A variance, clipped against rounding errors.
        if {
            "max": zero,
            "min": positive and x.role == "rectified",
            "clamp": zero and positive,
        }[name]:
            self._last_layer = max(self._last_layer, path)
            inner = x.paths if x.role == "clipped" else ()  # As in max(min(x, 6), 0).
            for clip in (path, *inner):
                self.rectifiers[clip] = self._clips[clip]
                self.findings.pop(clip, None)
            if x.role == "rectified":
                return x
            source = Rectified(x.source, x.role == "negated")
            return Dependence(SIGNAL, source, "rectified")
        self._report(path, f"{name} with a constant, other than a ReLU or its clip")
        if name == "min" and positive:
            return Dependence(SIGNAL, x.source, "clipped", frozenset([path]))
        return Dependence(SIGNAL)

    def _visit_obstacle(
        self,
        eqn: core.JaxprEqn,
        obstacle: str,
        signals: list[Dependence],
        path: Path,
    ) -> Dependence:
        """An operation that the rules say nothing about, alone or in a pattern."""
        name = eqn.primitive.name
        statistics = [x for x in signals if x.role in STATISTICS]
        if statistics and name in DIVIDING:
            paths = frozenset().union(*(x.paths for x in statistics))
            for part in paths:
                line, first = self.findings[part]
                self.findings[part] = line, self._name_pattern(part, first)
            if len(signals) == 1:
                return Dependence(SIGNAL, role="scale", paths=paths)
            return Dependence(SIGNAL)
        self._report(path, obstacle)
        square = name in ("square", "mul") or eqn.params.get("y") == 2
        role = "exp" if name == "exp" else "square" if square else ""
        return Dependence(SIGNAL, role=role, paths=frozenset([path]))

    def _name_pattern(self, path: Path, operation: str) -> str:
        if operation in ("exp", SOFTMAX):
            return SOFTMAX
        if path in self._over_batch:
            return "a normalization by batch statistics: call model.eval()"
        return "a normalization by the input's own statistics"

    def _visit_linear(self, eqn: core.JaxprEqn, signals: list[Dependence]) -> Dependence:
        """An operation that any rule leaves as it is; it may go on with a pattern."""
        name, x = eqn.primitive.name, signals[0]
        roles = {signal.role for signal in signals}
        paths = frozenset().union(*(signal.paths for signal in signals))
        role = ""
        if name in SUMMING | LAYERS and roles <= {"square", "moment"}:
            role = "moment"
            axes = eqn.params.get("axes", ())
            if 0 in axes and len(axes) < eqn.invars[0].aval.ndim:
                self._over_batch |= paths
        elif name in SUMMING and roles == {"exp"}:
            role = "sum of exp"
        elif name in SHAPING | SCALING | {"select_n"} and len(signals) == 1:
            role = x.role if x.role in {"exp", "square"} | STATISTICS else ""
            if name in ("add", "sub") and role == "moment":
                role = "scale"
        elif name in ("add", "add_any", "sub") and roles <= {"square", "moment"}:
            role = "moment"
        if name in SCALING and len(signals) == 1:
            negated = (name == "neg") != (x.role == "negated")
            role = role or ("negated" if negated else "")
            return Dependence(SIGNAL, x.source, role, paths)
        return Dependence(SIGNAL, role=role, paths=paths)

    def _report(self, path: Path, operation: str) -> None:
        lines = filter(None, map(source_info_util.summarize, reversed(self._sources)))
        self.findings[path] = next(lines, "unknown line"), operation


def explain_trace_error(error: Exception) -> str | None:
    """Say what to do if tracing a model failed because it is in training mode.

    Args:
        error: What the trace raised.

    Returns:
        One line for the user; None if the error has another cause.
    """
    training = re.search(
        r"Cannot mutate (BatchStat|Rng)|\"batch_stats\" is immutable"
        r"|needs PRNG for \"dropout\"|Dropout requires a key",
        str(error),
    )
    if not training:
        return None
    return (
        f"the model is in training mode ({str(error).partition(' (http')[0]}): call "
        "model.eval() first (Linen: use_running_average=True and deterministic=True; "
        "Equinox: eqx.nn.inference_mode)"
    )


def _obstacle(
    eqn: core.JaxprEqn, operands: list[Dependence], signals: list[Dependence]
) -> str | None:
    """Why an operation is neither linear in the signals nor a choice among them."""
    name = eqn.primitive.name
    if name in ("mul", "select_n") and any(x.role == "mask" for x in operands):
        return "dropout that is on: call model.eval()"
    if any(x.level == SIDE for x in signals):
        return f"{name} (of a comparison with a constant)"
    if len(signals) > 1:
        first, second = signals[0].source, signals[1].source
        if name in ("max", "min") and first is second:
            return f"{name} of a value and a multiple of itself"
        if name in ("add", "sub") and _is_opposite(first, second):
            return f"{name} of two ReLUs of x and -x, as in a leaky ReLU"
        if name in LAYERS or name == "mul":
            return (
                f"{name} of two input-dependent values (close over parameters instead "
                "of passing them)"
            )
    if name == "div":
        return "div by an input-dependent value" if operands[1].level else None
    if name == "mul" or name in LINEAR | LAYERS | CHOOSING:
        return None
    return name


def _is_opposite(first: Any, second: Any) -> bool:
    if not (isinstance(first, Rectified) and isinstance(second, Rectified)):
        return False
    return first.signal is second.signal and first.negated != second.negated


def _constant(eqn: core.JaxprEqn, operands: list[Dependence]) -> Dependence:
    name, roles = eqn.primitive.name, {x.role for x in operands}
    role = ""
    if "mask" in roles or name.startswith(("random_bits", "threefry", "rng_")):
        role = "mask" if "mask" in roles else "random"
    elif "random" in roles:
        role = "mask" if eqn.outvars[0].aval.dtype == bool else "random"
    rounds = not _is_float(eqn.outvars[0]) and any(map(_is_float, eqn.invars))
    if name in SHAPING and not rounds:
        return Dependence(CONSTANT, operands[0].source, role)
    return Dependence(CONSTANT, role=role)


def _level_of_integers(eqn: core.JaxprEqn, operands: list[Dependence]) -> int:
    """The level of results that are not floats."""
    name, top = eqn.primitive.name, max(x.level for x in operands)
    pairs = zip(operands, eqn.invars, strict=True)
    floats = [x for x, atom in pairs if x.level and _is_float(atom)]
    if not floats or name in CHOOSING:
        return top
    if name in COMPARING and len(floats) == 2:
        # Whether a value equals itself says only whether it is a number.
        same = floats[0].source is floats[1].source and name not in ("eq", "ne")
        return SIDE if same else top
    return SIDE


def _is_contrast_norm(eqn: core.JaxprEqn) -> bool:
    """Whether this is `ops.contrast_norm`, which is jitted under its name."""
    if eqn.primitive.name != "jit" or eqn.params["name"] != "contrast_norm":
        return False
    shapes = [atom.aval.shape for atom in (*eqn.invars, *eqn.outvars)]
    return len(shapes) == 2 and shapes[0] == shapes[1] and _is_float(eqn.invars[0])


def _is_float(atom: core.Var | core.Literal) -> bool:
    dtype = getattr(atom.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def _join(*values: Dependence) -> Dependence:
    return Dependence(max(x.level for x in values))


def _levels(values: Sequence[Dependence]) -> list[Dependence]:
    return [_join(x) for x in values]
