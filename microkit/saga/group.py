"""Steps that are carried out at once."""

from __future__ import annotations

from microkit.errors import DefinitionError
from microkit.saga.step import KEEP_TRYING, LOCAL_TIMEOUT, PATIENCE, Step, StepKind, nothing


def parallel(*branches: Step, name: str | None = None) -> Step:
    """Steps carried out at once; the saga goes on when all of them are done::

        parallel(
            compensatable(book_flight, undo=cancel_flight, timeout=10),
            compensatable(book_hotel, undo=cancel_hotel, timeout=10),
        )

    Each finds the state as it was before the group, and what they leave is put together field by field. What one branch
    has done is on record by itself: after a crash only the others run again. Where one refuses, those under way are
    waited for, those that wait or are to be tried again are not, and what happened, or may have, is undone at once,
    then the steps before.

    A group stands before the pivot and has compensatable branches, or after it and has retriable ones. Its ``name`` is
    those of the branches, joined by ``+``, unless it is given one.

    Raises:
        DefinitionError: the branches do not go together; the message says what to change.
    """
    for each in branches:
        if not isinstance(each, Step):
            raise DefinitionError(f"parallel(...) takes steps, such as compensatable(...), and not {each!r}")
    title = name or "+".join(branch.name for branch in branches)
    where = f"the parallel group {title!r}"
    if len(branches) < 2:
        raise DefinitionError(f"{where}: a group has two steps or more; one alone stands in the saga itself")
    kinds = {branch.kind for branch in branches}
    if StepKind.PIVOT in kinds:
        pivot = next(branch.name for branch in branches if branch.kind is StepKind.PIVOT)
        raise DefinitionError(
            f"{where} holds the pivot {pivot!r}: when it is done the others may still fail, and there is no way back; "
            "put it after the group, by itself"
        )
    if len(kinds) > 1:
        raise DefinitionError(
            f"{where} has compensatable and retriable branches: make two groups of it, the compensatable one before "
            "the pivot and the retriable one after it"
        )
    if any(branch.branches for branch in branches):
        raise DefinitionError(f"{where} holds another group: write the steps of both into one")
    undo = nothing if any(branch.undo for branch in branches) else None
    timeout = max((branch.timeout for branch in branches), default=LOCAL_TIMEOUT)
    return Step(
        title, kinds.pop(), nothing, undo, timeout, KEEP_TRYING, KEEP_TRYING, False, False, PATIENCE, branches=branches
    )
