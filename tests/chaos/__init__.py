"""
Chaos: real processes under load, faults, and a ledger that knows what must have arrived.

    site.py      Valkey (appendonly, fsync always), RocketMQ, 3 nodes, 2 dispatchers, with proxies between the parts
    load.py      senders that retry under the same requestId until 200, clients that acknowledge and come back
    audiences.py sends to groups and to everyone, clients that join and leave groups
    ledger.py    what was answered 200, what arrived where and when; what is lost, doubled, misdirected, stale
    faults.py    one function a fault
    full_disk.py a broker that finds its disk full
    rounds.py    a fault or two, healing, settling, the verdict
    report.py    lines, a table, the files that are kept
    run.py       `make chaos`: random faults for so many minutes, from a seed that can be replayed
"""
