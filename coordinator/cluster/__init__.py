"""The other instances of the group: who is a member, who is alive, who owns what, and how to ask them.

Nothing here is needed for safety: that is in the log (`ownership`).  What is here makes the group quick and friendly:
a dead owner is replaced within a second, and any instance takes any request.
"""
