"""Submits one order with the Python client and waits for its end: python examples/submit.py o-1"""

import sys

from coordinator_client import Client

order = sys.argv[1] if len(sys.argv) > 1 else "o-1"
payload = {"order": order, "item": "lamp", "amount": 1999, "city": "Porto"}

with Client("tcp://127.0.0.1:7070") as client:
    # The id is ours, so running this twice submits one order, not two.
    command = client.submit("PlaceOrder", payload, id=order, wait="30s")
    print(command.state, command.result or command.error)
