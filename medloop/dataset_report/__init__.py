"""What a person asks of the data: who stands behind a hash."""
