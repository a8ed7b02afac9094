"""The scheduler: sees every worker live, chooses, queues, sheds, explains. It is not on the tokens' way."""
