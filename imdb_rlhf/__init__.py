"""How much reward does a preference-tuning method buy for each nat of KL?"""
