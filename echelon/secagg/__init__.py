"""Secure aggregation: the server learns the sum of a cohort's vectors and no summand.

`ring` turns reals into integers mod 2**32 or 2**16 and back, `prg` makes masks, `keys` derives every key and
statement, `shamir` and `recovery` share secrets and get them back, `graph` says who masks with whom, `roster`
who is enrolled, `context` what one window is bound to; `client` and `server` are the two state machines.
"""
