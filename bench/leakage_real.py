"""As `leakage`, with the base and the text of the contest on domains: posts on medicine are read, news are public.

    python -m bench leakage_real                about five minutes on one core

First `python -m bench.domains prepare .domains`, which fetches the text.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.elsa.real_models import prepare
from bench.leakage import main

FOLDER = Path(".domains")

if __name__ == "__main__":
    main(
        model=str(prepare("decoder", FOLDER, lambda line: print(line, file=sys.stderr))),
        victim=f"jsonl:{FOLDER}/text/medicine/train.jsonl",
        public=f"jsonl:{FOLDER}/text/news/train.jsonl",
        batches=8,
        steps=60,
    )
