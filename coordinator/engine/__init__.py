"""The pure core: what happens next.

Records go in (`Engine.apply`), answers, times and operators' requests go in, with ``now`` as an argument; records to
append and calls to make come out (`Engine.take`).  No I/O, no clock, no event loop, no chance but the
``random.Random`` it is given.

The order of effects is fixed by construction: nothing but `apply` changes what the engine believes, `apply` is only
called with records that the log has confirmed, and calls are only derived from what the engine believes.  Replay is
the same `apply`; what it withholds is `decide`, which runs once for each uncompleted command when the replay has
ended.
"""
