"""The trainer: a federation of clients that trains cohorts of models and recombines them, round by round."""
