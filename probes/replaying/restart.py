"""From where a model can be started again when the heads of one layer are changed, and how."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from probes.heads import Site
from probes.replaying.call_tree import Call, CallTree
from probes.replaying.savings import ReadRows
from probes.replaying.short_circuit import Action, Forward, Script, own_forward


@dataclass(frozen=True)
class Restart:
    """How the forward is entered at one attention layer.

    Attributes:
        call: the call that projects z (or makes it, where no module projects it).
        cut: the first call that does not get its recorded output: everything that ended before
            it does.
        live: whether the attention is computed again and the change made in it.
    """

    site: Site
    call: Call
    cut: Call
    live: bool = False

    def actions(self, x: Tensor, read: Tensor, rows: ReadRows | None = None) -> dict[Call, Action]:
        """What the calls at the cut do, so that ``x`` is projected instead of what was read.

        Args:
            x: what the projection is to read.
            read: what it reads in the intact model (of as many examples).
            rows: the positions that are to be projected; all by default.
        """
        call, cut = self.call, self.cut
        run = _plainly if rows is None else rows.apply
        project = Action(lambda forward, args, named: run(forward, (x, *args[1:]), named))
        if cut is call:
            return {call: project}
        if cut is call.source:
            form, copies = cut.form, x.shape[0] // max(read_rows(call), 1)
            shape = (cut.shape[0] * copies, *cut.shape[1:])
            assert form is not None
            return {
                cut: Action(lambda *_: form.filled(read.clone().reshape(shape))),
                call: project,
            }
        form = cut.form
        assert form is not None
        # The projection's hooks have had their say in the recorded forward.
        return {cut: Action(lambda *_: form.filled(run(own_forward(call.module), (x,), {})))}


class BlockEnded(BaseException):
    """Leaves the model's forward when a block has returned."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def end_of_block() -> Action:
    """Makes a block the last thing that runs."""
    return ending(Action(_plainly, inside=True))


def ending(action: Action) -> Action:
    """The same action, as the last thing that happens."""

    def act(forward: Forward, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        raise BlockEnded(action.act(forward, args, named))

    return Action(act, action.inside)


def _plainly(forward: Forward, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return forward(*args, **named)


def read_rows(call: Call) -> int:
    """First axis of what a projection read: examples, or tokens of packed images."""
    return 1 if call.read is None else call.read.shape[0]


def restart_at(tree: CallTree, site: Site, calls: list[Call]) -> Restart | str:
    """How to start again at a layer, or why the whole model must run.

    The largest module around the projection that hands on the projection's output, and nothing
    made of it, need not run: only the projection does. Otherwise a module that hands z to the
    projection need not run. Otherwise the attention runs again.
    """
    if len(calls) != 1:
        return f"{site} is computed {len(calls)} times in one forward."
    call = calls[0]
    if not call.path:
        return f"{site} is computed by the model itself, not by a module in it."
    if call.read is None:
        if sum(other.module is call.module for other in tree.calls) > 1:
            return f"{call.path}, which computes {site}, runs several times in one forward."
        return Restart(site, call, tree.block_of(call) or call, live=True)
    largest = call
    for around in call.above():
        if tree.outline.role[around.module] == "stack":
            break
        if around.carried is call and call.plain:
            largest = around
    if largest is call and call.source is not None:
        return Restart(site, call, call.source)
    return Restart(site, call, largest)


def script_of(
    tree: CallTree,
    special: Mapping[Call, Action],
    cut: Call | None,
    answer: Callable[[Call], Action | None],
) -> Script:
    """Every module's part: recorded outputs for all that ended before the cut, else as it is.

    Args:
        special: what some calls do instead.
        answer: makes the action that hands out a call's recorded output; None to run it.
    """
    script: dict[nn.Module, list[Action | None]] = defaultdict(list)

    def visit(calls: Iterable[Call]) -> None:
        for call in calls:
            action = special.get(call)
            if action is None and cut is not None and call.has_output and call.end < cut.start:
                action = answer(call)
            script[call.module].append(action)
            if action is None or action.inside:
                visit(call.children)

    visit(tree.calls[:1])
    return {module: actions for module, actions in script.items() if any(actions)}
