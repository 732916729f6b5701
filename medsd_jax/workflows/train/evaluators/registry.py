"""The metrics during training by name, and how one of your own is found."""

import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

from medsd_jax.errors import UserError, closest
from medsd_jax.workflows.train.evaluators.evaluator import Evaluator

_HERE = __package__
EVALUATORS = {
    "validation_loss": f"{_HERE}.validation_loss:ValidationLoss",
    "fid": f"{_HERE}.distances:Distances",
    "kid": f"{_HERE}.distances:Distances",
    "precision": f"{_HERE}.distances:Distances",
    "recall": f"{_HERE}.distances:Distances",
    "prompt_accuracy": f"{_HERE}.prompt_accuracy:PromptAccuracy",
}
"""Name in `evaluation.metrics` -> module and class, which is imported where it is asked for."""


def scalars_of(metrics: Iterable[str]) -> dict[str, type[Evaluator]]:
    """Every scalar that `evaluation.metrics` asks for, in that order, and the class that yields it.

    Args:
        metrics: names of `EVALUATORS`, each of which is one scalar; or MODULE:CLASS or
            FILE.py:CLASS of classes of your own, which yield all of theirs.

    Raises:
        UserError: there is no such class, or two yield a scalar of one name.
    """
    result: dict[str, type[Evaluator]] = {}
    for entry in metrics:
        made = _find(entry)
        for name in (entry,) if entry in EVALUATORS else made.scalars:
            if name in result:
                raise UserError(f"evaluation.metrics: {entry!r} yields {name!r} a second time")
            result[name] = made
    return result


def by_class(scalars: Mapping[str, type[Evaluator]]) -> dict[type[Evaluator], tuple[str, ...]]:
    """Each class once, with all scalars that it shall yield."""
    result: dict[type[Evaluator], tuple[str, ...]] = {}
    for name, made in scalars.items():
        result[made] = (*result.get(made, ()), name)
    return result


def _find(entry: str) -> type[Evaluator]:
    where, _, name = EVALUATORS.get(entry, entry).rpartition(":")
    if not where or not name:
        raise UserError(
            f"evaluation.metrics: {entry!r} does not exist (there are: {', '.join(EVALUATORS)}; "
            f"write one of your own as FILE.py:CLASS or MODULE:CLASS)"
        )
    module = _module(entry, where)
    made = getattr(module, name, None)
    if not (isinstance(made, type) and issubclass(made, Evaluator)):
        known = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise UserError(
            f"evaluation.metrics: {entry!r}: {where} has no class {name} that derives from "
            f"{Evaluator.__module__}.Evaluator{closest(name, known)}"
        )
    if not getattr(made, "scalars", None):
        raise UserError(f"evaluation.metrics: {entry!r} does not name its scalars: see Evaluator")
    return made


def _module(entry: str, where: str) -> ModuleType:
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        spec = importlib.util.spec_from_file_location(Path(where).stem, where)
        assert spec is not None and spec.loader is not None, where
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:  # the user's own code
        message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"evaluation.metrics: {entry!r} cannot be imported ({message})") from error
    return module
