"""What a learner refuses, found on its first task, and what it asks of rules and initializations."""
