"""Sources of records for whoever reads without taking part: run folders, exports, .sqlite files and brokers.

`exchange` opens any of them topic by topic; `boundary` opens a boundary's own topics as its auditor sees them.
"""
