"""Find the ReLUs of a function, and the operations that a ReLU rule says nothing about.

A backward rule for ReLUs is meaningful if everything between them is linear in the
inputs or chooses among values by comparing them with each other, as max pooling does.
The audit walks a jaxpr, recognizes rectifiers by their structure and reports every
operation that is neither; a softmax, a normalization or a dropout as one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core, source_info_util

from zfnet_jax import tracing

# The index of an equation, of a body inside it, of an equation of that body, and so on.
# Paths sort in the order of execution.
Path = tuple[int, ...]

# How a value depends on the inputs. A SIDE is an integer or boolean that tells on which
# side of a constant an input lies: whatever it selects has a kink there.
CONSTANT, SIGNAL, SIDE = range(3)


@dataclasses.dataclass(frozen=True, eq=False)
class Dependence:
    """Facts about a value, without running anything.

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

    def passes(self, test: Callable[[np.ndarray], Any]) -> bool:
        """Return whether this is a known constant that passes a test everywhere."""
        known = np.ndarray | np.generic | jax.Array | float | int
        if self.level or isinstance(self.source, Tracer):
            return False
        return isinstance(self.source, known) and bool(
            np.all(test(np.asarray(self.source)))
        )


class Rectified(NamedTuple):
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
# Linear in one operand while the other is constant.
LAYERS = {*"conv_general_dilated dot_general ragged_dot_general".split()}
CHOOSING = {
    *"""approx_top_k argmax argmin cummax cummin is_finite max min reduce_max reduce_min
    reduce_window_max reduce_window_min select_n sort top_k""".split()
}
COMPARING = {*"eq ge gt le lt ne".split()}
LOGICAL = {*"and not or select_n xor".split()}
SUMMING = {*"psum psum_invariant reduce_sum reduce_window_sum".split()}
# A softmax or a normalization applies these to a sum of exponentials or squares.
DIVIDING = {*"abs div integer_pow log pow rsqrt sign sqrt".split()}
SQUARES = {"square", "product", "moment", "scale"}
STATISTICS = {"sum of exp", "moment", "scale"}

TRAINING = "call model.eval()"
SOFTMAX = "a softmax"
NORMALIZATION = "a normalization by the input's own statistics"
BATCH_NORMALIZATION = f"a normalization by the statistics of the batch: {TRAINING}"
PATTERNS = {SOFTMAX, NORMALIZATION, BATCH_NORMALIZATION}


