"""What benches of an edit's costs share."""
