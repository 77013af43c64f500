"""Surface inspection as in a factory: drawn parts stand in for a customer's photos."""
