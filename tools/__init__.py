"""Tools of the checkout for tests and demonstrations; none of them is part of the package that is installed."""
