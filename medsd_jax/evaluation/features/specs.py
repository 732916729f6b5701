"""How a network is named: ``KIND=PATH``."""

from collections.abc import Sequence

from medsd_jax.errors import UserError


def kind_and_path(spec: str, kinds: Sequence[str], problem: str) -> tuple[str, str]:
    """Reads ``KIND=PATH``.

    Args:
        spec: as it is given.
        kinds: that are known.
        problem: beginning of the message where it is none of them; the known ones follow.

    Raises:
        UserError: another kind, or no path.
    """
    kind, _, path = spec.partition("=")
    if kind not in kinds or not path:
        known = ", ".join(f"{name}=PATH" for name in kinds)
        raise UserError(f"{problem} {known}")
    return kind, path
