"""Models, rules and losses as pure functions of their parameters, of one task or of a stack of tasks at once."""
