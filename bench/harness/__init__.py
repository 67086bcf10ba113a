"""What benchmarks share: files of results, statistics of paired seeds, and tables of them."""
