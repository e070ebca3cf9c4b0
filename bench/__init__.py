"""``make bench`` (``python -m bench``): what a saga costs, beside what its parts would cost if nothing else were done.

A figure alone says more about the machine than about the program.  So each run measures, on the same machine within
the same minutes, the *floors*: three bare HTTP calls, five appends to the log, one frame in and out.  A three-step
saga can not be had for less, and the ratio to their sum is what the coordinator adds: reading, deciding, remembering,
answering.

    commands.py    the saga that is measured, as code and as a definition
    service/       the service it calls: in Go, or in C-speed Python where there is no Go; never the bottleneck
    load.py        the load generator, a process of its own, on raw sockets (wire_tcp.py, wire_http.py)
    floors.py      the floors (bare_http.py: the least client that speaks HTTP)
    throughput.py  daemon and load generator together: log x transport x in flight x kind of command
    recovery.py    start on an empty log, replay of 1,000,000 records, 10,000 uncompleted commands
    processes.py   starts programs, reads their CPU time and peak memory from /proc (so: Linux)
    report.py      markdown tables, ready for docs/performance.md
"""
