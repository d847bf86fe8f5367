"""What `benchmarks.drn` runs: methods that rank the simulated news, what they remember, and what is measured."""
