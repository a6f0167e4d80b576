"""What several tests use, and programs of `bench/` too: models with random weights, sessions that are watched or killed."""
