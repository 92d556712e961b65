"""The outside world: thin adapters that turn names of models and data into what the verbs take."""
