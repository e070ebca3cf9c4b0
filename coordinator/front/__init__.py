"""What clients can ask, whatever transport they use: the one implementation of `transport.base.Front`.

Checks a request, asks the pipeline, shows the answer.  One module a concern, all standing on `base.Base`:

    intake       submissions: checked, admitted or refused, watched to their end
    patience     those that would rather wait than be refused
    queries      everything that only looks
    lists        of many commands, made in slices
    signals      data, callbacks and decisions
    operations   controls, breakers, definitions
    schedules    commands that are submitted by the clock
    watching     the watchers behind them: who awaits, who joins late
"""

from coordinator.front.lists import Lists
from coordinator.front.queries import Queries
from coordinator.front.schedules import Schedules
from coordinator.front.signals import Signals

__all__ = ["CoordinatorFront"]


class CoordinatorFront(Schedules, Queries, Lists, Signals):
    """See `transport.base.Front` for what each method promises."""
