"""Results on the Hugging Face Hub: a model, the preferences it learned from, and the report as a static Space."""
