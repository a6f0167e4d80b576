"""The test suite; `tests.support` is what benchmarks use too."""
