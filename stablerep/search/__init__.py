"""Search the settings of painting that train the best encoder, within a budget: `stablerep-search`."""
