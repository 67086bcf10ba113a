"""Local training: one frozen base, one flat adapter vector, and the data of every device.

`learner` has the interface that actors use and imports no torch; `local` is its implementation in plain
torch; `model` loads a base and attaches LoRA; `layout` makes the adapter one flat vector; `state` is what a
device keeps between tasks; `data` reads, splits and packs documents.
"""
