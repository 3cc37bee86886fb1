"""Operations that a network spends its time in, written for the processor: fused.py, winograd.py, products.py."""
