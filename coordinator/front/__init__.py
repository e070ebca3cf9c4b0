"""What clients can ask, whatever transport they use: the one implementation of `transport.base.Front`.

Checks a request, asks the pipeline, shows the answer.  One module a concern, all standing on `base.Base`:

    intake       submissions: checked, admitted or refused, watched to their end
    patience     those that would rather wait than be refused
    queries      everything that only looks
    operations   controls, breakers, definitions
    watching     the watchers behind them: who awaits, who joins late
"""

from coordinator.front.intake import Intake
from coordinator.front.operations import Operations
from coordinator.front.queries import Queries

__all__ = ["CoordinatorFront"]


class CoordinatorFront(Intake, Queries, Operations):
    """See `transport.base.Front` for what each method promises."""
