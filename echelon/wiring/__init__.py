"""How actors are put together from public settings and their own keys; how users' own rules are found."""
