"""Commands written as functions whose types say what they need and what they make (docs/dataflow.md).

data      what a type says: a datum, whether it may be missing, whether it triggers
steps     a step: a function with what goes with it, to be used in any flow
plan      who makes what for whom; all that is wrong with a flow, found when it is built
running   a flow's plan as nodes of `engine.graph`
drawing   the picture
flow      Flow itself
"""

from coordinator.flow.data import Asks, Datum, ReadOnly
from coordinator.flow.flow import Flow
from coordinator.flow.plan import FlowError
from coordinator.flow.steps import FlowStep, step

__all__ = ["Asks", "Datum", "Flow", "FlowError", "FlowStep", "ReadOnly", "step"]
