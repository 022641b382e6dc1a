"""Where a deployed file leaves the simulation that it was made of."""
