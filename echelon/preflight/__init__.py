"""What can be known of a run before it starts: its data, its model, its rules and its brokers, and all that is wrong.

Nothing is trained and nothing is written. Data is read in pieces, so memory does not grow with the files.
"""
