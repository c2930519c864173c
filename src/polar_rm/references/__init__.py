"""Makes references for data without them: from a column, from a policy's samples, or from other answers to the same prompt."""
