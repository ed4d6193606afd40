"""One policy's reward and KL, with intervals; best-of-N and the optimum, from the reference's samples."""