class Audit:
    """One walk over a function whose float arguments are its inputs.

    Attributes:
        rectifiers: Paths of the equations that are ReLUs or clip them, each with the
            index of the operand that it rectifies.
        norms: Paths of this package's own contrast normalizations.
        findings: Source line and description of every other operation.
    """

    def __init__(self, closed: core.ClosedJaxpr):
        """Walk over the jaxpr of a function."""
        self.norms: set[Path] = set()
        self.findings: dict[Path, tuple[str, str]] = {}
        self._clips: dict[Path, int] = {}
        self._over_batch: set[Path] = set()
        self._last_layer: Path = ()
        self._sources: list[source_info_util.SourceInfo] = []
        inputs = [Dependence(int(_is_float(var))) for var in closed.jaxpr.invars]
        self._walk(closed, inputs, ())
        self.rectifiers = {
            path: x for path, x in self._clips.items() if path not in self.findings
        }

    def describe(self, limit: int = 10) -> str:
        """List the findings by source line, those of training mode first."""
        rows: dict[str, dict[str, None]] = {}
        for path, (line, operation) in sorted(
            self.findings.items(), key=lambda item: (TRAINING not in item[1][1], item)
        ):
            if operation == SOFTMAX and path > self._last_layer:
                operation += " at the end: take the logits instead"
            rows.setdefault(line, {})[operation] = None
        lines = [f"{line}: {', '.join(rows[line])}" for line in rows]
        if len(lines) > limit:
            lines[limit:] = [f"and {len(lines) - limit} more lines"]
        return lines[0] if len(lines) == 1 else "".join(f"\n  {line}" for line in lines)

    def _walk(
        self, closed: core.ClosedJaxpr, inputs: Sequence[Dependence], path: Path
    ) -> list[Dependence]:
        jaxpr = closed.jaxpr
        known = dict(zip(jaxpr.invars, inputs, strict=True))
        for var, value in zip(jaxpr.constvars, closed.consts, strict=True):
            known[var] = Dependence(CONSTANT, value)

        def read(atom: core.Var | core.Literal) -> Dependence:
            if isinstance(atom, core.Literal):
                return Dependence(CONSTANT, atom.val)
            return known[atom]

        for index, eqn in enumerate(jaxpr.eqns):
            self._sources.append(eqn.source_info)
            results = self._visit(eqn, [*map(read, eqn.invars)], (*path, index))
            self._sources.pop()
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _visit(
        self, eqn: core.JaxprEqn, operands: list[Dependence], path: Path
    ) -> list[Dependence]:
        inner, params = tracing.bodies(eqn), eqn.params
        if tracing.is_contrast_norm(eqn) and operands[0].level:
            self.norms.add(path)
            return [Dependence(SIGNAL)]
        if not inner:
            return self._visit_operation(eqn, operands, path)
        match eqn.primitive.name:
            case "cond":
                # Either branch may be taken; it does not matter by what it is chosen.
                branches = [
                    self._walk(branch, operands[1:], (*path, index))
                    for index, branch in enumerate(inner)
                ]
                return [*map(_join, *branches)]
            case "scan":
                if "ft_in" in params:  # since jax 0.12
                    fixed, state, _ = map(len, params["ft_in"].unpack())
                    counts = fixed, state
                else:
                    counts = params["num_consts"], params["num_carry"]
                return self._walk_loop(inner[0], operands, counts, path)
            case "while":
                operands = operands[params["cond_nconsts"] :]
                counts = params["body_nconsts"], len(operands) - params["body_nconsts"]
                return self._walk_loop(inner[0], operands, counts, path)
        return self._walk(inner[0], operands, (*path, 0))

    def _walk_loop(
        self,
        body: core.ClosedJaxpr,
        operands: list[Dependence],
        counts: tuple[int, int],
        path: Path,
    ) -> list[Dependence]:
        """Walk over a loop's body until the levels of its state have settled."""
        fixed, state = counts[0], slice(counts[0], sum(counts))
        # A source would differ from turn to turn.
        operands = [*operands[:fixed], *map(_join, operands[fixed:])]
        while True:
            for records in (self._clips, self.findings):
                for earlier in [p for p in records if p[: len(path)] == path]:
                    del records[earlier]
            results = [*map(_join, self._walk(body, operands, (*path, 0)))]
            raised = [*map(_join, operands[state], results)]
            # Levels only rise, so this ends.
            if [x.level for x in raised] == [x.level for x in operands[state]]:
                return results
            operands[state] = raised

    def _visit_operation(
        self, eqn: core.JaxprEqn, operands: list[Dependence], path: Path
    ) -> list[Dependence]:
        name, signals = eqn.primitive.name, [x for x in operands if x.level]
        if signals and name in LAYERS:
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
        # Several results are no multiples of each other.
        several = len(eqn.outvars) > 1
        return [_join(result) if several else result for _ in eqn.outvars]

    def _visit_clip(
        self, name: str, operands: list[Dependence], x: Dependence, path: Path
    ) -> Dependence:
        """A maximum of a signal and a constant, a minimum, or both."""
        bounds = [bound for bound in operands if not bound.level]
        zero = any(bound.passes(lambda value: value == 0) for bound in bounds)
        positive = any(bound.passes(lambda value: value > 0) for bound in bounds)
        if name == "max" and (
            bounds[0].passes(np.isneginf) or (zero and x.role == "moment")
        ):
            return x  # As in a softmax, and where rounding makes a variance negative.
        self._clips[path] = operands.index(x)
        if {
            "max": zero,
            "min": positive and x.role == "rectified",
            "clamp": zero and positive,
        }[name]:
            self._last_layer = max(self._last_layer, path)
            if x.role == "clipped":  # The minimum in max(min(x, 6), 0).
                for clip in x.paths:
                    self.findings.pop(clip, None)
            if x.role == "rectified":
                return x
            source = Rectified(x.source, x.role == "negated")
            if x.role == "scale":  # Perhaps a variance by products.
                return dataclasses.replace(x, source=source)
            return Dependence(SIGNAL, source, "rectified")
        self._report(path, f"{name} with a constant, and not a ReLU")
        role = "clipped" if name == "min" and positive else ""
        return Dependence(SIGNAL, x.source, role, frozenset([path]))

    def _visit_obstacle(
        self, eqn: core.JaxprEqn, obstacle: str, signals: list[Dependence], path: Path
    ) -> Dependence:
        name = eqn.primitive.name
        paths = _union(x.paths for x in signals if x.role in STATISTICS)
        parts = {self.findings[part][1] for part in paths}
        # A product with a statistic completes a pattern, and does not begin one.
        if not parts or not (name in DIVIDING or (name == "mul" and parts <= PATTERNS)):
            self._report(path, obstacle)
            role = {"exp": "exp", "mul": "product", "square": "square"}.get(name, "")
            if eqn.params.get("y") == 2 or (
                name == "mul" and signals[0] is signals[-1]
            ):
                role = "square"
            return Dependence(SIGNAL, role=role, paths=frozenset([path]))
        pattern = BATCH_NORMALIZATION if paths & self._over_batch else NORMALIZATION
        if parts & {"exp", SOFTMAX}:
            pattern = SOFTMAX
        self.findings |= {part: (self.findings[part][0], pattern) for part in paths}
        # Applied to anything else, the pattern is complete.
        if len(signals) > 1:
            return Dependence(SIGNAL)
        return Dependence(SIGNAL, role="scale", paths=paths)

    def _visit_linear(
        self, eqn: core.JaxprEqn, signals: list[Dependence]
    ) -> Dependence:
        name, x, role = eqn.primitive.name, signals[0], ""
        roles, paths = {x.role for x in signals}, _union(x.paths for x in signals)
        if name in SUMMING and roles == {"exp"}:
            role = "sum of exp"
        elif roles <= SQUARES and (name in SUMMING or len(signals) > 1):
            role = "moment" if roles <= {"square", "moment"} else "scale"
            axes, operand = eqn.params.get("axes", ()), cast(Any, eqn.invars[0].aval)
            if 0 in axes and len(axes) < operand.ndim:
                self._over_batch |= paths
        elif name == "neg" and x.role in ("", "negated"):
            role = "" if x.role else "negated"
        elif name in SHAPING | SCALING | {"select_n"} and len(signals) == 1:
            role = x.role if x.role not in ("rectified", "clipped") else ""
            if name in ("add", "sub") and role == "moment":
                role = "scale"
        if name in SCALING and len(signals) == 1:
            return Dependence(SIGNAL, x.source, role, paths)
        return Dependence(SIGNAL, role=role, paths=paths)

    def _report(self, path: Path, operation: str) -> None:
        lines = filter(None, map(source_info_util.summarize, reversed(self._sources)))
        self.findings[path] = next(lines, "unknown line"), operation


