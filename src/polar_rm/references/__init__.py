"""References for data that has none: out of a column, sampled from a policy, or the best other answer to the same prompt."""
