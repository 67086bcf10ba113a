"""`python -m echelon.cli`."""

from echelon.cli import main

if __name__ == "__main__":
    main()
