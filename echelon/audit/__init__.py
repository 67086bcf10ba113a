"""What makes an exchange checkable: the record chain, Merkle logs, signed notes, and the independent
verifier.

`records`, `prefix`, `merkle` and `note` are formats; `log` reads one topic as writers, gates and auditors do;
`verify` checks a whole exchange and `replay` yields its adapters; `export` is the folder format of exported
topics.
"""
