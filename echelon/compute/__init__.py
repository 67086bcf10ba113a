"""Where training runs: pools of workers, whole or split models, planned cuts, and learners without torch."""
