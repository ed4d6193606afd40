"""What a policy is worth: reward and KL, with honest intervals."""
