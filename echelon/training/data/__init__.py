"""Data of a boundary, in the order of the work: sources, encode, split, partition, packing, boundary.

Documents are split into training and validation, and dealt to devices, as wholes and before anything is
packed, so that no text is on both sides and none on two devices.
"""
