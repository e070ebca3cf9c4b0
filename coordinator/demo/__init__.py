"""``coordinator demo``: one morning in a small shop, with everything going wrong.

    submitter ──tcp──> coordinator serve ──http──> stock, payments, shipping ──> one SQLite ledger each
                             │
                        embedded log

Every arrow is a real socket and every box on it a process of its own, because what the demo wants to show (kill -9
loses nothing) is only true of processes.  The modules, in reading order:

    orders.py      the saga: a code command as a newcomer would write it
    services.py    the three services it calls: plain, idempotent, each with its own ledger
    ledger.py      the one table that makes a service idempotent, and lets it be audited
    audit.py       pure: final states and ledgers in, contradictions out
    processes.py   starts and stops the processes, by pid
    story.py       what happens when: submit, an outage, kill -9, restart
    tally.py       how far it is
    screen.py      shows it, on a terminal or as plain lines
    stage.py       puts it on: files, signals, and nothing left behind
"""
