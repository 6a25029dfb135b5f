"""What several tests share: small checkpoints, tiny models, a Hub on the loopback, real weights."""
