"""HTTP: metrics, health, and later the fleet's page."""
