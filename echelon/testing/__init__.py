"""What tests may use, ours and those of users: a learner without torch, and faults by schedule."""