@contextlib.contextmanager
def explain_training_mode() -> Iterator[None]:
    """Raise ValueError instead of what a model in training mode raises in a trace."""
    try:
        yield
    except Exception as error:
        if not re.search(
            r"Cannot mutate (BatchStat|Rng)|\"batch_stats\" is immutable"
            r"|needs PRNG for \"dropout\"|Dropout requires a key",
            str(error),
        ):
            raise
        raise ValueError(
            f"the model is in training mode ({str(error).partition(' (http')[0]}): "
            f"{TRAINING} (Linen: use_running_average=True, deterministic=True; "
            "Equinox: eqx.nn.inference_mode)"
        ) from error


def _obstacle(
    eqn: core.JaxprEqn, operands: list[Dependence], signals: list[Dependence]
) -> str | None:
    """Name what makes an operation neither linear nor a choice among signals."""
    name = eqn.primitive.name
    if name in ("mul", "select_n") and any(x.role == "mask" for x in operands):
        return f"dropout that is on: {TRAINING}"
    if any(x.level == SIDE for x in signals):
        return f"{name} by a comparison with a constant"
    if len(signals) > 1:
        first, second = signals[0].source, signals[1].source
        if name in ("max", "min") and first is second:
            return f"{name} of a value and a multiple of itself"
        if name in ("add", "sub") and (
            isinstance(second, Rectified)
            and first == second._replace(negated=not second.negated)
        ):
            return f"{name} of the ReLUs of x and -x, as in a leaky ReLU"
        if name in LAYERS:
            return f"{name} of two inputs (close over parameters, do not pass them)"
        if name == "mul":
            return "mul of two inputs"
    if name == "div":
        return "div by an input" if operands[1].level else None
    if name == "reduce_window":  # A choice, if all it does is to compare and select.
        inside = set(tracing.primitives(eqn)) - {name, "jit"}
        return None if inside <= COMPARING | LOGICAL else name
    return None if name == "mul" or name in LINEAR | LAYERS | CHOOSING else name


def _constant(eqn: core.JaxprEqn, operands: list[Dependence]) -> Dependence:
    """The result of constants; a comparison of random numbers is a dropout mask."""
    name, dtype = eqn.primitive.name, getattr(eqn.outvars[0].aval, "dtype", None)
    role = max((x.role for x in operands), default="", key=["", "random", "mask"].index)
    if name.startswith(("random_bits", "threefry", "rng_")):
        role = "random"
    elif role and dtype == np.dtype(bool):
        role = "mask"
    truncated = any(map(_is_float, eqn.invars)) and not _is_float(eqn.outvars[0])
    if name in SHAPING and not truncated:
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


def _is_float(atom: core.Var | core.Literal) -> bool:
    dtype = getattr(atom.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def _join(*values: Dependence) -> Dependence:
    return Dependence(max(x.level for x in values))


def _union(paths: Iterable[frozenset[Path]]) -> frozenset[Path]:
    return frozenset().union(*paths)
