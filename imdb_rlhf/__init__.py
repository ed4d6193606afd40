"""How much reward does a preference-tuning method buy for each nat of KL?"""

__version__ = "0.1.0"
