"""What several processes of `jax.distributed` do about a folder that all of them see. One process notices nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils


def own(items: Sequence) -> Sequence:
    """This process's share of what there is to do."""
    return items[jax.process_index() :: jax.process_count()]


def agreed(value):
    """Process 0's answer, for what all have to decide alike: a number or an array."""
    return multihost_utils.broadcast_one_to_all(value) if jax.process_count() > 1 else value


def together(work: Callable, *args):
    """Every process does it; none goes on before all have, and the failure of one is everyone's.

    Raises:
        Exception: what `work` raised here. RuntimeError: naming the process where it failed, if not here.
    """
    if jax.process_count() == 1:
        return work(*args)
    result = failure = None
    try:
        result = work(*args)
    except Exception as error:
        failure = error
    failed = np.flatnonzero(multihost_utils.process_allgather(np.array(failure is not None)))
    if len(failed):
        raise failure or RuntimeError(f"process {failed[0]} failed, and says why")
    return result


def in_turn(work: Callable, *args):
    """Process 0 does it first, for it may write; then the others. Raises as `together`."""
    first, result = jax.process_index() == 0, None
    for turn in (True, False):
        if first == turn:
            result = together(work, *args)
        else:
            together(lambda: None)
    return result
