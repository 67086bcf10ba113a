"""`python -m tools.kafka up|down|status|fetch`."""

from tools.kafka.stack import main

raise SystemExit(main())
